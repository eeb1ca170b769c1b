"""Per-token rewards and generalized advantage estimation."""

import torch
from torch import Tensor

# Shapes: B rollouts, T response tokens (right-padded).


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, coefficient: float) -> Tensor:
    """−β·k1 on every real token, plus the score on the last one (2009.01325, section 3.4).

    A row's real tokens are its first ones; `mask_BT` keeps at least one in every row.
    """
    rewards_BT = torch.where(mask_BT, -coefficient * kl_BT, 0)
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(1, last_B1, scores_B.unsqueeze(1).to(rewards_BT.dtype))


def generalized_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T), 0 in padding (1506.02438, equation 16, truncated at the last token).

    A_t = Σ_k (γλ)^k δ_{t+k}, with δ_t = r_t + γ·V_{t+1} − V_t and V = 0 after the last real token; returns
    are A + V, unwhitened.
    """
    values_BT = torch.where(mask_BT, values_BT, 0)
    rewards_BT = torch.where(mask_BT, rewards_BT, 0)
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = torch.zeros_like(values_BT[:, 0])
    running_B = torch.zeros_like(next_value_B)
    for t in range(values_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = torch.where(mask_BT[:, t], delta_B + gamma * gae_lambda * running_B, 0)
        advantages_BT[:, t] = running_B
        next_value_B = values_BT[:, t]
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0)
