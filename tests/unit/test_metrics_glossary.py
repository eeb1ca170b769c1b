from pathlib import Path

import pytest

from tests.support.glossary import Texts, assert_documented, documented, package_texts, texts_of, undocumented

GLOSSARY = """\
## sft

| key | unit | definition |
|---|---|---|
| `sft/loss` | nats per token | Mean over completion tokens. |

## ppo

| key | unit | definition |
|---|---|---|
| `ppo/heldout_reward_mean` | reward | Mean reward. |
| `ppo/best_of_{n}_reward_mean` | reward | The best of n. |
"""

SOURCE = '''
"""ppo/docstring_of_a_module is not a key."""
log({"sft/loss": 1.0})
figures = {"reward_mean": 0.0}
log({f"ppo/heldout_{name}": value for name, value in figures.items()})
best = {f"best_of_{n}_{name}": 0 for n in (4, 16)}
log({f"ppo/{name}": value for name, value in best.items()})
inputs["sft/model"] = 1
path = f"{folder}/{name}.json"
'''


def test_every_key_in_the_code_is_in_the_glossary() -> None:
    texts, known = package_texts(), documented()
    assert undocumented(texts.keys) == [], "add a row to docs/metrics.md"
    assert texts.orphans(known) == [], "add rows to docs/metrics.md for what these f-strings make"


def test_every_key_in_the_glossary_is_in_the_code() -> None:
    texts = package_texts()
    gone = [key for key in documented() if not can_make(texts, key)]
    assert gone == [], "no code has these keys of docs/metrics.md"


def can_make(texts: Texts, key: str) -> bool:
    return texts.can_make(key.replace("{n}", "4"))


def test_keys_are_read_from_the_code() -> None:
    texts = texts_of([SOURCE])
    assert texts.keys == {"sft/loss"}
    assert undocumented(["sft/loss", "sft/lost"], documented(GLOSSARY)) == ["sft/lost"]
    assert texts.orphans(documented(GLOSSARY)) == []
    assert texts.orphans(["sft/loss"]) == ["ppo/[a-z0-9_]+", "ppo/heldout_[a-z0-9_]+"]
    assert texts.orphans(["sft/loss", "ppo/kl"]) == ["ppo/heldout_[a-z0-9_]+"]


@pytest.mark.parametrize(
    ("key", "possible"),
    [
        ("sft/loss", True),
        ("ppo/reward_mean", True),
        ("ppo/heldout_reward_mean", True),
        ("ppo/best_of_{n}_reward_mean", True),
        ("ppo/best_of_{n}_reward", False),
        ("ppo/heldout_reward_median", False),
        ("sft/lost", False),
        ("sft/reward_mean", False),
        ("reward/loss", False),
    ],
)
def test_a_key_is_in_the_code_if_it_can_be_put_together_there(key: str, possible: bool) -> None:
    assert can_make(texts_of([SOURCE]), key) == possible


def test_a_number_in_a_key_stands_for_every_number() -> None:
    keys = ["ppo/best_of_16_reward_mean", "ppo/best_of_x_reward_mean", "ppo/best_of_16_kl"]
    assert undocumented(keys, documented(GLOSSARY)) == sorted(keys[1:])


@pytest.mark.parametrize(
    "row",
    [
        "| `ppo/kl` | nats |",
        "| `ppo/kl` | nats | |",
        "| `sft/kl` | nats | Under another heading. |",
        "| `ppo/KL` | nats | Not a key. |",
        "| `ppo/heldout_reward_mean` | reward | For the second time. |",
    ],
)
def test_a_row_that_defines_nothing_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        documented(GLOSSARY + row + "\n")


def test_a_stages_own_metrics_are_checked(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 0, "ppo/never_heard_of": 1.0}\n')
    with pytest.raises(AssertionError, match="ppo/never_heard_of"):
        assert_documented(metrics)
    metrics.write_text("")
    with pytest.raises(AssertionError, match="is empty"):
        assert_documented(metrics)
