"""The policy merged into its base: a plain model, written after the policy has been published.

Merging can fail where training did not: the architecture, the disk, a second copy of the base in memory. So
it is a step of its own (`rlhf.runs.derived`), from the trained policy in memory or from the published one,
and the same command repeats it alone.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.data import load_prompts
from ppo.evaluate import EVALUATION
from ppo.models import POLICY
from ppo.prompts import Requests
from ppo.rollout import Sampler, score_tokens
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.parallel.start import start_process
from rlhf.runs.derived import derive, finished_stage, is_derived
from rlhf.runs.manifest import Manifest
from rlhf.sampling.rollouts import Rollouts, from_lists
from rlhf.settings.recipe import Recipe

# Shapes: B rollouts, T response tokens, N real ones.

MERGED = "merged"
_NUM_GAP_ROWS = 32
_ROUNDING_NATS = {torch.float32: 1e-3}
_LOW_PRECISION_NATS = 0.1
"""Largest mean gap that rounding the sum explains, by the type that the base is stored in."""
_FAILURES = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, MemoryError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""Whatever a library raises for an architecture that it cannot merge or write: no training ends with it."""


@dataclass(frozen=True)
class Drawn:
    """Responses that the policy has drawn, and its own log-probabilities (B, T) of their tokens."""

    rollouts: Rollouts
    logprobs_BT: Tensor


def merge_policy(
    backbone: Backbone, drawn: Drawn, settings: PPOSettings, stage: Manifest, *, again: str
) -> dict[str, float]:
    """Write the merged policy next to the published one; its distance from the policy, {} if that failed.

    A failure is printed, with the command `again`, which repeats this step alone.
    """
    try:
        with _failures_named(backbone):
            merged = backbone.merged(POLICY)
            gap = merged_gap(drawn, merged, settings)
            _check_gap(gap, backbone, merged)
            derive(stage, MERGED, merged.save, metrics=gap)
    except UserError as error:
        print(f"ppo: the policy is published, but not the merged model. {error}", file=sys.stderr)
        print(f"  To try only this step again: {again}", file=sys.stderr)
        return {}
    return gap


def merge_published(recipe: Recipe, settings: PPOSettings, *, again: str) -> None:
    """Merge the policy of a finished stage, unless that is done.

    Raises:
        UserError: another process holds the stage, or the base or the prompts cannot be read.
    """
    run = recipe.run_folder
    with finished_stage(run, "ppo", reads="sft") as stage:
        if is_derived(stage, MERGED):
            return
        print("ppo: merging the published policy into its base")
        device = start_process(recipe.run).device
        backbone = Backbone.load(run / "sft" / "model", settings=recipe.model, device=device)
        backbone.load_adapter(POLICY, stage.path())
        drawn = _draw(backbone, recipe, settings)
        gap = merge_policy(backbone, drawn, settings, stage, again=again)
        if gap:
            print(f"ppo: merged, {gap['merged_gap_nats_mean']:.1e} nats per token: {stage.path(MERGED)}")


def merged_gap(drawn: Drawn, merged: Backbone, settings: PPOSettings) -> dict[str, float]:
    """How far `merged` is from the policy that drew these: |Δ log-probability|, nats per token.

    An adapter trained on a quantized base is another policy on full-precision weights; merging into bf16
    rounds. At most the first `_NUM_GAP_ROWS` responses are compared, on the CPU, where `merged` is.
    """
    compared = drawn.rollouts.select(range(min(_NUM_GAP_ROWS, len(drawn.rollouts))))
    rollouts = from_lists(compared.prompt_lists(), compared.response_lists(), merged)
    ours_BT = drawn.logprobs_BT[: len(compared), : compared.response_ids_BT.shape[1]].cpu()
    theirs_BT = score_tokens(merged, rollouts, settings, role=REFERENCE)
    gap_BT = (ours_BT - theirs_BT).abs()
    gap_N = gap_BT[rollouts.response_mask_BT & ours_BT.isfinite()]
    return {"merged_gap_nats_mean": float(gap_N.mean()), "merged_gap_nats_max": float(gap_N.max())}


def _check_gap(gap: dict[str, float], backbone: Backbone, merged: Backbone) -> None:
    """Refuse a merged model whose distance from the policy is more than rounding.

    Raises:
        UserError: it is another model; on a quantized base it always is, and the distance is only told.
    """
    if backbone.precision not in ("fp32", "bf16"):
        return
    dtype = torch.float32 if backbone.precision == "fp32" else torch.bfloat16
    stored: torch.dtype = merged.model.dtype
    allowed = max(_ROUNDING_NATS.get(kind, _LOW_PRECISION_NATS) for kind in (dtype, stored))
    if not gap["merged_gap_nats_mean"] <= allowed:
        raise UserError(
            f"the merged model is {gap['merged_gap_nats_mean']:.2g} nats per token from the policy, "
            f"and rounding explains {allowed}",
            where="ppo.export_merged",
            fix="Use the published adapter on its base.",
        )


def _draw(backbone: Backbone, recipe: Recipe, settings: PPOSettings) -> Drawn:
    """The first responses of the stage's last evaluation, drawn once more."""
    seed = recipe.run.seed
    held_out = load_prompts(backbone, settings, seed=seed, run_folder=recipe.run_folder).held_out
    rows = range(min(_NUM_GAP_ROWS, len(held_out)))
    requests = Requests(held_out.take(list(rows)), [(EVALUATION, row, 0) for row in rows])
    rollouts = Sampler(backbone, settings, seed).sample(requests, role=POLICY).rollouts
    return Drawn(rollouts, score_tokens(backbone, rollouts, settings, role=POLICY))


@contextlib.contextmanager
def _failures_named(backbone: Backbone) -> Iterator[None]:
    """Turn what a library raises in the block into a `UserError`.

    Raises:
        UserError: merging or writing failed.
    """
    try:
        yield
    except UserError:
        raise
    except _FAILURES as error:
        raise UserError(
            f"merging failed ({type(error).__name__}: {error})",
            where=type(backbone.model).__name__,
            fix="Use the published adapter on its base, or make room in memory and on the disk.",
        ) from error
