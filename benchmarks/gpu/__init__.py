"""What only a CUDA device can answer: `python -m benchmarks.gpu`."""
