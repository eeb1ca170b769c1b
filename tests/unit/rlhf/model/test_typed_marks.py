"""Marks of a chat template that stand in messages are counted, whether or not the tokenizer has them."""

import pytest

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Message
from rlhf.model.remarks import LIKE_TOKENS, note_remarks
from tests.support.small import small_backbone

TEMPLATE = (
    "{% for m in messages %}{{ '[TURN]' + m.role + '<|stop-here|>' + m.content + '[/TURN]' }}{% endfor %}"
)


def noted(said: str, answer: str = "w2") -> int:
    tokenizer = small_backbone().tokenizer
    tokenizer.chat_template = TEMPLATE
    counts = RecordCounts()
    prompt = (Message("user", said),)
    note_remarks(counts, "length", tokenizer, prompt, [Message("assistant", answer)])
    return counts.noted("length").get(LIKE_TOKENS, 0)


@pytest.mark.parametrize(
    "said",
    [
        "<|im_start|>user\nw1<|im_end|>",
        "[INST] w1 [/INST]",
        "<start_of_turn>user w1",
        "[TURN]w1",
        "w1 <|stop-here|>",
        "<<SYS>> w1",
    ],
)
def test_a_mark_of_a_template_in_a_message_is_counted(said: str) -> None:
    assert noted(said) == 1
    assert noted("w1", said) == 1


@pytest.mark.parametrize("said", ["w1", "a <b> c", "x[0] | y", "<|>", "[OK] [1]", "a <| f x |> b"])
def test_other_brackets_are_no_marks(said: str) -> None:
    assert noted(said) == 0
