"""What DeepSpeed is told, and weights that its ZeRO-3 has sharded over ranks."""
