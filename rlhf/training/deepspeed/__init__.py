"""The engine that DeepSpeed makes of a model and its optimizer, and its state."""
