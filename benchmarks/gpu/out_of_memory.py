"""What "out of memory" looks like."""

import torch

_SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
"""Of the CUDA driver, of cuBLAS, and of torch on a CPU: none of these errors has a type of its own."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that a device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)
