"""Groups of random token ids for tests: `w5` in a completion is good, `w6` is bad."""

import random

from reward.config import RewardSettings
from reward.data import Group
from reward.loss import ranked_pairs

EOS = 2


def random_groups(num_groups: int, *, seed: int = 0, max_words: int = 8) -> list[Group]:
    generator = random.Random(seed)
    groups = []
    for number in range(num_groups):
        size = generator.randint(2, 4)
        words = [
            [generator.randint(4, 30) for _ in range(generator.randint(1, max_words))] for _ in range(size)
        ]
        quality = [ids.count(9) - ids.count(10) + 2 * place for place, ids in enumerate(words)]
        for place, ids in enumerate(words):
            ids[-1] = 9 + place  # the last word tells the completions apart
        ranks = [1.0 + sum(other > value for other in quality) for value in quality]
        groups.append(
            Group(
                key=f"prompt {number}",
                prompt=f"prompt {number}",
                completions=tuple(f"completion {k}" for k in range(size)),
                labels=tuple(f"rank {rank:.0f}" for rank in ranks),
                prompt_ids=[1, *[generator.randint(4, 30) for _ in range(generator.randint(1, 6))]],
                response_ids=[[*ids, EOS] for ids in words],
                pairs=ranked_pairs(ranks, with_ties=False),
            )
        )
    return groups


def reward_settings(**values: object) -> RewardSettings:
    defaults: dict[str, object] = {
        "rankings": [{"path": "unused.jsonl"}],
        "lora": {"rank": 4, "alpha": 8.0},
        "batch_size": 8,
        "learning_rate": 5e-3,
        "head_learning_rate": 5e-3,
        "warmup_fraction": 0.0,
    }
    return RewardSettings.model_validate(defaults | values)
