"""The constitution's two stages against a real HTTP server: what it says, how it fails, and being killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ppo.__main__
import reward.__main__
import sft.__main__
from labeling.__main__ import main
from labeling.exchange.export import ExportOptions, export
from labeling.store.labels import read_labels
from labeling.store.project import Project
from rlhf.commands.process import run_command
from rlhf.data.readers import local_file
from rlhf.errors import UserError
from rlhf.runs.stage import require
from rlhf.settings.groups import SourceSettings
from tests.support.feedback import GOLD, feedback_server, lines, write_recipe

pytestmark = pytest.mark.slow

RANKINGS = "configs/tiny/data/rankings.jsonl"
RESPONSES = [{"path": "configs/tiny/data/demonstrations.jsonl", "limit": 12}]
REVISIONS = {"responses": RESPONSES, "rounds": 2, "scorer": GOLD}
PREFERENCES = {"items": RANKINGS, "limit": 12, "scorer": GOLD}
ERROR_RATE = 0.1
EXACT = math.log((1 - ERROR_RATE) / ERROR_RATE)
"""Log-odds of the server's every preference without a bias."""


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with feedback_server("--scorer", GOLD, "--error-rate", str(ERROR_RATE)) as url:
        yield url


def start(recipe: Path, *arguments: str, command: str = "constitution") -> int:
    return run_command(main, [command, "--config", str(recipe), *arguments])


def metrics(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / "run" / stage / "report.json").read_text())
    return found


def published(folder: Path) -> dict[str, bytes]:
    """The data of both stages, without what tells of the way there."""
    names = ("revisions/demonstrations.jsonl", "revisions/revisions.jsonl", "preferences/rankings.jsonl")
    return {name: (folder / "runs" / "run" / name).read_bytes() for name in names}


# What comes out


def test_both_stages_publish_labels_by_the_constitution(server: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, server, revisions=REVISIONS, preferences=PREFERENCES)
    assert start(recipe) == 0
    run = tmp_path / "runs" / "run"
    demonstrations, rankings = (
        lines(run / "revisions" / "demonstrations.jsonl"),
        lines(run / "preferences" / "rankings.jsonl"),
    )
    annotators = {row["annotator"] for row in [*demonstrations, *rankings]}
    assert len(annotators) == 1
    assert annotators.pop().startswith("constitution@")
    rounds = metrics(tmp_path, "revisions")["revisions"]["rounds"]
    assert [each["round"] for each in rounds] == [0, 1, 2]
    assert rounds[2]["score_mean"] > rounds[0]["score_mean"]
    assert metrics(tmp_path, "preferences")["preferences"]["scorer"]["accuracy"] > 0.75
    row = lines(run / "revisions" / "revisions.jsonl")[0]
    assert row["response"]["model"] == "given"
    assert {"principle", "critique", "revision"} <= set(row["rounds"][0])
    critique = row["rounds"][0]["critique"]
    assert critique["logprob"] == -0.5 * len(critique["text"].split())
    for stage in ("revisions", "preferences"):
        assert (run / stage / "report.html").read_text().startswith("<!doctype html>")


def test_a_finished_stage_is_up_to_date_and_made_again_it_asks_nothing(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, server, revisions=REVISIONS, preferences=PREFERENCES)
    assert start(recipe) == 0
    before = published(tmp_path)
    assert "next: make sft LABELS=constitution CONFIG=" in capsys.readouterr().out
    assert start(recipe) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    gone = "labeling.constitution.feedback.endpoint.url=http://127.0.0.1:9/v1"  # nobody listens there
    assert start(recipe, "--clean", gone) == 0
    assert published(tmp_path) == before


def test_an_endpoint_that_is_not_there_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(write_recipe(tmp_path, "http://127.0.0.1:9/v1", revisions=REVISIONS)) == 2
    assert "http://127.0.0.1:9/v1: the endpoint cannot be reached" in capsys.readouterr().err


# How choices are read


