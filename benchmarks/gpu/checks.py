"""The claims that must hold on a device: the sampler agrees with training, whatever path it takes.

Where the base computes in fp32 two ways to the same number may differ by rounding only, and nearly all rows
must be drawn alike. In bf16 a rounding difference is 1/256 of a number and draws part early: what is required
there is that log-probabilities agree in the mean.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.base_model import base_tensors, perturb
from benchmarks.gpu.iteration import iterate
from benchmarks.gpu.models import Engine, add_roles, random_base, random_prompts
from benchmarks.gpu.plan import Case
from benchmarks.gpu.swaps import counted_replays, plain_path, uncaptured
from ppo.models import POLICY, VALUE
from ppo.passes import response_logprobs
from ppo.prompts import PromptSet
from ppo.rollout import score_tokens
from reward.model import ROLE
from rlhf.sampling.engine import sample
from rlhf.sampling.rollouts import Rollouts

# Shapes: B rollouts, T response tokens, N response tokens of all rollouts.

LIMITS = {torch.float32: (1e-4, 1e-3, 1e-3), torch.bfloat16: (0.05, 1.0, 0.05)}
"""By what the base computes in: mean and largest |difference| of log-probabilities in nats, and the relative
difference of gradients."""
_LEAST_SAME_ROWS = 0.95
"""Share of rows drawn alike in fp32: a draw may lie within rounding of the border between two tokens."""
_LEAST_MOVED = 0.1
"""Share of an adapter's numbers: a value with small gradients moves less than fp32 can tell."""


class Checks:
    """What has been found, against what is required."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def at_most(self, name: str, value: float, limit: float | None) -> None:
        """Note `value`, which must not exceed `limit`; without one it is told and not judged."""
        self._add(name, value, f"≤ {limit:g}" if limit is not None else None, limit is None or value <= limit)

    def at_least(self, name: str, value: float, limit: float | None) -> None:
        """Note `value`, which must reach `limit`; without one it is told and not judged."""
        self._add(name, value, f"≥ {limit:g}" if limit is not None else None, limit is None or value >= limit)

    def _add(self, name: str, value: float, required: str | None, passed: bool) -> None:
        self.rows.append({"name": name, "value": value, "required": required, "passed": passed})


def run(case: Case) -> dict[str, Any]:
    """All checks of one precision; those that fail are told like those that pass."""
    backbone = random_base(case.shape, case.precision, device=case.device, seed=case.seed)
    engine = add_roles(backbone, case)
    checks = Checks()
    perturb(backbone, POLICY, torch.Generator().manual_seed(3))
    prompts = mixed_prompts(case)
    rollouts = check_sampling(engine, prompts, checks)
    check_trunk(engine, rollouts, checks)
    check_batch_mates(engine, rollouts, checks)
    check_iteration(engine, prompts, checks)
    return {"computes_in": str(backbone.model.dtype), "checks": checks.rows}


def mixed_prompts(case: Case) -> PromptSet:
    """As many prompts as the case has rollouts, from one token to its longest."""
    longest = case.workload.prompt_tokens
    num = case.workload.rollouts
    return random_prompts(case.shape, [1 + row * longest // num for row in range(num)], seed=2)


def check_sampling(engine: Engine, prompts: PromptSet, checks: Checks) -> Rollouts:
    """Every path of the sampler against the training forward and against the others; returns its samples."""
    with counted_replays() as replays:
        usual = draw(engine, prompts)
    compare(checks, "sampler", *sampler_gap(engine, usual), engine)
    on_cuda = engine.case.device == "cuda"
    if on_cuda:
        checks.at_least("steps replayed from a captured graph", replays[0], 1)
        with uncaptured():
            same = alike(usual, draw(engine, prompts))
        checks.at_least("captured and not: rows drawn alike", same, _LEAST_SAME_ROWS)  # the same kernels
    with plain_path(engine.backbone):
        plain = draw(engine, prompts)
    compare(checks, "plain path's sampler", *sampler_gap(engine, plain), engine)
    few = draw(engine, prompts, num_slots=max(1, len(prompts) // 4))
    compare(checks, "sampler with refilled slots", *sampler_gap(engine, few), engine)
    least = _LEAST_SAME_ROWS if engine.backbone.model.dtype == torch.float32 else None
    checks.at_least("usual and plain path: rows drawn alike", alike(usual, plain), least)
    checks.at_least("other batch mates: rows drawn alike", alike(usual, few), least)
    return usual


def check_trunk(engine: Engine, rollouts: Rollouts, checks: Checks) -> None:
    """Log-probabilities and gradients with the frozen trunk's kept states, and by the whole model."""
    with_trunk = rollouts.with_trunk(engine.backbone, engine.settings.micro_batch_tokens)
    checks.at_least("layers of the frozen trunk kept", float(with_trunk.trunk is not None), 1)
    whole = replace(rollouts, trunk=None)
    gap_N = difference(score(engine, with_trunk), score(engine, whole), rollouts)
    compare(checks, "frozen trunk", float(gap_N.mean()), float(gap_N.max()), engine)
    one, other = (policy_gradient(engine, each) for each in (with_trunk, whole))
    relative = float((one - other).norm() / other.norm())
    checks.at_most("frozen trunk: gradient, relative", relative, LIMITS[engine.backbone.model.dtype][2])


