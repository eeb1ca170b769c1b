"""The three stages together: published, up to date, moved, interrupted, changed, with any padding token."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ppo.chat
from rlhf.commands.process import run_command
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.runs.files import sha256_file
from rlhf.runs.metrics import read_metrics
from rlhf.runs.stage import require
from rlhf.settings.recipe import load_recipe
from tests.integration.micro import CONFIG, STAGES, start
from tests.support.glossary import assert_documented
from tests.support.wandb_offline import merge_steps, read_offline_run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def metrics_of(folder: Path, stage: str, name: str = "micro") -> dict[str, Any]:
    return require(folder / name, stage).metrics


def test_every_stage_leaves_a_manifest_with_finite_metrics(runs: Path) -> None:
    for stage in STAGES:
        manifest = require(runs / "micro", stage)
        assert manifest.metrics
        assert all(isinstance(v, float | int) for v in manifest.metrics.values() if v is not None)
        assert manifest.accounts
    assert metrics_of(runs, "ppo")["before_kl_nats_per_response"] == 0


def test_training_leaves_every_published_file_of_earlier_stages_alone(runs: Path) -> None:
    for stage in ("sft", "reward"):
        for name, sha in require(runs / "micro", stage).outputs.items():
            assert sha256_file(runs / "micro" / name) == sha


def test_running_again_is_up_to_date_without_loading_torch(runs: Path) -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False)\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    for stage in STAGES:
        arguments = ["--config", CONFIG, f"run.folder={runs}", "ppo.export_merged=true"]
        done = subprocess.run(
            [sys.executable, "-c", code, stage, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stdout


def test_a_changed_setting_names_it_and_the_three_exits(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("ppo", runs, "ppo.export_merged=true", "ppo.kl.coefficient=0.9") == 2
    error = capsys.readouterr().err
    assert "ppo.kl.coefficient was 0.05, is 0.9" in error
    assert all(way_out in error for way_out in ("run.name=", "config.yaml", "--clean"))
    assert "Traceback" not in error


def test_settings_that_change_no_result_do_not_make_a_stage_stale(runs: Path) -> None:
    assert start("ppo", runs, "ppo.export_merged=true", "ppo.micro_batch_tokens=100", "run.threads=1") == 0


def test_wandb_holds_exactly_what_metrics_jsonl_holds(runs: Path) -> None:
    for stage in STAGES:
        folder = runs / "micro" / stage
        offline = read_offline_run(folder)
        rows = read_metrics(folder / "metrics.jsonl")
        assert rows
        assert_documented(folder / "metrics.jsonl")
        assert offline.history == merge_steps(rows)
        assert offline.summary["artifact_sha256"] == require(runs / "micro", stage).artifact_sha256
        assert offline.group == "micro"
        assert offline.config == load_recipe(folder / "config.yaml").resolved
        assert offline.tables
        for (key, step), table in offline.tables.items():
            path = folder / "samples" / f"{key.replace('/', '.')}-{step:06d}.jsonl"
            kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == kept


PLAIN = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rlhf", "sft", "reward", "ppo", "labeling"}:
            raise ImportError(name + " is ours")

sys.meta_path.insert(0, Blocked())
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoTokenizer
rows = json.load(open("rows.json"))
tokenizer = AutoTokenizer.from_pretrained("reward/model")
batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
scorer = AutoPeftModelForSequenceClassification.from_pretrained("reward/model", num_labels=1).eval()
policy = AutoPeftModelForCausalLM.from_pretrained("ppo/model").eval()
merged = AutoModelForCausalLM.from_pretrained("ppo/merged").eval()

def logprobs(model):
    scores = model(**batch).logits[:, :-1].log_softmax(-1)
    return scores.gather(2, batch["input_ids"][:, 1:, None])[..., 0].tolist()

with torch.no_grad():
    json.dump({"scores": scorer(**batch).logits[:, 0].tolist(), "policy": logprobs(policy),
               "merged": logprobs(merged)}, open("plain.json", "w"))
"""


