"""What people give beside ranks comes out, and what somebody flagged stays out of training data."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from labeling.__main__ import main
from labeling.analysis.given import are_allowed
from rlhf.commands.process import run_command
from rlhf.data.sources import read_rankings
from rlhf.settings.groups import SourceSettings


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four items; Ann says all that can be said, and three scripts rank alone."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"q{n}", "completions": [f"good {n}", f"bad {n}"]} for n in range(4)]
    Path("items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--items", "items.jsonl", "--overlap", "5", "--quality-scores"]
    assert main(["create", "--project", "p", *options]) == 0
    said = [
        "score 7 2",
        "note both are short",
        "1 2",
        "flag private data",
        "1 2",
        "skip I know no Finnish",
        "flag Typo in the prompt",
        "2 1",
    ]
    rank("ann", said, monkeypatch)
    Path("gold.py").write_text("def size(prompts, texts):\n    return [float(len(t)) for t in texts]\n")
    for name in ("bo", "cy", "dee"):
        assert main(["simulate", "--project", "p", "--labeler", name, "--scorer", "gold.py:size"]) == 0


def rank(labeler: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(said) + "\n"))
    assert main(["rank", "--project", "p", "--labeler", labeler, "--plain"]) == 0


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def export(*options: str) -> None:
    assert main(["export", "--project", "p", "--to", "out", *options]) == 0


@pytest.mark.parametrize("shape", ["rankings", "pairs"])
@pytest.mark.parametrize("labels", ["consensus", "all"])
def test_flagged_items_are_held_back_from_training_data_and_counted(
    shape: str, labels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export("--shape", shape, "--labels", labels)
    assert {row["prompt"] for row in lines(f"out/{shape}.jsonl")} == {"q0", "q2"}
    shown = capsys.readouterr().out
    assert "2 flagged items are held back: Typo in the prompt (1), private data (1)" in shown
    assert "--include-flagged REASON" in shown
    metrics = json.loads(Path("out/manifest.json").read_text())["metrics"]
    assert (metrics["items"], metrics["items_held_back"]) == (2, 2)
    assert metrics["held_back_reasons"] == {"Typo in the prompt": 1, "private data": 1}


def test_flagged_items_are_exported_on_purpose_by_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    export("--include-flagged", "typo*")
    assert {row["prompt"] for row in lines("out/rankings.jsonl")} == {"q0", "q2", "q3"}
    assert "1 flagged items are included" in capsys.readouterr().out
    export("--include-flagged", "*")
    assert len(lines("out/rankings.jsonl")) == 4


def test_a_decision_on_a_flagged_item_does_not_let_it_out() -> None:
    assert main(["adjudicate", "--project", "p", "--item", "2", "--ranks", "1,2", "--labeler", "eva"]) == 0
    export()
    assert {row["prompt"] for row in lines("out/rankings.jsonl")} == {"q0", "q2"}


def test_all_that_is_left_being_flagged_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--project", "p", write_labels()]) == 0
    for name in ("q0", "q2"):
        number = int(name[1:]) + 1
        flag_item(number)
    capsys.readouterr()
    assert run_command(main, ["export", "--project", "p", "--to", "out"]) == 2
    shown = capsys.readouterr().err
    assert "every item that could be exported is flagged" in shown
    assert "--include-flagged REASON" in shown


def write_labels() -> str:
    row = {"prompt": "q0", "completions": ["good 0", "bad 0"], "ranks": [1, 2], "annotator": "flo"}
    Path("more.jsonl").write_text(json.dumps(row) + "\n")
    return "more.jsonl"


def flag_item(number: int) -> None:
    from labeling.store.ledger import Event, record
    from labeling.store.project import Project

    with Project.open("p") as opened, opened.database.write() as transaction:
        event = Event(kind="flagged", item_id=number, labeler_id=1, data={"reason": "wrong language"})
        record(transaction, event)


def test_scores_notes_flags_and_skips_stand_next_to_the_rankings_and_training_reads_them(
    tmp_path: Path,
) -> None:
    export("--include-flagged", "*")
    rows = {row["prompt"]: row.get("given", []) for row in lines("out/rankings.jsonl")}
    [first] = rows["q0"]
    scores = first.pop("scores")
    assert first == {"annotator": "ann", "act": "label", "note": "both are short"}
    assert sorted(scores) == [2, 7]  # in the item's own order, whatever the labeler saw first
    assert rows["q1"] == [{"annotator": "ann", "act": "flag", "reason": "private data"}]
    assert rows["q2"] == [{"annotator": "ann", "act": "skip", "reason": "I know no Finnish"}]
    read, _ = read_rankings([SourceSettings(path="out/manifest.json")], seed=0, run_folder=tmp_path)
    assert len(read) == 4
    export("--labels", "all")
    own = [row for row in lines("out/rankings.jsonl") if row["annotator"] == "bo"]
    assert own
    assert not any("given" in row for row in own)  # Bo gave ranks alone


def test_everything_given_is_in_a_file_of_its_own_without_the_texts_of_items() -> None:
    export("--pseudonyms")
    text = Path("out/given.jsonl").read_text()
    assert "ann" not in {row["annotator"] for row in lines("out/given.jsonl")}
    assert "good 1" not in text
    assert "q1" not in text
    acts = [row["act"] for row in lines("out/given.jsonl")]
    assert {act: acts.count(act) for act in acts} == {"label": 15, "flag": 2, "skip": 1}
    labels = [row for row in lines("out/given.jsonl") if row["act"] == "label"]
    assert all(row["seconds"] >= 0 and row["late"] is False for row in labels)


def test_status_tells_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["status", "--project", "p", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flagged_items"] == 2
    assert found["flag_reasons"] == {"Typo in the prompt": 1, "private data": 1}
    acts = {(each["item"], each["labeler"], each["act"]) for each in found["given"]}
    assert acts == {(1, "ann", "label"), (2, "ann", "flag"), (3, "ann", "skip"), (4, "ann", "flag")}
    assert main(["status", "--project", "p", "--json", "--pseudonyms"]) == 0
    assert '"ann"' not in capsys.readouterr().out
    assert main(["status", "--project", "p"]) == 0
    assert "private data (1)" in capsys.readouterr().out


def test_what_was_taken_back_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    rank("eve", ["note one", "1 2", "skip too odd", "undo", "undo", "note two", "1 2", "1 2"], monkeypatch)
    export()
    given = [row for row in lines("out/given.jsonl") if row["annotator"] == "eve"]
    assert {(row["act"], row.get("note")) for row in given} == {("label", "two"), ("label", None)}
    assert len(given) == 2


def test_every_reason_of_an_item_must_be_allowed() -> None:
    assert are_allowed(["Typo", "typo in [brackets]"], ["typo", "typo in [brackets]"])
    assert not are_allowed(["typo", "private data"], ["typo"])
    assert are_allowed(["private data"], ["*"])


def test_who_ranks_in_the_order_shown_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"q{n}", "completions": [f"{letter} {n}" for letter in "abc"]} for n in range(12)]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["create", "--project", "clicks", "--items", "more.jsonl", "--overlap", "2"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 2 3\n" * 12))
    assert main(["rank", "--project", "clicks", "--labeler", "ann", "--plain"]) == 0
    assert main(["simulate", "--project", "clicks", "--labeler", "bo", "--scorer", "gold.py:size"]) == 0
    capsys.readouterr()
    assert main(["status", "--project", "clicks"]) == 0
    shown = capsys.readouterr().out
    assert "the ranks of ann follow the order in which answers are shown (tau +1.00)" in shown
    assert "the ranks of bo" not in shown


def test_pairs_that_no_row_can_tell_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [1, 1, "F", "F"], "annotator": "ann"}
    Path("r.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["import", "--project", "even", "r.jsonl"]) == 0
    assert main(["export", "--project", "even", "--to", "even-out", "--shape", "pairs"]) == 0
    assert "1 ties, 1 of two failed answers" in capsys.readouterr().out
    metrics = json.loads(Path("even-out/manifest.json").read_text())["metrics"]
    assert (metrics["pairs_tied"], metrics["pairs_failed_both"]) == (1, 1)
