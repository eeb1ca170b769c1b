"""`python -m plan` as a user runs it."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from plan import __main__ as command
from plan.memory import Devices, Phase, StagePlan
from plan.stages import ppo_adapters
from plan.table import verdict
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.settings.recipe import load_recipe
from tests.support.small import write_small_model

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted(ROOT.glob("configs/*/recipe.yaml"))
GIB = 2**30
PPO = """\
model: {path: MODEL}
ppo:
  prompts: [{path: none.jsonl}]
  length: {max_tokens: 48}
  sampling: {max_response_tokens: 8, batch_size: 4}
  rollouts_per_iteration: 8
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_small_model(folder)
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    return folder


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(PPO.replace("MODEL", json.dumps(str(model))))
    return str(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_every_shipped_recipe_can_be_planned(
    path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [f"model.path={model}", "model.scratch=null", "model.precision=fp32"]
    limits = [f"{stage}.length.max_tokens=100" for stage in ("sft", "reward", "ppo")]
    lengths = [f"{stage}.sampling.max_response_tokens=20" for stage in ("sft", "reward", "ppo")]
    assert command.main(["--config", str(path), *changes, *limits, *lengths]) == 0
    printed = capsys.readouterr().out
    for stage in ("sft", "reward", "ppo"):
        assert f"\n{stage}: " in printed
    for row in (
        "weights",
        "adapters",
        "gradients",
        "optimizer",
        "activations",
        "KV cache",
        "logits",
        "total",
    ):
        assert f"\n  {row} " in printed


def test_it_says_whether_it_fits(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--config", recipe, "--memory", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("fits: ppo needs")


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (10 * GIB, "fits: ppo needs 8.00 GiB (training), and the device has 10.00 GiB"),
        (8 * GIB, "fits, but is tight: ppo needs 8.00 GiB (training), and the device has 8.00 GiB"),
        (8 * GIB - 1, "does not fit: ppo needs 8.00 GiB (training), and the device has 8.00 GiB"),
        (None, "ppo needs 8.00 GiB (training) of the device; give MEMORY= to be told whether that fits"),
    ],
)
def test_the_verdict_is_on_the_stage_that_needs_most(memory: int | None, expected: str) -> None:
    phases = (Phase("sampling", Counter(a=GIB)), Phase("training", Counter(a=5 * GIB, b=3 * GIB)))
    plans = [StagePlan("sft", phases[:1]), StagePlan("ppo", phases)]
    assert verdict(plans, Devices(memory_bytes=memory)) == expected


def test_without_gpus_the_devices_are_this_machine_s_own(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_own_device", lambda wanted: ("cpu", 5))

    def devices(*arguments: str) -> Devices:
        return command._devices(
            load_recipe(recipe), command._parser().parse_args(["--config", recipe, *arguments])
        )

    assert devices() == Devices(memory_bytes=5)
    assert devices("--gpus", "2", "--zero", "3") == Devices(num=2, zero=3, on_cuda=True)
    assert devices("--memory", "0.5").memory_bytes == GIB // 2


def test_joint_values_and_scorers_need_fewer_adapters(recipe: str) -> None:
    def names(*overrides: str) -> set[str]:
        loaded = load_recipe(recipe, overrides)
        return set(ppo_adapters(loaded, loaded.section("ppo")))  # type: ignore[arg-type]

    assert names() == {"policy", "reward", "value"}
    assert names("ppo.value=joint") == {"policy", "reward"}
    assert names("ppo.reward=a.py:b") == {"policy", "value"}
    assert names("ppo.value=joint", "ppo.reward=a.py:b") == {"policy"}


def test_the_frozen_trunk_is_counted(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--config", recipe, "ppo.lora.top_layers=1", "ppo.value=joint", "ppo.reward=a.py:b"])
    assert "frozen-trunk states" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus: must be a number above 0"),
        (["--memory", "-1"], "--memory: must be a number above 0"),
        (["--memory", "inf"], "--memory: must be a number above 0"),
        (["model.precision=fp8"], "model.precision"),
        (["model.path=./nowhere"], "there is no such model folder"),
        (["ppo.sampling.max_response_tokens=48"], "leave no room for a prompt"),
        (["ppo.lora.top_layers=5"], "ppo.lora.top_layers: the model has"),
        (["ppo.lora.target_modules=c_attn"], "no linear module `c_attn`"),
        (["ppo.batch=3"], "unknown key `ppo.batch`"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(
    recipe: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command.main, ["--config", recipe, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_tokens_beyond_the_context_are_said_to_be_cut(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["--config", recipe, "--tokens", "1000000", "ppo.length.max_tokens=null"])
    assert "TOKENS=1,000,000 is beyond the model's context" in capsys.readouterr().out


def test_a_recipe_without_a_stage_is_refused(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{path: {json.dumps(str(model))}}}\n")
    with pytest.raises(UserError, match="no stage to plan for"):
        command.main(["--config", str(path)])
    with pytest.raises(UserError, match="cannot read the recipe"):
        command.main(["--config", str(tmp_path / "missing.yaml")])


def test_a_cuda_device_of_this_machine_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(total_memory=7))
    assert command._own_device("auto") == ("cuda", 7)
    assert command._own_device("cpu")[0] == "cpu"