def test_a_moved_run_opens_in_plain_transformers_and_peft_with_our_numbers(
    runs: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs / "micro", moved)
    backbone = Backbone.load(runs / "micro" / "sft" / "model")
    backbone.load_adapter("policy", runs / "micro" / "ppo" / "model")
    from reward.model import base_identity, load_reward
    from rlhf.model.batching import TokenBatch, pad

    identity = base_identity(require(runs / "micro", "sft"))
    model = load_reward(backbone, runs / "micro" / "reward" / "model", expected_base_sha256=identity)
    eos = backbone.eos_ids[0]
    rows = [[40, 41, 42, eos], [50, eos], [60, 61, 62, 63, 64, 65, eos], [70, 71, 72]]
    (moved / "rows.json").write_text(json.dumps(rows))
    command = [sys.executable, "-I", "-c", PLAIN]
    done = subprocess.run(command, cwd=moved, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain = json.loads((moved / "plain.json").read_text())
    ids, mask = pad(rows, backbone.pad_id, backbone.device)
    with torch.no_grad():
        raw = model.raw(TokenBatch(ids, mask.sum(1)))
        torch.testing.assert_close(torch.tensor(plain["scores"]), raw, atol=1e-5, rtol=1e-5)
        with backbone.role("policy"):
            scores = backbone.logits(backbone.hidden(ids))[:, :-1].log_softmax(-1)
    ours = scores.gather(2, ids[:, 1:, None])[..., 0]
    real = mask[:, 1:]
    for name, tolerance in (("policy", 1e-5), ("merged", 1e-4)):
        torch.testing.assert_close(torch.tensor(plain[name])[real], ours[real], atol=tolerance, rtol=1e-5)


def test_an_interrupted_ppo_goes_on_to_the_same_weights_and_metrics(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppo.train import PPO

    (tmp_path / "micro").mkdir()
    for stage in ("sft", "reward"):
        shutil.copytree(runs / "micro" / stage, tmp_path / "micro" / stage)
    original = PPO.iterate

    def interrupted(self: PPO, tracker: Any) -> dict[str, float]:
        if self.state.next_iteration == 3:
            raise KeyboardInterrupt
        return original(self, tracker)

    monkeypatch.setattr(PPO, "iterate", interrupted)
    assert start("ppo", tmp_path, "ppo.export_merged=true") == 130
    monkeypatch.setattr(PPO, "iterate", original)
    assert start("ppo", tmp_path, "ppo.export_merged=true") == 0
    name = "ppo/model/adapter_model.safetensors"
    once, twice = load_file(runs / "micro" / name), load_file(tmp_path / "micro" / name)
    assert all(torch.equal(once[key], twice[key]) for key in once)

    def untimed(folder: Path) -> list[dict[str, Any]]:
        rows = read_metrics(folder / "micro" / "ppo" / "metrics.jsonl")
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]

    assert untimed(runs) == untimed(tmp_path)


def test_a_second_round_starts_from_a_published_policy(runs: Path) -> None:
    common = (
        "run.name=second",
        "model.scratch=null",
        f"model.path={runs / 'micro' / 'ppo' / 'merged'}",
        "sft.method=none",
        "ppo.num_iterations=1",
    )
    for stage in STAGES:
        assert start(stage, runs, *common) == 0
    base, first = (Backbone.load(runs / name) for name in ("second/sft/model", "micro/sft/model"))
    first.load_adapter("policy", runs / "micro" / "ppo" / "model")
    ids = torch.arange(40, 60).unsqueeze(0)
    with torch.no_grad(), first.role("policy"), base.role(REFERENCE):
        torch.testing.assert_close(base.hidden(ids), first.hidden(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_whole_run_on_a_quantized_base_starts_from_the_same_sft_model(
    runs: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    changes = ("ppo.export_merged=true", f"model.precision={precision}", f"run.name={precision}")
    for stage in STAGES:
        assert start(stage, runs, *changes) == 0
    assert "measured again" not in capsys.readouterr().out
    weights = "sft/model/model.safetensors"
    assert sha256_file(runs / precision / weights) == sha256_file(runs / "micro" / weights)
    assert json.loads((runs / precision / "reward/model/reward.json").read_text())["precision"] == precision
    for row in read_metrics(runs / precision / "ppo" / "metrics.jsonl"):
        assert row.get("ppo/sampler_gap_nats_max", 0) < 1e-4
        assert row.get("ppo/first_approx_kl", 0) < 1e-6
    metrics = metrics_of(runs, "ppo", precision)
    assert metrics["before_kl_nats_per_response"] == 0 != metrics["after_kl_nats_per_response"]
    exact = metrics_of(runs, "ppo")["merged_gap_nats_mean"]
    assert exact < 1e-4 < metrics["merged_gap_nats_mean"] < 1


def test_a_reward_model_of_another_precision_is_normalized_again(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("sft", "reward"):
        shutil.copytree(runs / "micro" / stage, tmp_path / "micro" / stage)
    assert start("ppo", tmp_path, "model.precision=bf16", "ppo.num_iterations=1") == 0
    assert "normalized on an fp32 base, and this one is bf16; measured again" in capsys.readouterr().out


@pytest.mark.parametrize("pad", ["eos", "unk"])
def test_the_padding_token_changes_no_figure_of_any_stage(runs: Path, pad: str) -> None:
    for stage in STAGES:
        changes = ("ppo.export_merged=true", f"model.scratch.pad_token={pad}", f"run.name=pad-{pad}")
        assert start(stage, runs, *changes) == 0
        own, other = metrics_of(runs, stage), metrics_of(runs, stage, f"pad-{pad}")
        assert own == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_reward_model_of_another_base_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("sft", tmp_path, "run.seed=4") == 0
    shutil.copytree(runs / "micro" / "reward", tmp_path / "micro" / "reward")
    assert start("ppo", tmp_path, "run.seed=4") == 2
    assert "trained on another base" in capsys.readouterr().err
    assert not (tmp_path / "micro" / "ppo" / "manifest.json").exists()
    assert not (tmp_path / "micro" / "ppo" / "model").exists()


def test_a_later_stage_names_the_one_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("ppo", tmp_path) == 2
    assert "make sft" in capsys.readouterr().err


def test_a_prompt_without_room_for_a_response_is_an_error_and_leaves_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "micro" / "sft", tmp_path / "micro" / "sft")
    shutil.copytree(runs / "micro" / "reward", tmp_path / "micro" / "reward")
    assert start("ppo", tmp_path, "ppo.length.max_tokens=30") == 2
    error = capsys.readouterr().err
    assert "over_length" in error
    assert "Traceback" not in error
    assert not (tmp_path / "micro" / "ppo" / "manifest.json").exists()
    assert [path.name for path in (tmp_path / "micro" / "ppo").iterdir()] == [".lock"]
    # A single message has no older turns to lose: what does not fit is left out and counted.
    assert start("ppo", tmp_path, "ppo.length.max_tokens=60", "ppo.length.over_length=truncate_left") == 0
    accounts = json.dumps(require(tmp_path / "micro", "ppo").accounts)
    assert "no room for a response" in accounts


def test_chat_answers_line_by_line_and_switches_roles(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("My printer is slow.\n/reference\n/new\nMy printer is slow.\n")
    )
    assert run_command(ppo.chat.main, ["--config", CONFIG, f"run.folder={runs}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "[reference answers now]" in lines
    assert "[forgotten]" in lines
    assert len(lines) >= 4


def test_chat_outlives_a_line_that_does_not_fit(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("too long " * 200 + "\nhello\n"))
    assert run_command(ppo.chat.main, ["--config", CONFIG, f"run.folder={runs}"]) == 0
    captured = capsys.readouterr()
    assert "/new" in captured.err
    assert captured.out.strip()


@pytest.mark.parametrize("body", ["raise RuntimeError('no')", "return 3", "return ['a'] * len(prompts)"])
def test_a_scorer_that_fails_is_named_without_a_traceback(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
) -> None:
    monkeypatch.setattr("rlhf.data.scorers.PAUSES_SECONDS", (0.0,))
    shutil.copytree(runs / "micro" / "sft", tmp_path / "micro" / "sft")
    (tmp_path / "bad.py").write_text(f"def f(prompts, responses):\n    {body}\n")
    assert start("ppo", tmp_path, f"ppo.reward={tmp_path / 'bad.py'}:f") == 2
    error = capsys.readouterr().err
    assert "bad.py:f" in error
    assert "Traceback" not in error


def test_a_joint_value_a_function_reward_and_an_adaptive_kl_run_end_to_end(runs: Path) -> None:
    (runs / "joint").mkdir()
    shutil.copytree(runs / "micro" / "sft", runs / "joint" / "sft")
    changes = (
        "run.name=joint",
        "ppo.value=joint",
        "ppo.reward=configs/tiny/gold.py:score",
        "ppo.kl.target=1.0",
    )
    assert start("ppo", runs, *changes, "ppo.gradient_checkpointing=true", "ppo.num_iterations=2") == 0
    rows = read_metrics(runs / "joint" / "ppo" / "metrics.jsonl")
    assert len({row["ppo/kl_coefficient"] for row in rows if "ppo/kl_coefficient" in row}) == 2
