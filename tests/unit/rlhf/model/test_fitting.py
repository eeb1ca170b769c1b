from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.errors import UserError
from rlhf.model.chat import check_room, fit, length_fix
from rlhf.settings.groups import LengthSettings, SamplingSettings

BOS = 1
POLICIES = st.sampled_from(["error", "drop", "truncate_left"])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 8), st.integers(1, 12), POLICIES)
def test_what_fits_stays_and_what_does_not_follows_the_policy(
    prompt: list[int], num_completion: int, room: int, policy: Literal["error", "drop", "truncate_left"]
) -> None:
    fits = len(prompt) + num_completion <= room
    if policy == "error" and not fits:
        with pytest.raises(UserError) as caught:
            fit(prompt, num_completion, room, policy, bos_token_id=BOS)
        assert f"need {len(prompt) + num_completion} tokens" in str(caught.value)
        assert f"room for {room}" in str(caught.value)
        return
    ids, outcome = fit(prompt, num_completion, room, policy, bos_token_id=BOS)
    if fits:
        assert (ids, outcome) == (prompt, "kept")
    elif ids is None:
        assert outcome == "dropped"
        assert policy == "drop" or num_completion + (prompt[0] == BOS) + 1 > room
    else:
        assert (policy, outcome) == ("truncate_left", "truncated")
        assert len(ids) + num_completion == room
        assert (ids[0] == BOS) or (prompt[0] != BOS)
        assert ids[-1] == prompt[-1]


def test_truncation_removes_the_oldest_tokens_and_keeps_a_leading_bos() -> None:
    assert fit([1, 5, 6, 7], 2, 5, "truncate_left", bos_token_id=1) == ([1, 6, 7], "truncated")
    assert fit([1, 5, 6, 7], 2, 5, "truncate_left") == ([5, 6, 7], "truncated")
    assert fit([4, 5, 6, 7], 2, 5, "truncate_left", bos_token_id=1) == ([5, 6, 7], "truncated")


def test_a_completion_that_leaves_the_prompt_no_token_is_dropped() -> None:
    assert fit([1, 5, 6], 4, 5, "truncate_left", bos_token_id=1) == (None, "dropped")
    assert fit([5, 6, 7], 4, 5, "truncate_left", bos_token_id=1) == ([7], "truncated")
    assert fit([5, 6], 5, 5, "truncate_left") == (None, "dropped")
    assert fit([5, 6], 9, 5, "truncate_left") == (None, "dropped")


def test_the_way_out_names_the_settings_of_the_stage_and_what_the_model_sees() -> None:
    short = LengthSettings(max_tokens=16)
    fix = length_fix("sft", short, context=128)
    assert "`sft.length.over_length`" in fix
    assert "raise `sft.length.max_tokens` (now 16; the model sees 128)" in fix
    sampling = length_fix("ppo", LengthSettings(), context=128, max_response_tokens=64)
    assert "lower `ppo.sampling.max_response_tokens` (now 64)" in sampling
    assert "take a model that sees more than 128 tokens" in sampling
    with pytest.raises(UserError, match=r"the prompt \(3\) and a response of the longest kind \(4\) need 7"):
        fit([1, 5, 6], 4, 6, "error", sampled=True)


@pytest.mark.parametrize(
    ("max_tokens", "context", "told"), [(None, 64, "context is 64"), (32, 99, "tokens` is 32")]
)
def test_a_response_must_leave_room_for_a_prompt(max_tokens: int | None, context: int, told: str) -> None:
    length = LengthSettings(max_tokens=max_tokens)
    limit = max_tokens or context
    check_room("ppo", length, SamplingSettings(max_response_tokens=limit - 1), context=context)
    with pytest.raises(UserError, match=r"^ppo\.sampling\.max_response_tokens: ") as caught:
        check_room("ppo", length, SamplingSettings(max_response_tokens=limit), context=context)
    assert told in str(caught.value)


def test_the_error_says_where_and_names_the_settings() -> None:
    with pytest.raises(UserError) as caught:
        fit([1, 5, 6, 7], 2, 5, "error", where="sft")
    assert str(caught.value).startswith(
        "sft: prompt (4) and completion (2) need 6 tokens, and there is room for 5\n"
    )
    assert "`over_length`" in str(caught.value)
    assert "`max_tokens`" in str(caught.value)
