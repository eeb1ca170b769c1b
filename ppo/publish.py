"""What the PPO stage leaves behind: a plain PEFT folder that needs none of our code."""

from pathlib import Path

from ppo.models import POLICY
from rlhf.model.adapters import BASE_PATH
from rlhf.model.backbone import Backbone

_README = f"""\
---
library_name: peft
base_model: {BASE_PATH}
tags: [ppo, lora]
---

# Policy

A LoRA adapter on the run's SFT model. The run folder (the one that holds `sft/` and `ppo/`) can be moved; the
adapter names its base as seen from there, `{BASE_PATH}`. From any working directory, give both paths:

```python
run = "..."  # the run folder
tokenizer = AutoTokenizer.from_pretrained(f"{{run}}/sft/model")
base = AutoModelForCausalLM.from_pretrained(f"{{run}}/sft/model")
policy = PeftModel.from_pretrained(base, f"{{run}}/ppo/model")
```

From the run folder itself, `AutoPeftModelForCausalLM.from_pretrained("ppo/model")` finds the base alone. vLLM
is given both: `vllm serve $run/sft/model --enable-lora --lora-modules policy=$run/ppo/model`, with
`--max-lora-rank` at least the `r` of `adapter_config.json`.
"""


def write_policy(backbone: Backbone, folder: Path) -> None:
    """Write the adapter, the tokenizer and a README into `folder`."""
    backbone.export_adapter(POLICY, folder, task_type="CAUSAL_LM", base_path=BASE_PATH)
    (folder / "README.md").write_text(_README, encoding="utf-8")
