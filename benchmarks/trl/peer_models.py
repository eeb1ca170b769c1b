"""The peer's models, from what our stages have published: a merged reward, and a value."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification

from reward.model import RewardCard


def reward_model(run_folder: Path) -> Any:
    """A full sequence-classification model with the adapter merged; its score is the normalized one."""
    model: Any = _with_adapter(run_folder, is_trainable=False).merge_and_unload()
    _normalize(model, run_folder)
    return model.requires_grad_(False).eval()


def value_model(run_folder: Path) -> Any:
    """A sequence-classification model of its own with the reward's adapter and head, both trainable."""
    # PEFT has put its layers into the model itself; the trainer wants that model and not PEFT's wrapper.
    model: Any = _with_adapter(run_folder, is_trainable=True).get_base_model()
    _normalize(model, run_folder)
    return model


def _with_adapter(run_folder: Path, *, is_trainable: bool) -> PeftModel:
    base = AutoModelForSequenceClassification.from_pretrained(
        run_folder / "sft" / "model", num_labels=1, dtype=torch.float32
    )
    return PeftModel.from_pretrained(base, str(run_folder / "reward" / "model"), is_trainable=is_trainable)


def _normalize(model: Any, run_folder: Path) -> None:
    """Give the score head the offset and spread of the reward's card, as weight and bias."""
    card = RewardCard.of(run_folder / "reward" / "model")
    raw: Any = model.score
    weight = getattr(raw, "modules_to_save", {"default": raw})["default"].weight.detach()
    score = nn.Linear(weight.shape[1], 1)
    with torch.no_grad():
        score.weight.copy_(weight / card.std)
        score.bias.fill_(-card.mean / card.std)
    model.score = score
