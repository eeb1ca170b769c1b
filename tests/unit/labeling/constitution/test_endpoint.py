"""An endpoint's odd replies, odd settings and budgets, over real HTTP."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from labeling.constitution.cache import Cache
from labeling.constitution.config import EndpointSettings
from labeling.constitution.feedback import Answer, Request
from labeling.constitution.served import ServedModel
from rlhf.data.records import Message
from rlhf.errors import UserError
from tests.support.judges import chat_server

TEXT = Request(messages=(Message("user", "Hello?"),), max_tokens=7, seed=1)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def said(logprob: object, **more: object) -> dict[str, Any]:
    logprobs = {"content": [{"token": "Hi", "logprob": logprob}]}
    return {"choices": [{"message": {"content": "Hi"}, "logprobs": logprobs}], **more}


@contextmanager
def serving(
    *replies: str, status: int = 200, seconds: float = 0.0
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these replies, the last one for ever; its URL, and the bodies that it gets."""
    bodies: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        text = replies[min(len(bodies), len(replies)) - 1]
        await asyncio.sleep(seconds)
        return web.Response(text=text, status=status, content_type="application/json")

    with chat_server(answer) as url:
        yield url, bodies


def ask(
    folder: Path, url: str, *, requests: Sequence[Request] = (TEXT,), **settings: object
) -> tuple[list[Answer | None], dict[str, int]]:
    chosen = EndpointSettings.model_validate(
        {"url": url, "model": "m", "backoff_seconds": 0.01, "max_attempts": 3, **settings}
    )
    with Cache(folder / "answers.sqlite", scope="test") as cache:
        return ServedModel(chosen, cache).ask(requests, "asking"), cache.counts()


@pytest.mark.parametrize("logprob", ["none", [1], {}, 10**400])
def test_a_log_probability_that_is_no_number_is_an_unusable_answer(tmp_path: Path, logprob: object) -> None:
    with serving(json.dumps(said(logprob)), json.dumps(said(-0.5))) as (url, _):
        [found], counts = ask(tmp_path, url)
    assert found is not None
    assert counts["unusable_answer"] == 1


def test_a_log_probability_of_minus_infinity_is_none_and_the_text_stays(tmp_path: Path) -> None:
    with serving(json.dumps(said(-float("inf")))) as (url, _):
        [found], _ = ask(tmp_path, url)
    assert getattr(found, "text", None) == "Hi"
    assert getattr(found, "logprob", 0) is None


@pytest.mark.parametrize("budget", [{"max_tokens": 10}, {"max_cost": 1, "input_price": 1}])
def test_a_budget_that_replies_do_not_allow_to_keep_is_refused(
    tmp_path: Path, budget: dict[str, Any]
) -> None:
    with serving(json.dumps(said(-0.5))) as (url, bodies):
        with pytest.raises(UserError, match=f"so `{next(iter(budget))}` cannot be kept"):
            ask(tmp_path, url, **budget)
        ask(tmp_path, url)  # what it has answered is kept
        assert len(bodies) == 1
    with serving(json.dumps(said(-0.5, usage=USAGE))) as (url, _):
        _, counts = ask(tmp_path / "told", url, **budget)
    assert counts["input_tokens"] == 3


def test_what_is_under_way_when_the_budget_is_spent_is_kept_and_not_paid_for_again(tmp_path: Path) -> None:
    requests = [Request(messages=(Message("user", f"Hello {n}?"),), max_tokens=7, seed=n) for n in range(12)]
    with serving(json.dumps(said(-0.5, usage=USAGE)), seconds=0.2) as (url, bodies):
        with pytest.raises(UserError, match="the budget is spent"):
            ask(tmp_path, url, requests=requests, max_tokens=5, concurrency=4)
        assert len(bodies) == 4
        _, counts = ask(tmp_path, url, requests=requests)
    assert len(bodies) == counts["answers"] == 12


def test_replies_that_claim_to_have_taken_less_than_nothing_do_not_fill_the_budget(tmp_path: Path) -> None:
    with serving(json.dumps(said(-0.5, usage={"prompt_tokens": -5, "completion_tokens": 10**30}))) as (
        url,
        _,
    ):
        _, counts = ask(tmp_path, url)
    assert counts.get("input_tokens", 0) == counts.get("output_tokens", 0) == 0


def test_half_a_surrogate_pair_in_a_reply_becomes_a_character_that_files_take(tmp_path: Path) -> None:
    with serving(json.dumps({"choices": [{"message": {"content": "so \ud800 so \ud83d\ude00"}}]})) as (
        url,
        _,
    ):
        [found], _ = ask(tmp_path, url)
    assert getattr(found, "text", None) == "so \ufffd so \U0001f600"


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{"token": "A"}]}]
)
def test_without_likeliest_tokens_in_the_first_reply_choices_are_read_from_votes(
    tmp_path: Path, logprobs: object
) -> None:
    choice = Request(messages=(Message("user", "A or B?"),), options=("A", "B"), seed=1)
    with serving(json.dumps({"choices": [{"message": {"content": "A"}, "logprobs": logprobs}]})) as (
        url,
        bodies,
    ):
        [found], _ = ask(tmp_path, url, requests=[choice], votes=4)
    assert getattr(found, "method", None) == "votes"
    assert len(bodies) == 1 + 4


def test_what_a_refusal_says_can_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    with serving("\x1b[2Jno\u202e", status=403) as (url, _), pytest.raises(UserError) as refused:
        ask(tmp_path, url)
    assert "\x1b" not in str(refused.value)
    assert "\u202e" not in str(refused.value)


def test_a_password_in_the_url_is_refused() -> None:
    with pytest.raises(ValidationError, match="settings are written to files: use `key_variable`"):
        EndpointSettings.model_validate({"url": "http://user:secret@x/v1", "model": "m"})


def test_a_cost_that_nothing_has_is_refused() -> None:
    with pytest.raises(ValidationError, match="`max_cost` needs `input_price` or `output_price`"):
        EndpointSettings.model_validate({"url": "http://x/v1", "model": "m", "max_cost": 5})


@pytest.mark.parametrize("url", ["http://host:abc/v1", "http://:80/v1", "http://host:99999/v1"])
def test_a_url_that_is_none_is_said_without_another_attempt(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="this is no URL of an endpoint"):
        ask(tmp_path, url)


def test_a_key_with_a_line_break_inside_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-one\nsk-two")
    with pytest.raises(UserError, match="JUDGE_KEY holds more than a key") as refused:
        ask(tmp_path, "http://127.0.0.1:9/v1", key_variable="JUDGE_KEY")
    assert "sk-" not in str(refused.value)


def test_the_way_out_is_named_where_log_probabilities_of_texts_are_refused(tmp_path: Path) -> None:
    with serving("no logprobs here", status=400) as (url, _):
        with pytest.raises(UserError, match="set `text_logprobs: false`"):
            ask(tmp_path, url)
        with pytest.raises(UserError, match="none of 1 answers") as refused:
            ask(tmp_path, url, text_logprobs=False)
    assert "text_logprobs" not in str(refused.value)


def test_the_longest_answer_goes_by_the_name_that_the_endpoint_knows(tmp_path: Path) -> None:
    with serving(json.dumps(said(-0.5))) as (url, bodies):
        ask(tmp_path, url, length_field="max_completion_tokens")
    assert bodies[0]["max_completion_tokens"] == TEXT.max_tokens
    assert "max_tokens" not in bodies[0]
