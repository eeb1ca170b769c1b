"""Optimizer steps: AdamW on one process or over DeepSpeed, and what becomes of a step that is not finite."""
