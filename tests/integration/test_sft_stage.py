"""The SFT stage as a user runs it: from a recipe to a published model, interrupted, repeated, refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.commands.process import run_command
from rlhf.data.records import Demonstration, Message, Turns, write_jsonl
from rlhf.model.chat import encode_prompt
from rlhf.runs import checkpoints
from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from sft.__main__ import main
from tests.support.small import write_small_model

pytestmark = pytest.mark.slow

COLOURS = ["red", "green", "blue", "black", "white"]
THINGS = ["lamp", "door", "chair", "table", "shelf", "clock", "stove", "towel"]


def conversation(thing: str, colour: str) -> Turns:
    return (Message("user", f"The {thing} is {colour}. What colour is the {thing}?"),)


def write_recipe(
    folder: Path, *, sft: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> Path:
    """Every thing in every colour; the answer is the colour."""
    records = [
        Demonstration(prompt=conversation(thing, colour), completion=f"It is {colour}.")
        for thing in THINGS
        for colour in COLOURS
    ]
    write_jsonl(folder / "demonstrations.jsonl", records)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "vocab_size": 400}
    settings: dict[str, Any] = {
        "method": "full",
        "demonstrations": [{"path": str(folder / "demonstrations.jsonl")}],
        "held_out_fraction": 0.2,
        "num_epochs": 20,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 0.01,
        "checkpoint_every_steps": 20,
        "num_samples": 6,
        "sampling": {"max_response_tokens": 12},
    }
    recipe = {
        "run": {"name": "r", "folder": str(folder / "runs"), "device": "cpu"},
        "tracking": {"wandb": "off"},
        "model": model or {"scratch": {**sizes, "max_length": 96}},
        "sft": settings | (sft or {}),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def sft(recipe: Path, *overrides: str) -> int:
    return run_command(main, ["--config", str(recipe), *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    assert sft(write_recipe(folder)) == 0
    return folder


def test_it_learns_and_the_published_model_opens_in_plain_transformers(finished: Path) -> None:
    manifest = require(finished / "runs" / "r", "sft")
    metrics = manifest.metrics
    assert metrics["after_heldout_loss_nats_per_token"] < 1.0 < metrics["before_heldout_loss_nats_per_token"]
    assert metrics["sample_eos_rate"] > 0.8
    tokenizer = AutoTokenizer.from_pretrained(manifest.path())
    model: Any = AutoModelForCausalLM.from_pretrained(manifest.path())
    ids = encode_prompt(tokenizer, conversation("lamp", "green"))
    answer = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=12)
    text = str(tokenizer.decode(answer[0, len(ids) :]))
    assert text.startswith("It is ")
    assert text.endswith(tokenizer.eos_token)


def test_metrics_samples_and_accounts_are_kept(finished: Path) -> None:
    folder = finished / "runs" / "r" / "sft"
    rows = read_metrics(folder / "metrics.jsonl")
    assert (rows[0]["step"], set(rows[0])) == (
        0, {"step", "sft/heldout_loss_nats_per_token", "sft/heldout_token_accuracy"}
    )  # fmt: skip
    manifest = require(finished / "runs" / "r", "sft")
    last = {key: value for row in rows if row["step"] == rows[-1]["step"] for key, value in row.items()}
    assert last["sft/heldout_loss_nats_per_token"] == manifest.metrics["after_heldout_loss_nats_per_token"]
    (samples,) = (folder / "samples").glob("sft.samples-*.jsonl")
    table = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [set(row) for row in table] == [{"prompt", "reference", "sample"}] * 6
    assert manifest.accounts["total"] == {"read": 40, "used": 40, "dropped": {}, "truncated": 0}
    assert not (folder / "checkpoints").exists()


def test_a_second_time_it_is_up_to_date(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (finished / "runs").rglob("*"))
    assert sft(finished / "recipe.yaml", "sft.micro_batch_size=4", "sft.eval_every_steps=5") == 0
    assert "up to date" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in (finished / "runs").rglob("*")) == before


def test_being_up_to_date_is_found_without_torch(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sft", "--config", str(finished / "recipe.yaml")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "up to date" in done.stdout
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_other_settings_are_refused_with_the_ways_out(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sft(finished / "recipe.yaml", "sft.learning_rate=0.02") == 2
    error = capsys.readouterr().err
    assert "sft.learning_rate was 0.01, is 0.02" in error
    assert all(way in error for way in ("run.name=", "--config", "--clean"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_and_resumed_it_publishes_bitwise_the_same_model_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"method": method, "num_epochs": 6, "checkpoint_every_steps": 7, "eval_every_steps": 6}
    recipe = write_recipe(tmp_path, sft=short)
    assert sft(recipe, "run.name=whole") == 0
    save = checkpoints.save

    def die_after(folder: Path, step: int, *args: Any, **kwargs: Any) -> Path:
        path = save(folder, step, *args, **kwargs)
        if step == 14:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", die_after)
        assert sft(recipe, "run.name=killed") == 130
    assert not (tmp_path / "runs" / "killed" / "sft" / "model").exists()
    assert sft(recipe, "run.name=killed") == 0
    assert "resuming an unfinished stage" in capsys.readouterr().out
    runs = [tmp_path / "runs" / name / "sft" for name in ("whole", "killed")]
    tensors = [load_file(run / "model" / "model.safetensors") for run in runs]
    assert all(bool((tensor == tensors[1][name]).all()) for name, tensor in tensors[0].items())
    manifests = [require(run.parent, "sft") for run in runs]
    assert manifests[0].artifact_sha256 == manifests[1].artifact_sha256
    whole, killed = (
        [
            {key: value for key, value in row.items() if key != "sft/tokens_per_second"}
            for row in read_metrics(run / "metrics.jsonl")
        ]
        for run in runs
    )
    assert whole == killed


def test_what_pads_changes_no_published_weight(tmp_path: Path, finished: Path) -> None:
    expected = load_file(finished / "runs" / "r" / "sft" / "model" / "model.safetensors")
    for pad in ("eos", "unk"):
        (tmp_path / pad).mkdir()
        recipe = write_recipe(tmp_path / pad)
        assert sft(recipe, f"model.scratch.pad_token={pad}") == 0
        model = tmp_path / pad / "runs" / "r" / "sft" / "model"
        found = load_file(model / "model.safetensors")
        assert all(bool((tensor == found[name]).all()) for name, tensor in expected.items())
        config = json.loads((model / "config.json").read_text())
        assert config["pad_token_id"] not in (None, config["eos_token_id"])


def test_a_model_can_be_taken_as_it_is(tmp_path: Path) -> None:
    write_small_model(tmp_path / "base", pad_token="<eos>")
    recipe = write_recipe(tmp_path, model={"path": str(tmp_path / "base")})
    assert sft(recipe, "sft.method=none", "sft.demonstrations=[]") == 0
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(tmp_path / "runs" / "r" / "sft" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(bool((tensor == after[name]).all()) for name, tensor in before.items())


def test_packed_rows_train_a_model(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, sft={"packing": True, "length": {"max_tokens": 96}, "num_epochs": 1})
    assert sft(recipe) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sft.demonstrations.0.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["model={path: ./nowhere}"], "there is no such model folder"),
        (["model={path: nobody/nothing}"], "cannot load the model"),
        (["sft.length.max_tokens=12"], "there is room for 12"),
        (["sft.length={max_tokens: 12, over_length: drop}"], "no demonstration is left to train on"),
        (["sft.batch_sise=8"], "Did you mean `batch_size`?"),
        (["sft.num_epochs=many"], "sft.num_epochs"),
        (["sft.method=lora", "sft.lora.target_modules=[q_prj]"], "no linear module `q_prj`"),
        (["run.device=cuda:7"], "run.device"),
    ],
)
def test_a_mistake_is_a_message_and_publishes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert sft(write_recipe(tmp_path), *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs" / "r" / "sft" / "manifest.json").exists()
    assert not (tmp_path / "runs" / "r" / "sft" / "model").exists()


def test_the_terminal_shows_accounts_result_and_next_command_and_no_warning(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, sft={"num_epochs": 1, "method": "lora", "gradient_checkpointing": True})
    done = subprocess.run(
        [sys.executable, "-m", "sft", "--config", str(recipe)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"COLUMNS": "100"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "demonstrations.jsonl" in done.stdout
    assert "heldout_loss_nats_per_token" in done.stdout
    assert f"next: make reward CONFIG={tmp_path / 'runs' / 'r' / 'sft' / 'config.yaml'}\n" in done.stdout


@pytest.mark.parametrize("checkpoint_every_steps", [0, 20])
def test_what_fails_after_the_last_step_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every_steps: int
) -> None:
    import sft.train
    from sft.resumable import Trainer

    settings = {"method": "lora", "checkpoint_every_steps": checkpoint_every_steps, "num_epochs": 2}
    recipe = write_recipe(tmp_path, sft=settings)

    def broken(model: Any) -> Any:
        raise AttributeError("no such weight")

    with monkeypatch.context() as patch:
        patch.setattr(sft.train, "merge", broken)
        with pytest.raises(AttributeError, match="no such weight"):
            run_command(main, ["--config", str(recipe)])

    def trained_again(self: Trainer, *arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "compute_loss", trained_again)
    assert run_command(main, ["--config", str(recipe)]) == 0
    assert require(tmp_path / "runs" / "r", "sft").metrics["after_heldout_loss_nats_per_token"] > 0
