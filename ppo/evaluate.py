"""Measurements on held-out prompts: before, during and after training, and against best-of-n."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.models import RewardSource
from ppo.rollout import PromptSet, Sampled, collect, final_scores, score_tokens
from rlhf.data.scorers import Scorer
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.weights import gathered_weights
from rlhf.parallel.world import world
from rlhf.sampling.rollouts import from_lists
from rlhf.statistics.evaluation import best_of_n_kl, distinct_n

EVALUATION = 2**40
"""Stands where the iteration stands in a noise key: no training rollout shares an evaluation's noise."""
_NUM_GAP_ROWS = 32


@dataclass(frozen=True)
class Evaluation:
    """Responses to the held-out prompts and their figures."""

    sampled: Sampled
    gold: list[float] | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluator:
    """Held-out prompts with everything needed to measure a role on them."""

    backbone: Backbone
    prompts: PromptSet
    reward: RewardSource
    gold: Scorer | None
    settings: PPOSettings
    seed: int

    def evaluate(self, role: str, *, samples_per_prompt: int = 1) -> Evaluation:
        """Sample every held-out prompt from `role`; prompt i's samples are rows i·n to i·n + n − 1.

        The noise is the same in every call, so that two measurements differ by the policy alone.
        """
        indices = [i for i in range(len(self.prompts)) for _ in range(samples_per_prompt)]
        keys = [(EVALUATION, i, s) for i in range(len(self.prompts)) for s in range(samples_per_prompt)]
        with gathered_weights(self.backbone):
            sampled = collect(
                self.backbone,
                self.prompts.take(indices),
                keys,
                self.reward,
                self.settings,
                role=role,
                seed=self.seed,
            )
        gold = None
        if (scorer := self.gold) is not None:
            gold = world().run_on_rank0(lambda: scorer(sampled.prompts, sampled.responses))
        return Evaluation(sampled, gold, self._metrics(sampled, gold))

    def best_of_n(self) -> dict[int, dict[str, float]]:
        """Best-of-n of the reference by the same reward, for every n of the settings.

        Each prompt gets max(n) samples; for a smaller n they are cut into groups of n, all of which count.
        """
        sizes = sorted(set(self.settings.evaluation.best_of))
        if not sizes:
            return {}
        drawn = self.evaluate(REFERENCE, samples_per_prompt=sizes[-1])
        scores = final_scores(drawn.sampled, self.settings).reshape(len(self.prompts), sizes[-1]).cpu()
        results: dict[int, dict[str, float]] = {}
        for n in sizes:
            groups = scores[:, : sizes[-1] // n * n].reshape(len(self.prompts), -1, n)
            groups = groups.nan_to_num(nan=-math.inf)  # what has no score is never the best
            best = groups.argmax(-1) + torch.arange(groups.shape[1]) * n
            rows = (best + torch.arange(len(self.prompts)).unsqueeze(1) * sizes[-1]).flatten().tolist()
            results[n] = {"reward": finite_mean(scores.flatten()[rows]), "kl": best_of_n_kl(n)}
            if drawn.gold is not None:
                results[n]["gold"] = sum(drawn.gold[row] for row in rows) / len(rows)
        return results

    def _metrics(self, sampled: Sampled, gold: Sequence[float] | None) -> dict[str, float]:
        metrics = {
            "reward_mean": finite_mean(final_scores(sampled, self.settings)),
            "kl_nats_per_response": float(sampled.kl_B.mean()),
            "response_tokens_mean": float(sampled.rollouts.response_lengths_B.float().mean()),
            "eos_rate": float(sampled.rollouts.ended_B.float().mean()),
            "distinct_2": distinct_n(sampled.responses, 2),
        }
        if gold is not None:
            metrics["gold_mean"] = sum(gold) / len(gold)
        return metrics


def finite_mean(scores_B: Tensor) -> float:
    """Mean of the scores that are finite.

    Raises:
        UserError: none is.
    """
    finite = scores_B[scores_B.isfinite()]
    if not len(finite):
        raise UserError(
            f"none of {len(scores_B)} held-out responses has a finite score",
            where="ppo.reward",
            fix="Mend the scorer that ppo.reward names, or train the reward model anew.",
        )
    return float(finite.mean())


def merged_gap(sampled: Sampled, merged: Backbone, settings: PPOSettings) -> dict[str, float]:
    """How far `merged` is from the policy that drew `sampled`: |Δ log-probability|, nats per token.

    An adapter trained on a quantized base is another policy on full-precision weights; merging into bf16
    rounds. At most the first `_NUM_GAP_ROWS` responses are compared, on the CPU, where `merged` is.
    """
    rows = sampled.rollouts.select(range(min(_NUM_GAP_ROWS, len(sampled.rollouts))))
    rollouts = from_lists(rows.prompt_lists(), rows.response_lists(), merged)
    ours_BT = sampled.logprobs_BT[: len(rows), : rows.response_ids_BT.shape[1]].cpu()
    theirs_BT = score_tokens(merged, rollouts, settings, role=REFERENCE)
    gap_N = (ours_BT - theirs_BT)[rollouts.response_mask_BT].abs()
    return {"merged_gap_nats_mean": float(gap_N.mean()), "merged_gap_nats_max": float(gap_N.max())}


def side_by_side(
    before: Evaluation, after: Evaluation, num_rows: int
) -> tuple[list[str], list[list[str | float]]]:
    """Columns and rows of the table that shows the same prompts before and after."""
    columns = ["prompt", "before", "after", "reward_before", "reward_after", "kl_nats", "tokens_after"]
    if after.gold is not None:
        columns += ["gold_before", "gold_after"]
    rows: list[list[str | float]] = []
    for i in range(min(num_rows, len(after.sampled.prompts))):
        row: list[str | float] = [
            after.sampled.prompts[i],
            before.sampled.responses[i],
            after.sampled.responses[i],
            float(before.sampled.scores_B[i]),
            float(after.sampled.scores_B[i]),
            float(after.sampled.kl_B[i]),
            int(after.sampled.rollouts.response_lengths_B[i]),
        ]
        if before.gold is not None and after.gold is not None:
            row += [before.gold[i], after.gold[i]]
        rows.append(row)
    return columns, rows
