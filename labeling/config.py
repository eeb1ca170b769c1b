"""Settings of the labeling commands: the `labeling` section of a recipe, one group per command."""

from typing import Literal

from labeling.constitution.config import ConstitutionSettings
from rlhf.settings.groups import LengthSettings, SamplingSettings, Settings, SourceSettings, setting


class DemonstrationsSettings(Settings):
    """Demonstrations made of the base model's own continuations, so that SFT teaches it only where to end."""

    prompts: list[SourceSettings] = setting(min_length=1)
    """Prompts to continue, each once."""
    sentences: int = setting(3, ge=1)
    """A continuation is cut after so many sentences; one that has fewer is dropped."""
    length: LengthSettings = LengthSettings()
    """What happens to prompts that leave no room for a continuation."""
    sampling: SamplingSettings = SamplingSettings()
    """How continuations are drawn; long enough for the sentences."""


class SamplesSettings(Settings):
    """Completions of the SFT model, several for each prompt, to be ranked."""

    prompts: list[SourceSettings] = setting(min_length=1)
    """Prompts to complete."""
    completions_per_prompt: int = setting(4, ge=2, le=9)
    """K, the completions that are ranked together."""
    length: LengthSettings = LengthSettings()
    """What happens to prompts that leave no room for a completion."""
    sampling: SamplingSettings = SamplingSettings()
    """How completions are drawn; best as in `ppo.sampling`."""


class RankingsSettings(Settings):
    """Ranks by a scripted labeler, who compares with a scorer's eyes and errs at a given rate."""

    samples: str = setting("{run}/samples/samples.jsonl", semantic=False, names="file")
    """Completions to rank; `{run}` stands for the run's folder."""
    scorer: str = setting(semantic=False, names="scorer")
    """What the labeler goes by: `file.py:function` or `module:function`."""
    prefer: Literal["higher", "lower"] = "higher"
    """Whether the labeler likes what scores higher, or what scores lower."""
    error_rate: float = setting(0.0, ge=0, le=0.5)
    """Probability that one comparison of two completions comes out wrong."""
    tie_width: float = setting(0.0, ge=0)
    """Completions whose scores differ by no more than this look equal to the labeler."""


class LabelingSettings(Settings):
    """What `python -m labeling` makes; a command needs its own group only."""

    demonstrations: DemonstrationsSettings | None = None
    """`python -m labeling demonstrations`."""
    samples: SamplesSettings | None = None
    """`python -m labeling samples`."""
    rankings: RankingsSettings | None = None
    """`python -m labeling rankings`."""
    constitution: ConstitutionSettings | None = None
    """`python -m labeling constitution`."""


SECTION = LabelingSettings
