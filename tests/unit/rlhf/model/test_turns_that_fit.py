"""`truncate_left` of conversations and transcripts: whole turns go, the system message stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.messages import with_tools
from rlhf.data.records import Message, Turns
from rlhf.model.chat import encode_prompt
from rlhf.model.fitting import fit_prompt
from rlhf.settings.chat_templates import resolve_chat_template
from tests.unit.rlhf.model.chat_tokenizers import byte_level

SYSTEM = Message("system", "Be kind.")
ROLES = st.sampled_from(["user", "assistant", "tool"])


def tokenizer_of(name: str = "zephyr") -> object:
    tokenizer = byte_level()
    tokenizer.chat_template = resolve_chat_template(name, setting="model.chat_template")
    return tokenizer


@given(
    st.lists(st.builds(Message, ROLES, st.text("abc ", min_size=1, max_size=9)), min_size=1, max_size=7),
    st.booleans(),
    st.integers(5, 200),
)
def test_what_is_left_begins_with_the_system_message_and_a_whole_user_turn(
    turns: list[Message], has_system: bool, room: int
) -> None:
    tokenizer = tokenizer_of()
    head: Turns = (SYSTEM,) if has_system else ()
    prompt = (*head, *turns)
    fitted = fit_prompt(tokenizer, prompt, 3, room, "truncate_left")
    if fitted.outcome == "kept":
        assert fitted.ids == encode_prompt(tokenizer, prompt)
        return
    starts = [n for n, turn in enumerate(turns) if n and turn.role == "user"]
    shorter = [(*head, *turns[n:]) for n in starts]
    fitting = [each for each in shorter if len(encode_prompt(tokenizer, each)) + 3 <= room]
    if fitted.outcome == "dropped":
        assert (fitted.ids, fitting) == (None, [])
    else:
        assert fitted.prompt == fitting[0]
        assert fitted.ids == encode_prompt(tokenizer, fitting[0])


def test_tools_stay_when_the_message_that_held_them_goes() -> None:
    tokenizer = tokenizer_of("qwen3")
    turns = (Message("user", "a" * 200), Message("assistant", "b"), Message("user", "c"))
    offered = with_tools(turns, [{"name": "weather"}])
    room = len(encode_prompt(tokenizer, with_tools(turns[2:], [{"name": "weather"}])))
    fitted = fit_prompt(tokenizer, offered, 0, room, "truncate_left")
    assert fitted.prompt == with_tools(turns[2:], [{"name": "weather"}])


def test_a_transcript_loses_whole_turns_and_a_plain_text_loses_tokens() -> None:
    tokenizer = tokenizer_of()
    last = "\n\nHuman: b\n\nAssistant:"
    talk = f"\n\nHuman: {'a' * 99}\n\nAssistant: yes{last}"
    room = len(encode_prompt(tokenizer, last)) + 5
    assert fit_prompt(tokenizer, talk, 5, room, "truncate_left").prompt == last
    assert fit_prompt(tokenizer, talk, 5, room - 1, "truncate_left").ids is None
    plain = fit_prompt(tokenizer, "abc" * 50, 5, 10, "truncate_left")
    assert plain.ids == encode_prompt(tokenizer, "abc" * 50)[-5:]


@pytest.mark.parametrize("policy", ["drop", "truncate_left"])
def test_a_last_turn_that_is_too_long_is_left_out(policy: str) -> None:
    prompt = (SYSTEM, Message("user", "long " * 50))
    fitted = fit_prompt(tokenizer_of(), prompt, 5, 40, policy)  # type: ignore[arg-type]
    assert (fitted.ids, fitted.outcome) == (None, "dropped")
