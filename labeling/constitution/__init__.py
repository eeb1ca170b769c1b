"""Labels from a written constitution: a model criticizes, revises and compares answers by its principles."""
