"""The folder of a run: who may write, what is finished, checkpoints, metrics and progress."""
