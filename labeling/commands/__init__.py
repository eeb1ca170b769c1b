"""The commands of a labeling project: what each takes, and what it does with it."""
