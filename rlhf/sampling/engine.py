"""The one way to ask a role of the backbone for responses.

PPO and its best-of-n, SFT's samples, the samples that normalize a reward, `labeling samples` and the
constitution call `sample` and read `Rollouts`; none of them knows how tokens are decoded. An engine is what
stands behind it. There is one: `rlhf.sampling.local`, which decodes with the backbone's own weights, in
this process. Another would be chosen here, and has to keep what callers rely on:

- one response for each prompt, in the order given, on the backbone's device;
- tokens and log-probabilities of the distribution softmax(logits / temperature), from which they were
  drawn, with nothing cut off it; PPO compares them with its own forward pass and takes its own where they
  differ;
- a response ends with its first EOS (`backbone.eos_ids`), with a stop string, or at `max_response_tokens`;
- what is drawn for a row is a function of (seed, key) and the weights, not of the other rows: so a run can be
  resumed, and be divided among any number of ranks, and draws the same.

Ranks are the caller's: each asks for its own share of the prompts, and where ZeRO-3 has sharded the weights,
inside `gathered_weights`.
"""

from collections.abc import Sequence

from rlhf.model.backbone import Backbone
from rlhf.sampling import local
from rlhf.sampling.noise import Key
from rlhf.sampling.rollouts import Rollouts
from rlhf.settings.groups import SamplingSettings


def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    role: str,
    settings: SamplingSettings,
    keys: Sequence[Key],
    seed: int,
) -> Rollouts:
    """Draw one response for every prompt from `role`.

    `keys[i]` (iteration, prompt, sample) together with `seed` and the position determines row i's noise. The
    rows come back in the order given.
    """
    assert len(prompts) == len(keys)
    return local.sample(backbone, prompts, role=role, settings=settings, keys=keys, seed=seed)
