"""Scoring files: the forms of a row, mistakes in them, and where the base is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.__main__ import main
from reward.model import folder_identity, raw_scores
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.model.batching import TokenBatch
from rlhf.model.chat import encode_completion, encode_prompt
from tests.support.small import write_small_model
from tests.unit.reward.test_model import published

ROWS: list[dict[str, Any]] = [
    {"prompt": "w1 w2", "completion": " w3 w4 w5", "id": 7},
    {"prompt": "w1", "completions": [" w3", " w4 w5 w6", " w9"]},
    {"prompt": "w8 w7 w6 w5", "completions": [" w3"]},
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with a base and a reward model of random weights."""
    base = tmp_path / "runs" / "r" / "sft" / "model"
    write_small_model(base)
    published(tmp_path / "runs" / "r" / "reward" / "model", base_sha256=folder_identity(base), max_tokens=24)
    return tmp_path / "runs" / "r"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(run: Path, source: Path, *extra: str) -> list[dict[str, Any]]:
    target = run / "scored.jsonl"
    arguments = ["--model", str(run / "reward" / "model"), "--input", str(source), "--output", str(target)]
    assert main(["score", *arguments, *extra]) == 0
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_every_row_comes_back_with_its_scores(run_folder: Path) -> None:
    scored = score(run_folder, write(run_folder / "rows.jsonl", ROWS))
    backbone, _ = published(run_folder / "again")
    for row, before in zip(scored, ROWS, strict=True):
        assert before.items() <= row.items()
        single = "completion" in row
        raw = [row["raw_score"]] if single else row["raw_score"]
        normalized = [row["score"]] if single else row["score"]
        completions = [row["completion"]] if single else row["completions"]
        assert normalized == pytest.approx([(value - 0.5) / 2 for value in raw])
        for completion, value in zip(completions, raw, strict=True):
            tokenizer = backbone.tokenizer
            ids = encode_prompt(tokenizer, row["prompt"]) + encode_completion(
                tokenizer, row["prompt"], completion
            )
            with torch.no_grad():
                alone = raw_scores(backbone, TokenBatch(torch.tensor([ids])))
            assert value == pytest.approx(float(alone), abs=1e-5)


def test_scores_do_not_depend_on_the_batch(run_folder: Path) -> None:
    source = write(run_folder / "rows.jsonl", ROWS)
    whole, one = score(run_folder, source), score(run_folder, source, "--batch-tokens", "1", "--force")
    for a, b in zip(whole, one, strict=True):
        assert a["raw_score"] == pytest.approx(b["raw_score"], abs=1e-5)


def test_the_run_folder_may_move(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(run_folder / "rows.jsonl", ROWS)
    before = score(run_folder, source)
    moved = run_folder.parent / "elsewhere" / "r2"
    moved.parent.mkdir()
    shutil.move(run_folder, moved)
    monkeypatch.chdir(moved.parent)
    assert score(moved, moved / "rows.jsonl", "--force") == before


def test_an_output_that_exists_is_kept(run_folder: Path) -> None:
    source = write(run_folder / "rows.jsonl", ROWS)
    (run_folder / "scored.jsonl").write_text("precious")
    with pytest.raises(UserError, match="--force"):
        score(run_folder, source)
    assert (run_folder / "scored.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{", "not valid JSON"),
        ([1], "not a JSON object"),
        ({"prompt": "w1"}, "either `completion` or `completions`"),
        (
            {"prompt": "w1", "completion": " w2", "completions": [" w3"]},
            "either `completion` or `completions`",
        ),
        ({"prompt": "w1", "completions": []}, "at least one"),
        ({"prompt": "w1", "completion": 3}, "a completion is text"),
        ({"completion": " w2"}, "`prompt` is neither"),
        ({"prompt": [{"role": "user"}], "completion": " w2"}, "message 1 of `prompt` has no `content`"),
        ({"prompt": [{"role": "user", "content": "w1"}], "completion": " w2"}, "chat template"),
        ({"prompt": "w1 " * 30, "completion": " w2"}, "24"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_leaves_no_output(
    run_folder: Path, capsys: pytest.CaptureFixture[str], row: Any, expected: str
) -> None:
    source = write(run_folder / "rows.jsonl", ROWS)
    with source.open("a") as file:
        file.write("\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    model, target = run_folder / "reward" / "model", run_folder / "scored.jsonl"
    arguments = ["score", "--model", str(model), "--input", str(source), "--output", str(target)]
    assert run_command(main, arguments) == 2
    error = capsys.readouterr().err
    assert "rows.jsonl, line 5" in error
    assert expected in error
    assert not target.exists()


def test_a_long_row_can_be_shortened_on_the_left_but_never_its_completion(run_folder: Path) -> None:
    long = {"prompt": "w1 " * 30 + "w7", "completion": " w2 w3"}
    scored = score(run_folder, write(run_folder / "rows.jsonl", [long]), "--over-length", "truncate_left")
    assert len(scored) == 1
    endless = {"prompt": "w1", "completion": " w2" * 40}
    with pytest.raises(UserError, match="completion"):
        score(
            run_folder,
            write(run_folder / "rows.jsonl", [endless]),
            "--over-length",
            "truncate_left",
            "--force",
        )


def test_a_changed_base_is_refused(run_folder: Path) -> None:
    source = write(run_folder / "rows.jsonl", ROWS)
    write_small_model(run_folder / "sft" / "model", seed=5)
    with pytest.raises(UserError, match="another base"):
        score(run_folder, source)


@pytest.mark.parametrize(
    "missing", ["reward/model/reward.json", "reward/model/adapter_config.json", "sft", "rows.jsonl"]
)
def test_what_is_missing_is_named(run_folder: Path, missing: str) -> None:
    source = write(run_folder / "rows.jsonl", ROWS)
    path = run_folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=Path(missing).name):
        score(run_folder, source)


def test_an_empty_file_is_refused(run_folder: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        score(run_folder, write(run_folder / "rows.jsonl", []))