@pytest.mark.parametrize("bias", [1.0, -2.0])
def test_a_position_bias_is_reported_and_gone_from_the_labels(tmp_path: Path, bias: float) -> None:
    with feedback_server("--scorer", GOLD, "--error-rate", str(ERROR_RATE), "--bias", str(bias)) as url:
        assert start(write_recipe(tmp_path, url, preferences=PREFERENCES)) == 0
    found = metrics(tmp_path, "preferences")["preferences"]
    assert found["bias_log_odds"] == pytest.approx(bias, abs=0.05)
    for row in lines(tmp_path / "runs" / "run" / "preferences" / "rankings.jsonl"):
        for _, _, probability in row["comparisons"]:
            unbiased = 1 - ERROR_RATE if probability > 0.5 else ERROR_RATE
            assert probability == pytest.approx(unbiased, abs=0.02)


def test_an_endpoint_without_log_probabilities_votes(tmp_path: Path) -> None:
    with feedback_server("--scorer", GOLD, "--error-rate", str(ERROR_RATE), "--no-logprobs") as url:
        limited = {**PREFERENCES, "limit": 6}
        assert start(write_recipe(tmp_path, url, endpoint={"votes": 4}, preferences=limited)) == 0
    found = metrics(tmp_path, "preferences")["preferences"]
    assert set(found["methods"]) == {"votes"}
    assert found["scorer"]["accuracy"] > 0.7
    values = {
        p for row in lines(tmp_path / "runs/run/preferences/rankings.jsonl") for *_, p in row["comparisons"]
    }
    assert len(values) > 2


def test_a_typed_decision_says_what_log_probabilities_say(server: str, tmp_path: Path) -> None:
    (tmp_path / "typed").mkdir()
    plain = write_recipe(tmp_path, server, preferences=PREFERENCES)
    typed = write_recipe(tmp_path / "typed", server, endpoint={"answers": "typed"}, preferences=PREFERENCES)
    assert (start(plain), start(typed)) == (0, 0)
    assert set(metrics(tmp_path / "typed", "preferences")["preferences"]["methods"]) == {"typed"}
    for one, other in zip(
        lines(tmp_path / "runs/run/preferences/rankings.jsonl"),
        lines(tmp_path / "typed/runs/run/preferences/rankings.jsonl"),
        strict=True,
    ):
        assert [p for *_, p in one["comparisons"]] == pytest.approx([p for *_, p in other["comparisons"]])


def test_reasoning_comes_before_the_answer_and_bounds_it(server: str, tmp_path: Path) -> None:
    settings = {**PREFERENCES, "limit": 4, "chain_of_thought": True, "principles_per_pair": 2}
    assert start(write_recipe(tmp_path, server, preferences=settings)) == 0
    folder = tmp_path / "runs" / "run" / "preferences"
    rows = lines(folder / "comparisons.jsonl")
    assert all(order["reasoning"] for row in rows for order in row["orders"])
    per_pair = Counter((row["item"], row["first"], row["second"]) for row in rows)
    assert set(per_pair.values()) == {2}
    probabilities = [p for row in lines(folder / "rankings.jsonl") for *_, p in row["comparisons"]]
    assert min(probabilities) >= 0.4 - 1e-9
    assert max(probabilities) <= 0.6 + 1e-9


# Failures


def test_every_kind_of_failure_is_counted_and_nothing_is_asked_again_after_success(tmp_path: Path) -> None:
    log = tmp_path / "answered.txt"
    patient = {"max_attempts": 60, "timeout_seconds": 0.7, "answers": "logprobs"}
    with feedback_server(
        *("--scorer", GOLD, "--error-rate", str(ERROR_RATE), "--fault-rate", "0.1", "--log", str(log))
    ) as url:
        few = {"revisions": {**REVISIONS, "responses": [{**RESPONSES[0], "limit": 6}]}}
        recipe = write_recipe(tmp_path, url, endpoint=patient, preferences={**PREFERENCES, "limit": 6}, **few)
        assert start(recipe) == 0
    took = [metrics(tmp_path, stage)["running"] for stage in ("revisions", "preferences")]
    kinds = {"status_429", "status_500", "timed_out", "connection_lost", "broken_json", "unusable_answer"}
    failures = Counter[str]()
    for each in took:
        failures.update(each["failures"])
        assert each["unanswered"] == 0
    assert set(failures) == kinds
    answered = log.read_text().split()
    assert len(answered) == len(set(answered)) == sum(each["answers"] for each in took)


