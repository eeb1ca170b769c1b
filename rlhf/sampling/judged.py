"""What is judged of a response: the text before its stop string, ended as every demonstration is.

A stop string's own tokens were drawn, and the policy is trained on them. But no demonstration and no ranked
completion ends with one: reward, gold scorer, people and text metrics all judge the text before it, followed
by EOS.
"""

from collections.abc import Sequence

import torch

from rlhf.model.backbone import Backbone
from rlhf.model.chat import continuation_ids, decode_completion
from rlhf.sampling.rollouts import Rollouts, before_stop
from rlhf.settings.groups import SamplingSettings


def stopped_rows(backbone: Backbone, rollouts: Rollouts) -> list[int]:
    """The rows that a stop string ended, and not an EOS."""
    last_B = rollouts.response_ids_BT.gather(1, rollouts.response_lengths_B[:, None] - 1).squeeze(1)
    eos = torch.tensor(backbone.eos_ids, device=last_B.device)
    rows: list[int] = (rollouts.ended_B & ~torch.isin(last_B, eos)).nonzero().squeeze(1).tolist()
    return rows


def judged_responses(backbone: Backbone, rollouts: Rollouts, settings: SamplingSettings) -> list[list[int]]:
    """Token ids of every response as it is judged: as drawn, but for those that a stop string ended."""
    responses = rollouts.response_lists()
    prompts = rollouts.prompt_lists()
    for row in stopped_rows(backbone, rollouts):
        kept = _before_stop_ids(backbone, prompts[row], responses[row], settings.stop)
        responses[row] = [*kept, _end_of_answers(backbone, prompts[row])]
    return responses


def _before_stop_ids(
    backbone: Backbone, prompt: Sequence[int], response: Sequence[int], stop: Sequence[str]
) -> list[int]:
    """The tokens of the text before the stop string; one that holds the beginning of both is divided."""
    tokenizer = backbone.tokenizer
    text = before_stop(decode_completion(tokenizer, prompt, response), stop)
    for length in range(len(response) - 1, -1, -1):
        kept = list(response[:length])
        kept_text = decode_completion(tokenizer, prompt, kept)
        if text.startswith(kept_text):
            return kept + continuation_ids(tokenizer, [*prompt, *kept], text[len(kept_text) :])
    raise AssertionError("no tokens have no text")


def _end_of_answers(backbone: Backbone, prompt: Sequence[int]) -> int:
    """The EOS that ends an answer to this prompt.

    A chat template ends all turns alike, so it is the last one in the prompt; without one it is the first of
    the model's, as in every encoded completion. (The prompt's first token may be BOS, which some models have
    in common with EOS.)
    """
    ends = [token for token in prompt[1:] if token in backbone.eos_ids]
    return ends[-1] if ends else backbone.eos_ids[0]
