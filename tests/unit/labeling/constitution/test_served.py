"""How answers are read from what an endpoint sends, by hand."""

import json
import math
from typing import Any

import pytest

from labeling.constitution.served import from_votes, option_logprobs


def reply(*top: tuple[str, float]) -> dict[str, Any]:
    tokens = [{"token": token, "logprob": math.log(p) if p else -math.inf} for token, p in top]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": tokens}]}}]}


def test_spellings_of_an_option_count_together_and_other_tokens_not_at_all() -> None:
    found = option_logprobs(reply(("A", 0.3), (" A", 0.1), ("(B", 0.2), ("The", 0.3)), ("A", "B"))
    assert found is not None
    assert [math.exp(value) for value in found["logprobs"]] == pytest.approx([2 / 3, 1 / 3])
    assert found["mass"] == pytest.approx(0.6)


def test_an_option_that_is_not_among_the_likeliest_is_at_most_as_likely_as_the_last_of_them() -> None:
    found = option_logprobs(reply(("B", 0.9), ("The", 0.05), ("It", 0.01)), ("A", "B"))
    assert found is not None
    assert math.exp(found["logprobs"][0]) == pytest.approx(0.01 / 0.91)


def test_an_option_at_minus_infinity_is_as_unlikely_as_the_others_leave_room_for() -> None:
    found = option_logprobs(reply(("A", 0.75), ("B", 0.0), ("C", math.nan)), ("A", "B"))
    assert found is not None
    assert [math.exp(value) for value in found["logprobs"]] == pytest.approx([0.75, 0.25])
    json.dumps(found, allow_nan=False)
    sure = option_logprobs(reply(("A", 1.0)), ("A", "B"))
    assert sure is not None
    assert math.exp(sure["logprobs"][0]) == pytest.approx(1.0)
    assert option_logprobs(reply(("A", 0.0), ("B", 0.0)), ("A", "B")) is None


def test_without_any_option_there_is_no_answer() -> None:
    assert option_logprobs(reply(("C", 0.9), ("Both", 0.1)), ("A", "B")) is None


def test_votes_leave_the_option_that_got_none_a_chance() -> None:
    found = from_votes(["A"] * 7, ("A", "B"))
    assert found is not None
    assert [math.exp(value) for value in found.logprobs] == pytest.approx([7.5 / 8, 0.5 / 8])
    even = from_votes(["A", "B"], ("A", "B"))
    assert even is not None
    assert even.log_odds == 0
    assert from_votes([], ("A", "B")) is None
