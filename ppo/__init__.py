"""Stage 3: proximal policy optimization of a LoRA policy against the reward model, with a KL penalty."""
