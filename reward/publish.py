"""What the reward stage leaves behind: a plain PEFT folder that needs none of our code."""

from pathlib import Path

from reward.model import CARD_FILE, ROLE, RewardCard
from rlhf.model.backbone import Backbone

BASE_PATH = "sft/model"
"""Where the base is, seen from the run folder, which can be moved."""


def write_model(backbone: Backbone, card: RewardCard, folder: Path) -> None:
    """Write the adapter with its head, the tokenizer, `reward.json` and a README into `folder`."""
    backbone.export_adapter(ROLE, folder, task_type="SEQ_CLS", base_path=BASE_PATH, head=ROLE)
    (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _readme(card: RewardCard) -> str:
    ids = ", ".join(str(token) for token in card.eos_ids)
    return f"""\
---
library_name: peft
base_model: {BASE_PATH}
tags: [reward-model, lora]
---

# Reward model

A LoRA adapter with a scalar head on the run's SFT model. It opens in plain transformers and peft, from the
run folder (the one that holds `sft/` and `reward/`), wherever that is now:

```python
tokenizer = AutoTokenizer.from_pretrained("reward/model")
model = AutoPeftModelForSequenceClassification.from_pretrained("reward/model", num_labels=1)
```

`model(**batch).logits` is the *raw* score of each row: prompt, completion and its end-of-sequence token
(id {ids}), together at most {card.max_tokens} tokens. Higher is better, and only differences between
completions of one prompt mean something: sigmoid(difference) is the probability that the first is
preferred. Pad on the right, with this tokenizer's pad token and no other.

The normalized score, (raw − offset) / spread, has mean 0 and variance 1 on the SFT model's own samples:
offset {card.mean:.6g}, spread {card.std:.6g}. `reward.json` has the exact values.
"""
