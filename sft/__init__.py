"""Stage 1: supervised fine-tuning, from demonstrations to a plain Hugging Face model."""
