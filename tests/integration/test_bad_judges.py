"""Judges that reason, refuse, break off or say nothing, over real HTTP: what becomes of their replies."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeling.__main__ import main
from rlhf.commands.process import run_command
from tests.support.feedback import lines, write_recipe
from tests.support.judges import (
    Json,
    better,
    coin,
    is_choice,
    is_revision,
    said,
    serving,
    with_logprobs,
)

RANKINGS = "configs/tiny/data/rankings.jsonl"
PREFERENCES = {"items": RANKINGS, "limit": 8}
RESPONSES = [{"path": "configs/tiny/data/demonstrations.jsonl", "limit": 8}]
REVISIONS = {"responses": RESPONSES, "rounds": 1}
VOTES = {"answers": "votes", "votes": 3, "vote_tokens": 500}
THOUGHT = "A user asks, and B may be too long. I lean to A, then to B."


@pytest.fixture(autouse=True)
def _in_the_checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def start(recipe: Path, *arguments: str, command: str) -> int:
    return run_command(main, [command, "--config", str(recipe), *arguments])


def published(folder: Path, name: str) -> list[dict[str, Any]]:
    return lines(folder / "runs" / "run" / name)


def report(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / "run" / stage / "report.json").read_text())
    return found


# Reasoning before the answer

HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>"
FORMS: dict[str, Callable[[str], Json]] = {
    "think": lambda answer: said(f"<think>\n{THOUGHT}\n</think>\n\n{answer}"),
    "no opening": lambda answer: said(f"{THOUGHT}\n</think>\n\n{answer}"),
    "thought": lambda answer: said(f"<thought>{THOUGHT}</thought>{answer}"),
    "reasoning": lambda answer: said(f"<reasoning>{THOUGHT}</reasoning>\n{answer}"),
    "channels": lambda answer: said(HARMONY.format(THOUGHT, answer)),
    "bare channels": lambda answer: said(f"analysis{THOUGHT}assistantfinal{answer}"),
    "brackets": lambda answer: said(f"[THINK]{THOUGHT}[/THINK]{answer}"),
    "field": lambda answer: said(answer, reasoning_content=THOUGHT),
    "parts": lambda answer: said(
        [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": answer}]
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_reasoning_is_neither_a_vote_nor_a_revision(form: str, tmp_path: Path) -> None:
    def judge(body: Json) -> Json:
        if is_choice(body):
            return FORMS[form](better(body))
        return FORMS[form](f"A better text, {len(json.dumps(body)) % 97}.")

    with serving(judge) as (url, _):
        recipe = write_recipe(tmp_path, url, endpoint=VOTES, preferences=PREFERENCES, revisions=REVISIONS)
        assert start(recipe, command="constitution") == 0
    for row in published(tmp_path, "preferences/rankings.jsonl"):
        for i, j, probability in row["comparisons"]:
            first, second = ((len(row["completions"][n]), row["completions"][n]) for n in (i, j))
            assert (probability > 0.5) == (first > second)
    for row in published(tmp_path, "revisions/demonstrations.jsonl"):
        assert row["completion"].strip().startswith("A better text")
    running = report(tmp_path, "revisions")["running"]
    assert running["reasoned"] == running["answers"]


@pytest.mark.parametrize(
    "choice",
    [
        said("<think>\nA user asks", finish="length"),
        said("Okay, so A", finish="length"),
        said(None, finish="length", reasoning_content="A user asks"),
        said("<|channel|>analysis<|message|>A user", finish="length"),
    ],
)
def test_votes_that_have_no_room_for_reasoning_are_said_before_they_are_paid_for(
    choice: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda body: choice) as (url, bodies):
        recipe = write_recipe(tmp_path, url, endpoint={"votes": 4}, preferences=PREFERENCES)
        assert start(recipe, command="preferences") == 2
    shown = capsys.readouterr()
    assert "8 tokens are not enough" in shown.err
    assert "vote_tokens" in shown.err
    assert "next:" not in shown.out
    assert len(bodies) == 1 + 4


def test_a_first_token_that_begins_a_train_of_thought_is_no_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(body: Json) -> Json:
        if body.get("logprobs"):
            return with_logprobs(said("<think>", finish="length"), {"<think>": -0.001, "A": -9.0, "B": -9.5})
        return said(f"<think>{THOUGHT}</think>{better(body)}")

    with serving(judge) as (url, _):
        few = {**PREFERENCES, "limit": 3}
        recipe = write_recipe(tmp_path, url, endpoint={"vote_tokens": 500}, preferences=few)
        assert start(recipe, command="preferences") == 0
        assert set(report(tmp_path, "preferences")["preferences"]["methods"]) == {"votes"}
        only = "labeling.constitution.feedback.endpoint.answers=logprobs"
        assert start(recipe, "--clean", only, command="preferences") == 2
    assert "answers: votes" in capsys.readouterr().err


# Refusals, and replies that were cut off


def test_refusals_and_cut_off_replies_become_no_demonstrations_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [
        said("A half of a text that", finish="length"),
        said("", refusal="I cannot revise this."),
        said("Something that a filter", finish="content_filter"),
        said("I'm sorry, but I can't help with that."),
        said("<think>It never ends", finish="stop"),
        said("I can't tell you that, but here is something else."),
    ]
    asked = Counter[str]()

    def judge(body: Json) -> Json:
        if not is_revision(body):
            return said(f"It should be {random.Random(json.dumps(body)).random()}.")
        asked["revisions"] += 1
        return kinds[(asked["revisions"] - 1) % len(kinds)]

    responses = [{"path": RESPONSES[0]["path"], "limit": 12}]
    with serving(judge) as (url, bodies):
        recipe = write_recipe(tmp_path, url, revisions={"responses": responses, "rounds": 1})
        assert start(recipe, command="revisions") == 0
    rows = published(tmp_path, "revisions/demonstrations.jsonl")
    assert {row["completion"].strip() for row in rows} == {
        "I can't tell you that, but here is something else."
    }
    assert len(bodies) == 24  # what was cut off or refused is not asked for ten times
    found = report(tmp_path, "revisions")
    assert found["revisions"]["left_out"] == {"revision cut_off": 4, "revision refused": 6}
    assert (found["running"]["cut_off"], found["running"]["refused"]) == (4, 4)
    record = published(tmp_path, "revisions/revisions.jsonl")
    assert "A half of a text that" in {
        row["rounds"][0].get("left_out", {}).get("text") for row in record
    }  # nothing is lost
    assert "left out: revision refused" in capsys.readouterr().out


def test_what_counts_as_a_refusal_is_the_recipes_to_say(tmp_path: Path) -> None:
    texts = iter(["Je ne peux pas.", "I'm sorry, but I can't.", "Bon.", "Bien."] * 5)

    def judge(body: Json) -> Json:
        return said(next(texts) if is_revision(body) else f"Hm {random.Random(json.dumps(body)).random()}")

    revisions = {**REVISIONS, "refusals": ["je ne peux"], "responses": [{**RESPONSES[0], "limit": 4}]}
    with serving(judge) as (url, _):
        recipe = write_recipe(tmp_path, url, endpoint={"concurrency": 1}, revisions=revisions)
        assert start(recipe, command="revisions") == 0
    rows = published(tmp_path, "revisions/demonstrations.jsonl")
    assert sorted(row["completion"].strip() for row in rows) == ["Bien.", "Bon.", "I'm sorry, but I can't."]


def test_if_every_reply_is_cut_off_the_room_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda body: said("<think>It never ends", finish="length")) as (url, bodies):
        recipe = write_recipe(tmp_path, url, revisions=REVISIONS)
        assert start(recipe, command="revisions") == 2
        assert len(bodies) == 8
    assert "8 were cut off" in capsys.readouterr().err


# Judges that say nothing


def always_a(body: Json) -> Json:
    """The letter A, and its log-probability if that is wanted."""
    choice = said("A")
    return with_logprobs(choice, {"A": -0.01, "B": -4.6}) if body.get("logprobs") else choice


@pytest.mark.parametrize("answers", ["logprobs", "votes", "auto"])
def test_an_endpoint_that_always_says_a_is_found_out_and_its_replies_are_kept(
    answers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = {"answers": answers, "votes": 3}
    with serving(always_a) as (url, _):
        recipe = write_recipe(tmp_path, url, endpoint=endpoint, preferences=PREFERENCES)
        assert start(recipe, command="preferences") == 2
    shown = capsys.readouterr()
    assert "the judge prefers nothing: 48 of 48 pairs" in shown.err
    assert "the response shown first was named 96 of 96 times" in shown.err
    assert "next:" not in shown.out
    assert not (tmp_path / "runs/run/preferences/rankings.jsonl").exists()
    gone = "labeling.constitution.feedback.endpoint.url=http://127.0.0.1:9/v1"  # nobody is asked again
    assert start(recipe, gone, "labeling.constitution.accept_any_judge=true", command="preferences") == 0
    shown = capsys.readouterr()
    assert "next:" not in shown.out
    assert "warning: preferences: the judge prefers nothing" in shown.err


def test_votes_in_which_the_order_has_no_part_are_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(coin) as (url, _):
        recipe = write_recipe(tmp_path, url, endpoint=VOTES, preferences=PREFERENCES)
        assert start(recipe, command="preferences") == 0
    shown = capsys.readouterr()
    assert "do not turn around with the order" in shown.err
    assert "next:" not in shown.out
    assert "if you have looked, and want to use them: make reward" in shown.out


def test_one_side_liked_by_nearly_the_same_log_odds_is_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(body: Json) -> Json:
        odds = 3 + random.Random(json.dumps(body)).gauss(0, 0.3)
        return with_logprobs(said("A"), {"A": -0.05, "B": -0.05 - odds})

    with serving(judge) as (url, _):
        recipe = write_recipe(tmp_path, url, endpoint={"answers": "logprobs"}, preferences=PREFERENCES)
        assert start(recipe, command="preferences") == 0
    shown = capsys.readouterr()
    assert "both orders name the same response for 0 of 48" in shown.err
    assert "next:" not in shown.out


def test_a_sound_judge_with_a_strong_bias_is_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(body: Json) -> Json:
        odds = 4 + (1 if better(body) == "A" else -1) + random.Random(json.dumps(body)).gauss(0, 0.3)
        return with_logprobs(said("A"), {"A": -0.05, "B": -0.05 - odds})

    with serving(judge) as (url, _):
        recipe = write_recipe(tmp_path, url, endpoint={"answers": "logprobs"}, preferences=PREFERENCES)
        assert start(recipe, command="preferences") == 0
    shown = capsys.readouterr()
    assert "warning" not in shown.err
    assert "next: make reward" in shown.out
    assert report(tmp_path, "preferences")["preferences"]["swap_correlation"] < -0.8


@pytest.mark.parametrize(
    ("revise", "what"),
    [
        (lambda body: said(response_in(body)), "all 8 revisions are the text before, unchanged"),
        (lambda body: said("Be kind."), "the revision is the same for 8 of 8 prompts (Be kind.)"),
    ],
)
def test_revisions_that_revise_nothing_are_found_out(
    revise: Callable[[Json], Json], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(body: Json) -> Json:
        if is_revision(body):
            return revise(body)
        return said(f"It should be {random.Random(json.dumps(body)).random()}.")

    with serving(judge) as (url, _):
        assert start(write_recipe(tmp_path, url, revisions=REVISIONS), command="revisions") == 2
    shown = capsys.readouterr()
    assert what in shown.err
    assert "accept_any_judge=true" in shown.err
    assert "next:" not in shown.out


def test_one_critique_for_all_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def judge(body: Json) -> Json:
        if not is_revision(body):
            return said("It could be better.")
        return said(f"A text for {response_in(body)[:20]}")

    with serving(judge) as (url, _):
        assert start(write_recipe(tmp_path, url, revisions=REVISIONS), command="revisions") == 0
    shown = capsys.readouterr()
    assert "the critique is the same for 8 of 8 prompts (It could be better.)" in shown.err
    assert "next: make sft" in shown.out


def response_in(body: Json) -> str:
    text: str = body["messages"][-3]["content"]
    return text.split("<response>\n")[1].split("\n</response>")[0]
