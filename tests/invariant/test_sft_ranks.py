"""SFT on one and on two processes: what is not finite on one rank, and weights that no rank has whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.sft_ranks import POISONED, STAGES
from tests.support.teams import run_teams

pytestmark = pytest.mark.slow

SAME = ("sft/loss_nats_per_token", "sft/gradient_norm", "sft/learning_rate", "sft/skipped_steps")


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests.support.sft_ranks has left."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("sft")
    run_teams("tests.support.sft_ranks", folder, root)
    return folder


def metrics(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("team", ["zero2", "zero3"])
def test_a_loss_that_is_not_finite_on_one_rank_leaves_its_step_out_on_all(out: Path, team: str) -> None:
    one, other = metrics(out, "lose-one"), metrics(out, f"lose-{team}")
    assert one["skipped"] == other["skipped"] == len(POISONED)
    assert [step for step, _ in other["rows"]] == [2, 3, 5, 6]
    for (step, expected), (again, found) in zip(one["rows"], other["rows"], strict=True):
        assert step == again
        for name in SAME:
            assert found[name] == pytest.approx(expected[name], rel=1e-3)
    expected, found = (load_file(out / f"{name}.safetensors") for name in ("lose-one", f"lose-{team}"))
    for name, weight in expected.items():
        assert (weight - found[name]).norm() <= 1e-4 * weight.norm(), name


def test_bf16_is_computed_in_under_deepspeed_and_fp32_is_trained(out: Path) -> None:
    assert json.loads((out / "bf16.json").read_text()) == [["torch.float32", "torch.bfloat16"]]


@pytest.mark.parametrize("recipe", STAGES)
def test_zero_3_publishes_the_model_of_one_process(out: Path, recipe: str) -> None:
    one, three = (out / "runs" / f"{recipe}-{team}" / "sft" for team in ("one", "zero3"))
    expected, found = (load_file(stage / "model" / "model.safetensors") for stage in (one, three))
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4, msg=name)
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (one / "model" / file).read_bytes() == (three / "model" / file).read_bytes()
    metrics, again = (json.loads((stage / "manifest.json").read_text())["metrics"] for stage in (one, three))
    assert again == pytest.approx(metrics, rel=1e-4)


@pytest.mark.parametrize("recipe", STAGES)
@pytest.mark.parametrize("rank", [0, 1])
def test_outside_training_no_rank_has_the_model_whole(out: Path, recipe: str, rank: int) -> None:
    seen = metrics(out, f"{recipe}-zero3.rank{rank}")
    assert 0 < seen["peak"] < 0.65 * seen["model"]  # embeddings, head and one of two layers
    assert seen["before training"] == seen["at the end"] == 0
