from typing import Literal

import pytest

from rlhf.data.counts import RecordCounts
from rlhf.data.records import Demonstration, Message, Prompt
from rlhf.errors import UserError
from rlhf.settings.groups import LengthSettings, ScratchSettings
from sft.data import Encoder, dataset, texts
from sft.scratch import train_tokenizer

RECORDS = [
    Demonstration(prompt=(Message("user", f"Question {i}?"),), completion=f"Answer {i}. " * i)
    for i in range(1, 9)
]
TOKENIZER = train_tokenizer(["Question 1? Answer 2."] * 5, ScratchSettings(vocab_size=330))
EOS = TOKENIZER.eos_token_id
Policy = Literal["error", "drop", "truncate_left"]


def encoder(max_tokens: int | None = None, policy: Policy = "error") -> Encoder:
    length = LengthSettings(max_tokens=max_tokens, over_length=policy)
    return Encoder(TOKENIZER, [EOS], length=length, context=256, counts=RecordCounts())


def test_the_mask_covers_the_completion_and_its_end_and_nothing_else() -> None:
    examples = encoder().encode(RECORDS)
    columns = dataset(examples)
    for record, ids, mask in zip(RECORDS, columns["input_ids"], columns["completion_mask"], strict=True):
        learned = [token for token, bit in zip(ids, mask, strict=True) if bit]
        assert TOKENIZER.decode(learned) == record.completion + TOKENIZER.eos_token
        assert mask == sorted(mask)
        assert learned[-1] == ids[-1] == EOS


def test_what_is_too_long_is_dropped_and_counted() -> None:
    all_examples = encoder().encode(RECORDS)
    limit = all_examples[4].num_tokens
    short = encoder(limit, "drop")
    kept = short.encode(RECORDS)
    assert [example.demonstration for example in kept] == RECORDS[:5]
    assert short.counts.dropped() == {f"longer than {limit} tokens": 3}
    assert short.counts.truncated() == 0


def test_truncation_takes_the_beginning_of_a_text_and_is_counted() -> None:
    record = Demonstration(prompt="Question 1? Question 2?", completion=" Answer 1.")
    whole = encoder().encode([record])[0]
    short = encoder(whole.num_tokens - 2, "truncate_left")
    (cut,) = short.encode([record])
    assert cut.completion_ids == whole.completion_ids
    assert cut.prompt_ids == [TOKENIZER.bos_token_id, *whole.prompt_ids[3:]]
    assert (short.counts.truncated(), short.counts.dropped()) == (1, {})


def test_truncation_takes_whole_turns_after_the_system_message_and_is_counted() -> None:
    old = (Message("user", "Question 1? " * 9), Message("assistant", "Answer 1."))
    system, last = Message("system", "Answer 2."), Message("user", "Question 2?")
    long = Demonstration(prompt=(system, *old, last), completion="Answer 3.")
    expected = encoder().encode([Demonstration(prompt=(system, last), completion="Answer 3.")])[0]
    for room in (expected.num_tokens, encoder().encode([long])[0].num_tokens - 1):
        short = encoder(room, "truncate_left")
        assert short.encode([long]) == [expected]
        assert (short.counts.truncated(), short.counts.dropped()) == (1, {})
    shorter = encoder(expected.num_tokens - 1, "truncate_left")
    assert shorter.encode([long]) == []
    assert (shorter.counts.truncated(), sum(shorter.counts.dropped().values())) == (0, 1)


def test_a_completion_is_never_cut() -> None:
    long = encoder().encode(RECORDS[-1:])[0]
    short = encoder(len(long.completion_ids), "truncate_left")
    assert short.encode(RECORDS[-1:]) == []
    assert sum(short.counts.dropped().values()) == 1


def test_policy_error_names_the_demonstration() -> None:
    with pytest.raises(UserError, match="Question 8"):
        encoder(encoder().encode(RECORDS)[6].num_tokens).encode(RECORDS)


def test_the_context_bounds_what_the_settings_allow() -> None:
    assert encoder(10_000).max_tokens == 256
    assert encoder(None).max_tokens == 256
    assert encoder(20).max_tokens == 20


def test_no_prompt_is_on_both_sides() -> None:
    twice = RECORDS + [Demonstration(prompt=record.prompt, completion="Other.") for record in RECORDS]
    split = encoder().split(twice, fraction=0.3, seed=0)
    sides = [{example.demonstration.prompt for example in side} for side in (split.train, split.held_out)]
    assert sides[0].isdisjoint(sides[1])
    assert len(split.train) + len(split.held_out) == len(twice)
    assert split.held_out


def test_a_tokenizer_from_scratch_sees_every_text() -> None:
    plain = Demonstration(prompt="A plain prompt", completion=" and its end")
    asked = Prompt(prompt=(Message("system", "Be kind."), Message("user", "Now?")))
    assert list(texts([plain], [asked])) == ["A plain prompt", " and its end", "Be kind.", "Now?"]