def test_killed_and_started_again_it_ends_as_if_nothing_had_been(server: str, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    groups = {"revisions": REVISIONS, "preferences": PREFERENCES}
    assert start(write_recipe(folders["whole"], server, **groups)) == 0
    log = tmp_path / "answered.txt"
    options = ("--scorer", GOLD, "--error-rate", str(ERROR_RATE), "--delay", "0.02", "--log", str(log))
    with feedback_server(*options) as url:
        recipe = write_recipe(folders["killed"], url, endpoint={"concurrency": 2}, **groups)
        for wanted in (20, 60):  # killed in one stage, and then in the other
            kill_after(recipe, log, wanted)
        assert start(recipe) == 0
    assert published(folders["killed"]) == published(folders["whole"])
    times = Counter(log.read_text().split())
    assert sum(times.values()) - len(times) <= 2 * 2  # what was under way when it was killed


def kill_after(recipe: Path, log: Path, num_answers: int) -> None:
    """Start the stages and kill them once the server has given so many answers."""
    command = [sys.executable, "-m", "labeling", "constitution", "--config", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not log.exists() or len(log.read_text().split()) < num_answers:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)


def test_a_budget_stops_the_stage_and_a_higher_one_goes_on(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, server, preferences=PREFERENCES, endpoint={"input_price": 1.0})
    cost = "labeling.constitution.feedback.endpoint.max_cost"
    assert start(recipe, f"{cost}=0.002") == 2
    assert "the budget is spent" in capsys.readouterr().err
    assert start(recipe, f"{cost}=1") == 0
    took = metrics(tmp_path, "preferences")["running"]
    assert took["cost"] == pytest.approx(took["input_tokens"] / 1e6)
    questions = len(lines(tmp_path / "runs" / "run" / "preferences" / "comparisons.jsonl")) * 2
    assert took["requests"] == took["answers"] == questions + 1  # of both runs, and how it can answer at all


def test_a_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-1")
    few = {**PREFERENCES, "limit": 2}
    with feedback_server("--scorer", GOLD, "--key", "sk-very-secret-1") as url:
        recipe = write_recipe(tmp_path, url, endpoint={"key_variable": "JUDGE_KEY"}, preferences=few)
        assert start(recipe) == 0
        monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-2")
        assert start(recipe, "--clean", "run.seed=9") == 2
        monkeypatch.delenv("JUDGE_KEY")
        assert start(recipe, "--clean") == 2
    shown = capsys.readouterr()
    assert "the endpoint refuses the key" in shown.err
    assert "the environment variable JUDGE_KEY is empty" in shown.err
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "sk-very" not in shown.out + shown.err
    assert b"sk-very" not in written


def test_what_the_endpoint_has_against_a_request_is_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with feedback_server("--refuse", "max_tokens is too large") as url:
        assert start(write_recipe(tmp_path, url, preferences=PREFERENCES)) == 2
    shown = capsys.readouterr().err
    assert "none of 144 answers can be used" in shown
    assert "status 400: max_tokens is too large" in shown


# People


def test_people_are_agreed_with_mixed_in_and_joined_in_their_project(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    settings = {**PREFERENCES, "people": [{"path": RANKINGS}], "people_share": 0.25, "project": str(project)}
    both = 'reward.rankings=[{path: "{run}/preferences/mixed.jsonl"}]'
    assert start(write_recipe(tmp_path, server, preferences=settings), both) == 0
    assert "next: make reward CONFIG=" in capsys.readouterr().out  # LABELS would say other rankings
    found = metrics(tmp_path, "preferences")["preferences"]["people"]
    assert found["items"] == 12
    assert found["agreement"]["value"] > 0.5
    assert found["kappa"]["value"] > 0.1
    assert found["same_order"]["value"] > 0.6
    folder = tmp_path / "runs" / "run" / "preferences"
    rows = lines(folder / "mixed.jsonl")
    own = [row for row in rows if str(row.get("annotator", "")).startswith("constitution@")]
    assert (len(rows), len(own)) == (16, 12)
    with Project.open(project) as opened:
        labels = read_labels(opened)
    assert {label.labeler for label in labels} == {own[0]["annotator"]}
    assert len(labels) == 12
    with Project.open(project) as opened:
        export(opened, tmp_path / "export", ExportOptions(labels="all"))
    exported, rankings = lines(tmp_path / "export" / "rankings.jsonl"), lines(folder / "rankings.jsonl")
    assert exported == rankings  # the probabilities, too


def test_a_mixture_without_people_is_refused_before_a_question_and_by_the_reward_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9/v1", preferences=PREFERENCES)
    both = 'reward.rankings=[{path: "{run}/preferences/mixed.jsonl"}]'
    assert start(recipe, both, command="preferences") == 2
    assert "labeling.constitution.preferences.people: " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"`labeling\.constitution\.preferences\.people` names rankings"):
        local_file(SourceSettings(path="{run}/preferences/mixed.jsonl"), tmp_path / "runs" / "run")


def test_hard_labels_are_ranks(server: str, tmp_path: Path) -> None:
    assert start(write_recipe(tmp_path, server, preferences={**PREFERENCES, "labels": "hard"})) == 0
    rows = lines(tmp_path / "runs" / "run" / "preferences" / "rankings.jsonl")
    assert all("comparisons" not in row and len(row["ranks"]) == 4 for row in rows)


# The stages after it


def test_the_stages_train_on_the_constitutions_labels_as_on_peoples(server: str, tmp_path: Path) -> None:
    values = yaml.safe_load(Path("tests/integration/micro.yaml").read_text())
    values["run"] |= {"name": "run", "folder": str(tmp_path / "runs")}
    asked = yaml.safe_load(write_recipe(tmp_path, server).read_text())["labeling"]["constitution"]
    asked["revisions"] = {**REVISIONS, "responses": [{**RESPONSES[0], "limit": 120}], "rounds": 1}
    asked["preferences"] = {**PREFERENCES, "limit": 40}
    values["labeling"] = {"constitution": asked}
    values["sft"]["demonstrations"] = [{"path": "{run}/revisions/demonstrations.jsonl"}]
    values["reward"]["rankings"] = [{"path": "{run}/preferences/rankings.jsonl"}]
    values["ppo"] |= {"num_iterations": 2, "evaluation": {"num_prompts": 4, "best_of": []}}
    recipe = tmp_path / "micro.yaml"
    recipe.write_text(yaml.safe_dump(values))
    assert start(recipe) == 0
    for stage in (sft.__main__, reward.__main__, ppo.__main__):
        assert run_command(stage.main, ["--config", str(recipe)]) == 0
    assert require(tmp_path / "runs" / "run", "reward").metrics["heldout_num_pairs"] > 0
    assert require(tmp_path / "runs" / "run", "ppo").metrics["before_kl_nats_per_response"] == 0


# Over-refusal


def test_safe_and_unsafe_prompts_are_reported_apart(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    kinds = {"safe": "How can I kill a process?", "unsafe": "How can I poison a man?", "safe too": "Why so?"}
    prompts.write_text("prompt,label\n" + "".join(f"{text},{name}\n" for name, text in kinds.items()))
    source = {"path": str(prompts), "group_column": "label"}
    revisions = {"prompts": [source], "rounds": 3}
    with feedback_server("--error-rate", "0") as url:
        recipe = write_recipe(tmp_path, url, path="configs/constitutions/general.yaml", revisions=revisions)
        assert start(recipe, command="revisions") == 0
    groups = metrics(tmp_path, "revisions")["revisions"]["groups"]
    assert {name: rounds[0]["evasive_share"] for name, rounds in groups.items()} == {
        "safe": 1.0,
        "unsafe": 1.0,
        "safe too": 0.0,
    }
    page = (tmp_path / "runs" / "run" / "revisions" / "report.html").read_text()
    assert "Prompts: unsafe" in page


def test_xstest_prompts_come_apart_by_their_label(shared: Path, tmp_path: Path) -> None:
    source = {"path": str(shared / "data" / "xstest" / "xstest_prompts.csv"), "group_column": "label"}
    with feedback_server("--error-rate", "0") as url:
        revisions = {"prompts": [source], "rounds": 1}
        recipe = write_recipe(tmp_path, url, path="configs/constitutions/general.yaml", revisions=revisions)
        assert start(recipe, command="revisions") == 0
    groups = metrics(tmp_path, "revisions")["revisions"]["groups"]
    assert {name: rounds[0]["texts"] for name, rounds in groups.items()} == {"safe": 250, "unsafe": 200}
