"""Prompts for PPO: those that leave no room for a response."""

import json
from pathlib import Path
from typing import Any

import pytest

from ppo.config import PPOSettings
from ppo.data import Prompts, load_prompts
from rlhf.errors import UserError
from tests.support.small import small_backbone


def load(tmp_path: Path, **values: Any) -> Prompts:
    path = tmp_path / "prompts.jsonl"
    prompts = [f"w{i}" for i in range(20)] + [" ".join(f"w{i}" for i in range(30))]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings = PPOSettings.model_validate({"prompts": [{"path": str(path)}], **values})
    return load_prompts(small_backbone(), settings, seed=0, run_folder=tmp_path)


def test_a_prompt_that_leaves_no_room_is_named_with_every_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts\.jsonl, line 21: the prompt \(30\)") as caught:
        load(tmp_path, sampling={"max_response_tokens": 100})
    ways = ("ppo.length.over_length", "ppo.sampling.max_response_tokens", "sees more than 128 tokens")
    assert all(way in str(caught.value) for way in ways)


@pytest.mark.parametrize("policy", ["error", "drop", "truncate_left"])
def test_a_response_as_long_as_the_context_is_refused_whatever_the_policy(
    tmp_path: Path, policy: str
) -> None:
    with pytest.raises(UserError, match="leave no room for a prompt: the model's context is 128 tokens"):
        load(tmp_path, sampling={"max_response_tokens": 128}, length={"over_length": policy})
