"""Numbers that are not finite, planted in one place of one iteration of PPO.

`python -m tests.support.faults RUNS OUT`: RUNS holds a finished run `micro`. Each case of `CASES` trains its
policy, on one process or on two under the real DeepSpeed, once for every fault, and leaves in OUT what came
of it, by fault. The test that reads it is tests/integration/test_ppo_faults.py.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

import ppo.rollout
import ppo.update
from ppo.config import PPOSettings
from ppo.keeper import Keeper
from ppo.models import POLICY, AdapterReward
from ppo.train import PPO
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.parallel.world import world
from rlhf.runs.finite import first_not_finite
from rlhf.settings.recipe import load_recipe
from tests.integration.micro import CONFIG
from tests.support.teams import Case, fork, preload

CASES = {"one": Case(1, 0), "two": Case(2, 2)}
KLS = {"fixed": "{coefficient: 0.1}", "adaptive": "{coefficient: 0.1, target: 0.5}"}
NUMBERS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
NUM_ITERATIONS = 2
FAULTY = 0
"""The iteration in which a fault is planted: on the last rank, or where all ranks compute the same on all."""


@dataclass
class Once:
    """Lets the first call of a function through with its result changed."""

    change: Callable[[Any], Any]
    when: Callable[..., bool] = lambda *args, **kwargs: True
    is_done: bool = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if self.is_done or not self.when(*args, **kwargs):
                return result
            self.is_done = True
            return self.change(result)

        return wrapped


def plant(number: float, values: Tensor) -> Tensor:
    """The same values but for the first, or but for the first row."""
    changed = values.clone()
    changed[0] = number
    return changed


def role_is(role: str) -> Callable[..., bool]:
    return lambda *args, **kwargs: kwargs["role"] == role


@contextlib.contextmanager
def fault(place: str, number: float, trained: PPO) -> Iterator[None]:
    """Inside the block `number` turns up once in `place`."""
    put = functools.partial(plant, number)
    scaled = Once(lambda result: (result[0] * number, result[1]))
    places: dict[str, tuple[Any, str, Once]] = {
        "sampled logits": (Backbone, "logits", Once(put)),
        "log-probabilities": (ppo.rollout, "response_logprobs", Once(put, role_is(POLICY))),
        "reference log-probabilities": (ppo.rollout, "response_logprobs", Once(put, role_is(REFERENCE))),
        "scores": (AdapterReward, "score", Once(put)),
        "values": (ppo.rollout, "response_values", Once(put)),
        "KL": (ppo.rollout, "k1", Once(lambda kl_BT: plant(number, kl_BT.flatten()).view_as(kl_BT))),
        "policy loss": (ppo.update, "policy_loss", scaled),
        "value loss": (ppo.update, "value_loss", scaled),
    }
    if place == "gradients":
        parameter = next(iter(trained.backbone.role_parameters(POLICY).values()))
        once = Once(lambda gradient: plant(number, gradient))
        handle = parameter.register_hook(once.wrap(lambda gradient: gradient))
        yield
        handle.remove()
    else:
        owner, name, once = places[place]
        with mock.patch.object(owner, name, once.wrap(getattr(owner, name))):
            yield
    assert once.is_done, f"nothing was planted in {place}"


PLACES = {
    "sampled logits": "num_nonfinite_rollouts",
    "log-probabilities": "num_nonfinite_rollouts",
    "reference log-probabilities": "num_nonfinite_rollouts",
    "scores": "num_unscored_rollouts",
    "values": "num_nonfinite_rollouts",
    "KL": "num_nonfinite_rollouts",
    "gradients": "num_skipped_steps",
    "policy loss": "num_skipped_steps",
    "value loss": "num_skipped_steps",
}
"""Where a fault is planted, and the metric that counts it."""


class Trained:
    """A policy of the micro recipe at its beginning, as often as it is asked for."""

    def __init__(self, runs: Path, folder: Path, kl: str) -> None:
        changes = [
            f"run.folder={runs}",
            f"ppo.kl={KLS[kl]}",
            f"ppo.num_iterations={NUM_ITERATIONS}",
            "ppo.rollouts_per_iteration=8",
            "ppo.sampling.max_response_tokens=8",
            "ppo.sample_table_every=0",
            "ppo.evaluation.gold=null",
        ]
        recipe = load_recipe(Path(CONFIG), changes)
        self.ppo = PPO(recipe, cast(PPOSettings, recipe.section("ppo")))
        self.folder = folder
        keeper = self.keeper("start")
        keeper.mark()
        keeper.save()

    def keeper(self, name: str) -> Keeper:
        """Of a stage whose checkpoints are in a folder of their own."""
        stage = SimpleNamespace(folder=self.folder / name)
        return Keeper(self.ppo.state, cast(Any, stage), keep_checkpoints=1)

    def run(
        self, fault_in: Callable[[], contextlib.AbstractContextManager[None]], name: str
    ) -> dict[str, Any]:
        """Train from the beginning, with a fault in one iteration and a restart after it."""
        assert self.keeper("start").restore()
        metrics = []
        for iteration in range(NUM_ITERATIONS):
            with fault_in() if iteration == FAULTY else contextlib.nullcontext():
                metrics.append(self.ppo.iterate(cast(Any, None)))
            keeper = self.keeper(name)
            keeper.mark()
            keeper.save()
            world().gather(None)  # until rank 0 has written it
            assert self.keeper(name).restore()
        state = self.ppo.state
        tensors = state.optimization.tensors()
        values = {"kl_coefficient": state.kl_coefficient, **state.guard.state()}
        return {"metrics": metrics, "not_finite": first_not_finite(tensors, values), **values}


def train_all(runs: Path, out: Path, case: str, kl: str) -> None:
    """Every fault by itself, and none."""
    trained = Trained(runs, out / f"{case}-{kl}", kl)
    results = {"none": trained.run(contextlib.nullcontext, "none")}
    for place in PLACES:
        for name, number in NUMBERS.items():
            planted: Callable[[], Any] = functools.partial(fault, place, number, trained.ppo)
            # Every rank computes the KL of all responses; of everything else a rank has its own part.
            if place != "KL" and world().rank != world().size - 1:
                planted = contextlib.nullcontext
            results[f"{place}, {name}"] = trained.run(planted, f"{place} {name}")
    (out / f"{case}-{kl}.rank{world().rank}.json").write_text(json.dumps(results))


def main(runs: Path, out: Path) -> None:
    preload()
    for case, (size, zero, _) in CASES.items():
        for kl in KLS:
            fork(size, zero, functools.partial(train_all, runs, out, case, kl))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
