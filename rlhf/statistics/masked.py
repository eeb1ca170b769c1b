"""Mean, variance and whitening over the tokens that a mask keeps.

Padding never counts, whatever stands there: NaN included.
"""

import torch
from torch import Tensor

# Shapes: B rollouts in this batch, T response tokens (right-padded).


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the kept tokens, a scalar."""
    return torch.where(mask_BT, values_BT, 0).sum()


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the kept tokens, a scalar; 0 when none is kept."""
    return masked_sum(values_BT, mask_BT) / mask_BT.sum().clamp(min=1)


def masked_variance(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Biased variance over the kept tokens, a scalar."""
    centred_BT = values_BT - masked_mean(values_BT, mask_BT)
    return masked_mean(centred_BT.square(), mask_BT)


def whiten(values_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale to unit (biased) variance over the kept tokens, and to mean 0 unless `shift_mean` is off.

    Padding comes back as 0.
    """
    mean = masked_mean(values_BT, mask_BT)
    scaled_BT = (values_BT - mean) * torch.rsqrt(masked_variance(values_BT, mask_BT) + epsilon)
    if not shift_mean:
        scaled_BT = scaled_BT + mean
    return torch.where(mask_BT, scaled_BT, 0)