def check_batch_mates(engine: Engine, rollouts: Rollouts, checks: Checks) -> None:
    """Log-probabilities of every row alone, and of all together."""
    gap_N = difference(score(engine, rollouts), score(engine, rollouts, micro_batch_tokens=1), rollouts)
    compare(checks, "a row scored alone", float(gap_N.mean()), float(gap_N.max()), engine)


def check_iteration(engine: Engine, prompts: PromptSet, checks: Checks) -> None:
    """An iteration of PPO moves policy and value and not a bit of anything else."""
    before_base = {k: v.clone() for k, v in base_tensors(engine.backbone).items()}
    before = {role: snapshot(engine, role) for role in (POLICY, VALUE, ROLE)}
    lap = iterate(engine, prompts, 0)
    after_base = base_tensors(engine.backbone)
    changed = [k for k, v in before_base.items() if not torch.equal(v, after_base[k])]
    checks.at_least("iteration: tensors of the base", len(before_base), 1)
    checks.at_most("iteration: tensors of the base that changed", len(changed), 0)
    checks.at_most("iteration: optimizer steps skipped", lap["figures"]["num_skipped_steps"], 0)
    for role, values in before.items():
        moved = float((snapshot(engine, role) != values).double().mean())
        if role == ROLE:
            checks.at_most("iteration: share of the reward that moved", moved, 0)
        else:
            checks.at_least(f"iteration: share of the {role} that moved", moved, _LEAST_MOVED)


def compare(checks: Checks, name: str, mean: float, largest: float, engine: Engine) -> None:
    """Note a mean and a largest difference of log-probabilities under the limits of the base's type."""
    mean_limit, max_limit, _ = LIMITS[engine.backbone.model.dtype]
    checks.at_most(f"{name}: Δ log-probability, mean", mean, mean_limit)
    checks.at_most(f"{name}: Δ log-probability, max", largest, max_limit)


def draw(engine: Engine, prompts: PromptSet, *, num_slots: int | None = None) -> Rollouts:
    """Samples of the policy."""
    slots = {"batch_size": num_slots or len(prompts)}
    settings = engine.settings.sampling.model_copy(update=slots)
    keys = [(0, row, 0) for row in range(len(prompts))]
    seed = engine.case.seed
    return sample(engine.backbone, prompts.ids, role=POLICY, settings=settings, keys=keys, seed=seed)


def score(engine: Engine, rollouts: Rollouts, *, micro_batch_tokens: int | None = None) -> Tensor:
    """Log-probabilities (B, T) of the samples by the policy's training forward."""
    tokens = {"micro_batch_tokens": micro_batch_tokens or engine.settings.micro_batch_tokens}
    settings = engine.settings.model_copy(update=tokens)
    return score_tokens(engine.backbone, rollouts, settings, role=POLICY)


def sampler_gap(engine: Engine, rollouts: Rollouts) -> tuple[float, float]:
    """Mean and largest |difference| between what a token was drawn with and the training forward's."""
    gap_N = difference(rollouts.sampled_logprobs_BT, score(engine, rollouts), rollouts)
    return float(gap_N.mean()), float(gap_N.max())


def difference(one_BT: Tensor, other_BT: Tensor, rollouts: Rollouts) -> Tensor:
    """|Difference| (N,) at the real tokens."""
    return (one_BT - other_BT)[rollouts.response_mask_BT].abs()


def alike(one: Rollouts, other: Rollouts) -> float:
    """Share of the rows that have the same tokens in both."""
    pairs = list(zip(one.response_lists(), other.response_lists(), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def policy_gradient(engine: Engine, rollouts: Rollouts) -> Tensor:
    """Gradient of the samples' mean log-probability in all of the policy's adapter."""
    parameters = engine.backbone.set_trainable([POLICY])
    num_tokens = float(rollouts.response_mask_BT.sum())
    for batch in rollouts.micro_batches(engine.settings.micro_batch_tokens):
        logprobs_N = response_logprobs(engine.backbone, batch, role=POLICY, temperature=1.0)
        (logprobs_N.sum() / num_tokens).backward()
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    assert len(gradients) == len(parameters)
    for parameter in parameters:
        parameter.grad = None
    engine.backbone.set_trainable([])
    return torch.cat(gradients)


def snapshot(engine: Engine, role: str) -> Tensor:
    """All numbers of a role's adapter."""
    parameters = engine.backbone.adapter_parameters(role).values()
    return torch.cat([p.detach().flatten().clone() for p in parameters])
