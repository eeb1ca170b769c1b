"""How a labeling project hands out its items and what it lets labelers say: set once, when it is created."""

from typing import Literal

from rlhf.settings.groups import Settings, setting


class LabelingRules(Settings):
    """The rules of one labeling project."""

    overlap: int = setting(1, ge=1)
    """Labelers who rank each item."""
    ties: bool = True
    """Whether two completions may share a rank."""
    quality_scores: bool = False
    """Whether labelers may also give completions a quality score from 1 to 7."""
    order: Literal["least_labelled", "uncertainty"] = "least_labelled"
    """Which items come first: those with the fewest labels, or those a reward model is least sure of."""
    gold_share: float = setting(0.1, ge=0, lt=1)
    """Share of a labeler's assignments that are gold items, while there are any left that are new to them."""
    qualification_accuracy: float = setting(0.8, ge=0, le=1)
    """Share of the pairs of all qualification items that a labeler must judge as their answers do."""
    lease_seconds: float = setting(1800.0, gt=0)
    """An item that has not been submitted after so long, counted from the last key, is given to another."""
    presence_seconds: float = setting(30.0, gt=0)
    """A terminal that has been silent for so long counts as gone: its labeler's next terminal resumes
    the item that it held."""
    idle_seconds: float = setting(60.0, gt=0)
    """The part of a pause beyond this is no working time."""
    seed: int = setting(0, ge=0, lt=2**32)
    """What the order of completions and the places of gold items are a function of."""

    @property
    def beat_seconds(self) -> float:
        """How often a terminal says that it is alive: twice before it would count as gone."""
        return min(self.presence_seconds / 3, 10.0)
