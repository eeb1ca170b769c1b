"""Stage 2: a reward model, trained on rankings, as an adapter and a scalar head on the SFT model."""
