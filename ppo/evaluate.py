"""Evaluation on held-out prompts: before, during and after training, and against best-of-n."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.experience import final_scores
from ppo.prompts import Key, PromptSet, Requests
from ppo.rollout import RolloutScorer, Sampler, Scored
from rlhf.data.scorers import Scorer
from rlhf.data.scores import mean_of_finite, num_not_finite
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE
from rlhf.model.weights import gathered_weights
from rlhf.parallel.world import world
from rlhf.statistics.evaluation import best_of_n_kl, distinct_n

# Shapes: B rollouts, T response tokens; P prompts, S samples of each, G groups of N samples.

EVALUATION = 2**40
"""In place of the iteration in a noise key: no training rollout shares an evaluation's noise."""


@dataclass(frozen=True)
class Evaluation:
    """Responses to the held-out prompts and their metrics."""

    scored: Scored
    gold: list[float] | None
    metrics: dict[str, float]

    @property
    def quality(self) -> float:
        """What the best policy is chosen by: mean gold score, or without a gold scorer mean reward.

        NaN, which is never the best, where the gold scorer has no score for any response.
        """
        if self.gold is not None:
            return self.metrics.get("gold_mean", math.nan)
        return self.metrics["reward_mean"]


@dataclass(frozen=True)
class Evaluator:
    """Held-out prompts with everything needed to evaluate a role on them."""

    sampler: Sampler
    scorer: RolloutScorer
    prompts: PromptSet
    gold: Scorer | None
    settings: PPOSettings

    def evaluate(self, role: str, *, samples_per_prompt: int = 1) -> Evaluation:
        """Sample every held-out prompt from `role`; prompt i's samples are rows i·n to i·n + n − 1.

        The noise is the same in every call, so that two evaluations differ by the policy alone.
        """
        keys: list[Key] = [
            (EVALUATION, prompt, number)
            for prompt in range(len(self.prompts))
            for number in range(samples_per_prompt)
        ]
        requests = Requests(self.prompts.take([prompt for _, prompt, _ in keys]), keys)
        with gathered_weights(self.sampler.backbone):
            scored = self.scorer.score(self.sampler.sample(requests, role=role), role=role)
        gold = None
        if (gold_scorer := self.gold) is not None:
            gold = world().run_on_rank0(lambda: gold_scorer(scored.prompts, scored.responses))
        return Evaluation(scored, gold, self._metrics(scored, gold))

    def best_of_n(self) -> dict[int, dict[str, float]]:
        """Best-of-n of the reference by the same reward, for every n of the settings.

        Each prompt gets max(n) samples; for a smaller n they are cut into groups of n, all of which count.
        """
        sizes = sorted(set(self.settings.evaluation.best_of))
        if not sizes:
            return {}
        largest = sizes[-1]
        evaluation = self.evaluate(REFERENCE, samples_per_prompt=largest)
        scores_B = final_scores(evaluation.scored, self.settings).cpu()
        results: dict[int, dict[str, float]] = {}
        for n in sizes:
            rows = _best_rows(scores_B.reshape(len(self.prompts), largest), n)
            rows = [row for row in rows if bool(scores_B[row].isfinite())]
            results[n] = {"reward": finite_mean(scores_B[rows]), "kl": best_of_n_kl(n)}
            if evaluation.gold is not None:
                gold = mean_of_finite([evaluation.gold[row] for row in rows])
                results[n] |= {"gold": gold} if math.isfinite(gold) else {}
        return results

    def _metrics(self, scored: Scored, gold: Sequence[float] | None) -> dict[str, float]:
        metrics = {
            "reward_mean": finite_mean(final_scores(scored, self.settings)),
            "kl_nats_per_response": finite_mean(scored.kl_B, what="KL", where="ppo: the policy"),
            "response_tokens_mean": float(scored.rollouts.response_lengths_B.float().mean()),
            "eos_rate": float(scored.rollouts.ended_B.float().mean()),
            "distinct_2": distinct_n(scored.responses, 2),
        }
        if gold is not None:
            metrics |= _gold_metrics(gold)
        return metrics | scored.left_out()


def _gold_metrics(gold: Sequence[float]) -> dict[str, float]:
    """The mean of the gold scores that there are, and how many there are not."""
    metrics = {"num_gold_unscored": float(num_not_finite(gold))}
    mean = mean_of_finite(gold)
    return metrics | ({"gold_mean": mean} if math.isfinite(mean) else {})


def _best_rows(scores_PS: Tensor, n: int) -> list[int]:
    """The best row of every group of `n` samples of one prompt, among all prompts' S samples end to end."""
    num_prompts, num_samples = scores_PS.shape
    num_groups = num_samples // n  # samples that fill no group are left out
    groups_PGN = scores_PS[:, : num_groups * n].reshape(num_prompts, num_groups, n)
    # What has no finite score is never the best.
    best_PG = torch.where(groups_PGN.isfinite(), groups_PGN, -math.inf).argmax(-1)
    first_PG = torch.arange(num_prompts)[:, None] * num_samples + torch.arange(num_groups) * n
    rows: list[int] = (first_PG + best_PG).flatten().tolist()
    return rows


def finite_mean(values_B: Tensor, *, what: str = "score", where: str = "ppo.reward") -> float:
    """Mean of the responses' scores, or of `what` they are, that are finite.

    Raises:
        UserError: none is.
    """
    finite = values_B[values_B.isfinite()]
    if not len(finite):
        raise UserError(
            f"none of the held-out responses has a finite {what}",
            where=where,
            fix="Fix the scorer that ppo.reward names, or train the stage that the model comes from again.",
        )
    return float(finite.mean())


def side_by_side(
    before: Evaluation, after: Evaluation, num_rows: int
) -> tuple[list[str], list[list[str | float]]]:
    """Columns and rows of the table that shows the same prompts before and after."""
    columns = ["prompt", "before", "after", "reward_before", "reward_after", "kl_nats", "tokens_after"]
    if after.gold is not None:
        columns += ["gold_before", "gold_after"]
    rows: list[list[str | float]] = []
    for i in range(min(num_rows, len(after.scored.prompts))):
        row: list[str | float] = [
            after.scored.prompts[i],
            before.scored.responses[i],
            after.scored.responses[i],
            float(before.scored.scores_B[i]),
            float(after.scored.scores_B[i]),
            float(after.scored.kl_B[i]),
            int(after.scored.rollouts.response_lengths_B[i]),
        ]
        if before.gold is not None and after.gold is not None:
            row += [before.gold[i], after.gold[i]]
        rows.append(row)
    return columns, rows
