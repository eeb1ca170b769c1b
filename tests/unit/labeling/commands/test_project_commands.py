"""`python -m labeling create … import`: the commands of a project, and what a user can get wrong."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from labeling.__main__ import main
from labeling.store.database import shown_location
from labeling.store.labels import read_labels
from labeling.store.project import Project
from rlhf.commands.process import run_command
from rlhf.data.sources import read_rankings, source_fingerprints
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings

SCORER = "def size(prompts, responses):\n    return [float(len(r)) for r in responses]\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test works in a folder of its own, with six items and a scorer that likes what is longer."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"q{n}", "completions": ["xx" + "y" * n, "x", "xxx" + "y" * n], "models": ["b", "c", "a"]}
        for n in range(6)
    ]
    write(tmp_path / "items.jsonl", rows)
    (tmp_path / "gold.py").write_text(SCORER)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labelled(*, overlap: int = 2, error_rate: str = "0") -> None:
    assert main(["create", "--project", "p", "--items", "items.jsonl", "--overlap", str(overlap)]) == 0
    for n in range(overlap):
        simulate = ["simulate", "--project", "p", "--labeler", f"labeler {n}", "--scorer", "gold.py:size"]
        assert main([*simulate, "--error-rate", error_rate]) == 0


# The way from items to training data


def test_scripted_labels_are_exported_as_the_scorer_ranks(home: Path) -> None:
    labelled()
    assert main(["export", "--project", "p", "--to", "out"]) == 0
    source = SourceSettings(path="out/manifest.json")
    rankings, _ = read_rankings([source], seed=0, run_folder=home)
    assert [ranking.ranks for ranking in rankings] == [(2, 3, 1)] * 6
    assert {ranking.annotator for ranking in rankings} == {"consensus"}
    rows = [json.loads(line) for line in Path("out/rankings.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"q{n}" for n in range(6)]


def test_an_exports_manifest_stands_for_its_file_and_only_for_that(home: Path) -> None:
    labelled()
    assert main(["export", "--project", "p", "--to", "out"]) == 0
    prints = [
        source_fingerprints("r", [SourceSettings(path=f"out/{name}")], run_folder=home)
        for name in ("manifest.json", "rankings.jsonl")
    ]
    assert prints[0] == prints[1]
    with Path("out/rankings.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="not the file that its manifest describes"):
        source_fingerprints("r", [SourceSettings(path="out/manifest.json")], run_folder=home)
    Path("out/rankings.jsonl").unlink()
    with pytest.raises(UserError, match=r"rankings\.jsonl is missing"):
        source_fingerprints("r", [SourceSettings(path="out/manifest.json")], run_folder=home)
    Path("out/manifest.json").write_text("{}")
    with pytest.raises(UserError, match="python -m labeling export"):
        source_fingerprints("r", [SourceSettings(path="out/manifest.json")], run_folder=home)


@pytest.mark.parametrize("shape", ["rankings", "pairs"])
@pytest.mark.parametrize("labels", ["consensus", "all"])
def test_an_export_is_the_same_to_the_byte(shape: str, labels: str) -> None:
    labelled(error_rate="0.3")
    for folder in ("one", "two"):
        options = ["--to", folder, "--shape", shape, "--labels", labels, "--pseudonyms"]
        assert main(["export", "--project", "p", *options]) == 0
    for name in (f"{shape}.jsonl", "manifest.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_pairs_are_rows_as_trl_reads_them(home: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    rows: list[dict[str, Any]] = [
        {"prompt": turns, "completions": ["a", "b"], "ranks": [2, 1], "annotator": "ann"},
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 1, "F"], "annotator": "ann"},
    ]
    write(home / "r.jsonl", rows)
    assert main(["import", "--project", "p", "r.jsonl"]) == 0
    assert main(["export", "--project", "p", "--to", "out", "--shape", "pairs", "--labels", "all"]) == 0
    found = [json.loads(line) for line in Path("out/pairs.jsonl").read_text().splitlines()]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "b"}]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in found[1:]] == [
        ("p", "a", "c"),
        ("p", "b", "c"),
    ]
    assert found[1]["group"] == found[2]["group"] != found[0]["group"]
    read, _ = read_rankings([SourceSettings(path="out/manifest.json")], seed=0, run_folder=home)
    assert len(read) == 3


def test_pseudonyms_are_stable_and_hide_the_names() -> None:
    labelled()
    names = []
    for folder in ("one", "two"):
        assert main(["export", "--project", "p", "--to", folder, "--labels", "all", "--pseudonyms"]) == 0
        text = Path(folder, "rankings.jsonl").read_text()
        assert "labeler 0" not in text
        names.append({json.loads(line)["annotator"] for line in text.splitlines()})
    assert names[0] == names[1]
    assert len(names[0]) == 2


def test_a_decision_replaces_the_consensus_and_closes_the_dispute(capsys: pytest.CaptureFixture[str]) -> None:
    labelled(overlap=1)
    project = Project.open("p")
    [first, *_] = read_labels(project)
    with project:
        write(
            Path("other.jsonl"),
            [{"prompt": "q0", "completions": ["xx", "x", "xxx"], "ranks": [1, 2, 3], "annotator": "bo"}],
        )
        assert main(["import", "--project", "p", "other.jsonl"]) == 0
        capsys.readouterr()
        assert main(["adjudicate", "--project", "p"]) == 0
        shown = capsys.readouterr().out
        assert f"item {first.item_id}: agreement 0.33" in shown
        decide = ["adjudicate", "--project", "p", "--item", str(first.item_id), "--labeler", "eva"]
        assert main([*decide, "--ranks", "3,F,1", "--note", "looked twice"]) == 0
        assert main(["adjudicate", "--project", "p"]) == 0
        assert "0 items are disputed" in capsys.readouterr().out
    assert main(["export", "--project", "p", "--to", "out"]) == 0
    row = json.loads(Path("out/rankings.jsonl").read_text().splitlines()[0])
    assert (row["ranks"], row["annotator"]) == ([2, "F", 1], "adjudicated")


def test_importing_a_file_twice_adds_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "c", "rejected": "d"}]
    write(home / "pairs.jsonl", rows)
    for expected in ("2 new items, 2 new labels", "0 new items, 0 new labels"):
        assert main(["import", "--project", "p", "pairs.jsonl", "--labeler", "ann"]) == 0
        assert expected in capsys.readouterr().out
    with Project.open("p") as project:
        assert [label.ranks for label in read_labels(project)] == [(1, 2), (1, 2)]
        assert {label.labeler for label in read_labels(project)} == {"ann"}


def test_the_file_imported_last_is_in_force(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, Any] = {"prompt": "p", "completions": ["a", "b"], "annotator": "ann"}
    write(home / "A.jsonl", [{**row, "ranks": [1, 2]}])
    write(home / "B.jsonl", [{**row, "ranks": [2, 1]}])
    for name, new in (("A", 1), ("B", 1), ("A", 1), ("A", 0), ("B", 1), ("A", 1), ("A", 0)):
        capsys.readouterr()
        assert main(["import", "--project", "p", f"{name}.jsonl"]) == 0
        assert f" new items, {new} new labels" in capsys.readouterr().out
        with Project.open("p") as project:
            [label] = read_labels(project)
        assert label.ranks == ((1, 2) if name == "A" else (2, 1))


def test_imported_probabilities_are_exported_as_they_were(home: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "prompt": "p",
            "completions": ["a", "b", "c"],
            "comparisons": [[0, 1, 0.2], [0, 2, 0.9], [1, 2, 0.7]],
            "annotator": "m",
        },
        {"prompt": "q", "completions": ["a", "b"], "comparisons": [[1, 0, 0.8]], "annotator": "m"},
        {"prompt": "r", "completions": ["a", "b"], "comparisons": [[1, 0, 1.0]], "annotator": "m"},
    ]
    write(home / "soft.jsonl", rows)
    assert main(["import", "--project", "p", "soft.jsonl"]) == 0
    with Project.open("p") as project:
        assert [label.ranks for label in read_labels(project)] == [(2, 1, 3), (2, 1), (2, 1)]
    assert main(["export", "--project", "p", "--to", "out", "--labels", "all"]) == 0
    found = [json.loads(line) for line in Path("out/rankings.jsonl").read_text().splitlines()]
    assert [row.get("comparisons") for row in found] == [rows[0]["comparisons"], [[1, 0, 0.8]], None]
    assert found[2]["ranks"] == [2, 1]


def test_a_table_of_judged_pairs_keeps_equal_rows_apart(home: Path) -> None:
    row = {"task": "t", "a": "x", "b": "y", "ann": 1, "bo": 0}
    write(home / "table.jsonl", [row, {**row, "ann": 2}, {**row, "b": "z"}])
    table = ["--prompt", "{task}", "--first", "a", "--second", "b", "--judge", "ann", "--judge", "bo"]
    assert main(["import", "--project", "p", "table.jsonl", *table]) == 0
    with Project.open("p") as project:
        labels = [(label.item_id, label.labeler, label.ranks) for label in read_labels(project)]
    assert labels == [
        (1, "ann", (1, 2)),
        (1, "bo", (1, 1)),
        (2, "ann", (2, 1)),
        (2, "bo", (1, 1)),
        (3, "ann", (1, 2)),
        (3, "bo", (1, 1)),
    ]


def test_status_tells_who_did_what_and_what_the_models_are_worth(capsys: pytest.CaptureFixture[str]) -> None:
    labelled(overlap=3, error_rate="0.4")
    capsys.readouterr()
    assert main(["status", "--project", "p", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["items"], found["items_done"], found["labels"]) == (6, 6, 18)
    assert [labeler["submitted"] for labeler in found["labelers"]] == [6, 6, 6]
    assert {strength["model"] for strength in found["strengths"]} == {"a", "b", "c"}
    assert main(["status", "--project", "p"]) == 0
    assert "Krippendorff's alpha, ordinal" in capsys.readouterr().out


def test_a_project_without_labels_has_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "--project", "p", "--items", "items.jsonl"]) == 0
    assert main(["status", "--project", "p"]) == 0
    assert "not determined" in capsys.readouterr().out


def test_one_item_gives_values_without_an_interval(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"]}
    rows: list[dict[str, Any]] = [
        {**row, "ranks": [1, 2, 3], "annotator": "ann"},
        {**row, "ranks": [1, 3, 2], "annotator": "bo"},
    ]
    write(home / "r.jsonl", rows)
    assert main(["import", "--project", "p", "r.jsonl"]) == 0
    capsys.readouterr()
    assert main(["status", "--project", "p"]) == 0
    assert "0.6667 [not determined]" in capsys.readouterr().out
    assert main(["status", "--project", "p", "--json"]) == 0
    pairwise = json.loads(capsys.readouterr().out)["agreement"]["pairwise"]
    assert (pairwise["low"], pairwise["high"]) == (None, None)
    assert main(["export", "--project", "p", "--to", "out"]) == 0
    metrics = json.loads(Path("out/manifest.json").read_text())["metrics"]
    assert metrics["pairwise"] == [pytest.approx(2 / 3), None, None]


def test_an_export_into_a_file_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    labelled()
    for folder in ("items.jsonl", "items.jsonl/below"):
        assert run_command(main, ["export", "--project", "p", "--to", folder]) == 2
        assert "a file stands in the way" in capsys.readouterr().err


def test_the_next_command_is_fit_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "--project", "my p", "--items", "items.jsonl"]) == 0
    assert "rank --project 'my p' --labeler NAME" in capsys.readouterr().out


def test_a_location_is_printed_without_its_password() -> None:
    shown = shown_location("postgresql://ann:geheim@host/labels")
    assert "geheim" not in shown
    assert "ann:***@host/labels" in shown
    assert shown_location("my p") == "'my p'"


# Ranking line by line


def rank(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(script))
    capsys.readouterr()
    assert main(["rank", "--project", "p", "--labeler", "ann", "--plain"]) == 0
    return capsys.readouterr().out


def test_lines_rank_note_skip_flag_and_undo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", "--project", "p", "--items", "items.jsonl"]) == 0
    script = "?\n1 2\nhello\nnote short answers\n1 1 F\nundo\nskip too odd\nflag private data\n3,1,2\n"
    shown = rank(script, monkeypatch, capsys)
    assert "Length is not quality" in shown
    assert "2 ranks for 3 completions" in shown
    assert "no command hello" in shown
    assert "Entered so far: 1 1 F" in shown
    assert "Note: short answers" in shown
    with Project.open("p") as project:
        [label] = read_labels(project)
    assert (label.item_id, label.labeler) == (2, "ann")


def test_hostile_completions_reach_the_terminal_as_signs(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J\x1b]52;c;aGk=\x07\0\x9b31m\u202eabc" + "z" * 100_000
    write(home / "evil.jsonl", [{"prompt": "p\x1b[0m", "completions": [evil, "\r\x08x", ""]}])
    assert main(["create", "--project", "p", "--items", "evil.jsonl"]) == 0
    shown = rank("1 2 3\n", monkeypatch, capsys)
    assert {character for character in shown if not character.isprintable()} == {"\n"}
    assert "␛[2J" in shown
    assert "⟨U+202E⟩" in shown
    with Project.open("p") as project:
        [item] = project.items("item")
        assert item.completions[0] == evil
        assert len(read_labels(project)) == 1


def test_a_line_that_breaks_off_leaves_the_item_for_the_next_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", "--project", "p", "--items", "items.jsonl"]) == 0
    rank("note half-way\n", monkeypatch, capsys)
    assert "Note: half-way" in rank("quit\n", monkeypatch, capsys)


# What a user can get wrong


CREATE = ["create", "--project", "p"]
GOOD = [*CREATE, "--items", "items.jsonl"]


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (CREATE, "there is nothing to rank"),
        ([*GOOD, "--config", "r.yaml"], "or too much"),
        ([*GOOD, "--model", "m"], "no recipe to sample by"),
        ([*CREATE, "--config", "none.yaml"], "cannot read the recipe"),
        ([*CREATE, "--items", "none.jsonl"], "none.jsonl: there is no such file"),
        ([*CREATE, "--items", "bad.jsonl"], "bad.jsonl, line 2: "),
        ([*CREATE, "--items", "ten.jsonl"], "10 completions are more than 9"),
        ([*GOOD, "--overlap", "0"], "`overlap`"),
        ([*GOOD, "--gold-share", "1.5"], "`gold_share`"),
        ([*GOOD, "--order", "uncertainty"], "needs scores"),
        ([*GOOD, "--scores", "none.jsonl"], "there is no such file"),
        (
            [*GOOD, "--scores", "items.jsonl"],
            "items.jsonl, line 1: this is not a prompt with",
        ),
        ([*GOOD, "--gold", "items.jsonl"], "items.jsonl, line 1"),
        ([*GOOD, "--instructions", "none.md"], "cannot read the instructions"),
        (["rank", "--project", "none", "--labeler", "ann"], "no labeling project here"),
        (["status", "--project", "items.jsonl"], "a file, not a project's folder"),
        (["simulate", "--project", "p", "--labeler", "a", "--scorer", "gold.py:none"], "no function `none`"),
        (["import", "--project", "p", "bad.jsonl"], "bad.jsonl, line 1"),
        (["import", "--project", "p", "items.jsonl", "--judge", "a"], "needs four things"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_made(
    home: Path, argv: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "bad.jsonl").write_text('{"prompt": "p", "completions": ["a", "b"]}\n{"prompt"\n')
    write(home / "ten.jsonl", [{"prompt": "p", "completions": [str(n) for n in range(10)]}])
    assert run_command(main, argv) == 2
    error = capsys.readouterr().err
    assert what in error
    assert "\n  " in error  # the way out
    assert not (home / "p" / "labels.db").exists()
    assert not (home / "none").exists()


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (GOOD, "a labeling project already"),
        (["adjudicate", "--project", "p", "--item", "99", "--ranks", "1", "--labeler", "e"], "no item 99"),
        (
            ["adjudicate", "--project", "p", "--item", "1", "--ranks", "1 2", "--labeler", "e"],
            "2 ranks for 3",
        ),
        (["adjudicate", "--project", "p", "--item", "1"], "needs an item, ranks and a name"),
        (
            ["adjudicate", "--project", "p", "--item", "9" * 20, "--ranks", "1", "--labeler", "e"],
            "no item 999",
        ),
        (["adjudicate", "--project", "p", "--threshold", "nan"], "nan is no threshold"),
        (["export", "--project", "p", "--to", "out"], "no item has enough labels"),
        (["token", "--project", "p", "--labeler", "a\nb"], "cannot be seen"),
    ],
)
def test_a_mistake_with_a_project_is_named(
    argv: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(GOOD) == 0
    assert run_command(main, argv) == 2
    assert what in capsys.readouterr().err


def test_help_of_a_command_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("create", "rank", "token", "status", "adjudicate", "simulate", "export", "import"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: python -m labeling {command} ")
        assert "--project" in shown
