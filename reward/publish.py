"""What the reward stage leaves behind: a plain PEFT folder that needs none of our code."""

from pathlib import Path

from reward.model import CARD_FILE, ROLE, RewardCard
from rlhf.model.adapters import BASE_PATH
from rlhf.model.backbone import Backbone


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

A LoRA adapter with a scalar head on the run's SFT model, for plain transformers and peft. The run folder (the
one that holds `sft/` and `reward/`) can be moved; the adapter names its base as seen from there,
`{BASE_PATH}`. From any working directory, give both paths:

```python
run = "..."  # the run folder
tokenizer = AutoTokenizer.from_pretrained(f"{{run}}/reward/model")
base = AutoModelForSequenceClassification.from_pretrained(f"{{run}}/sft/model", num_labels=1)
model = PeftModel.from_pretrained(base, f"{{run}}/reward/model")
```

From the run folder itself, the base is found alone:
`AutoPeftModelForSequenceClassification.from_pretrained("reward/model", num_labels=1)`.

`model(**batch).logits` is the *raw* score of each row: prompt, completion and its end-of-sequence token
(id {ids}), together at most {card.max_tokens} tokens. Higher is better, and only differences between
completions of one prompt mean something: sigmoid(difference) is the probability that the first is
preferred. Pad on the right, with this tokenizer's pad token and no other.

The normalized score, (raw − offset) / spread, has mean 0 and variance 1 on the SFT model's own samples:
offset {card.mean:.6g}, spread {card.std:.6g}. `reward.json` has the exact values.
"""
