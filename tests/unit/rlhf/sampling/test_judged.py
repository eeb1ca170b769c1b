"""A response that a stop string ended is judged as the text before it, ended as every demonstration is."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.model.chat import decode_completion, encode_completion
from rlhf.sampling.judged import judged_responses, stopped_rows
from rlhf.sampling.rollouts import Rollouts, from_lists, responses_text
from rlhf.settings.groups import SamplingSettings
from tests.unit.rlhf.model import chat_tokenizers

PROMPT = "\n\nHuman: hi there\n\nAssistant:"
TEXT = " ok / yes the cat"
STOP = "\n\nHuman:"
SETTINGS = SamplingSettings(stop=[STOP])
EOS, OTHER_EOS = 2, 3


def backbone_with(tokenizer: Any, *eos: int) -> Any:
    """What judging needs of a backbone."""
    return SimpleNamespace(tokenizer=tokenizer, eos_ids=eos, pad_id=0, device=torch.device("cpu"))


def drawn(backbone: Any, prompt: list[int], *responses: list[int]) -> Rollouts:
    """Responses that all ended by themselves."""
    rollouts = from_lists([prompt] * len(responses), responses, backbone)
    return replace(rollouts, ended_B=torch.ones(len(responses), dtype=torch.bool))


@pytest.fixture(params=[chat_tokenizers.byte_level, chat_tokenizers.llama_2])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text after the prompt, without an EOS."""
    return encode_completion(tokenizer, PROMPT, text, prompt_ids=encode(tokenizer, PROMPT), eos=[EOS])[:-1]


@pytest.mark.parametrize("behind", ["", " and", " the fox jumps\n"])
def test_the_text_before_the_stop_is_judged_with_an_eos(tokenizer: Any, behind: str) -> None:
    backbone = backbone_with(tokenizer, EOS)
    prompt = encode(tokenizer, PROMPT)
    rollouts = drawn(backbone, prompt, answer(tokenizer, TEXT + STOP + behind), [5, EOS])
    assert stopped_rows(backbone, rollouts) == [0]
    stopped, ended = judged_responses(backbone, rollouts, SETTINGS)
    assert stopped[-1] == EOS
    text = responses_text(backbone, rollouts, SETTINGS)[0]
    assert decode_completion(tokenizer, prompt, stopped[:-1]) == text == TEXT
    assert ended == [5, EOS]


def test_a_token_that_holds_the_beginning_of_the_stop_is_divided(tokenizer: Any) -> None:
    backbone = backbone_with(tokenizer, EOS)
    prompt = encode(tokenizer, PROMPT)
    response = answer(tokenizer, TEXT)
    for start in range(len(TEXT)):
        settings = SamplingSettings(stop=[TEXT[start:]])
        judged = judged_responses(backbone, drawn(backbone, prompt, response), settings)[0]
        before = TEXT[: TEXT.index(TEXT[start:])]
        assert decode_completion(tokenizer, prompt, judged[:-1]) == before
        # What was drawn before the stop stays as it was drawn.
        lengths = [len(decode_completion(tokenizer, prompt, response[:k])) for k in range(len(response))]
        num_kept = sum(length <= len(before) for length in lengths) - 1
        assert judged[:num_kept] == response[:num_kept]


def test_a_response_that_is_nothing_but_the_stop_is_judged_as_an_empty_one(tokenizer: Any) -> None:
    backbone = backbone_with(tokenizer, EOS)
    prompt = encode(tokenizer, PROMPT)
    response = answer(tokenizer, STOP)
    assert judged_responses(backbone, drawn(backbone, prompt, response), SETTINGS) == [[EOS]]


def test_an_answer_to_a_conversation_ends_as_the_template_ends_turns(tokenizer: Any) -> None:
    backbone = backbone_with(tokenizer, EOS, OTHER_EOS)
    prompt = [*encode(tokenizer, "hi there"), OTHER_EOS, *encode(tokenizer, "ok")]
    response = answer(tokenizer, STOP)
    assert judged_responses(backbone, drawn(backbone, prompt, response), SETTINGS)[0][-1] == OTHER_EOS


def test_a_response_that_ran_full_is_judged_as_it_stands(tokenizer: Any) -> None:
    backbone = backbone_with(tokenizer, EOS)
    prompt = encode(tokenizer, PROMPT)
    rollouts = from_lists([prompt], [encode(tokenizer, "ok yes")], backbone)
    assert judged_responses(backbone, rollouts, SETTINGS) == [encode(tokenizer, "ok yes")]
