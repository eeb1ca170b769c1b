"""The labeling store and screen: `python -m benchmarks.labeling`, `benchmarks.labeling.kills`, `.screen`."""
