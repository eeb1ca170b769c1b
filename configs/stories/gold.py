"""The scorer of the stories recipe: how glad a response sounds, by VADER (Hutto and Gilbert 2014).

`sentiment` is VADER's compound score of the response alone, −1 to 1; the prompt does not count. It is a
list of words with rules for negation, emphasis and exclamation marks, and shares nothing with the reward
model that has to learn it. Which direction is preferred is the recipe's `labeling.rankings.prefer`; reports
show the compound score as it is, so that a sadder policy shows a lower one.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """VADER's compound score of each response: −1 is saddest, 0 neutral, 1 gladdest."""
    del prompts
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ImportError("VADER is missing: pip install 'triptych[stories]'") from None
    return SentimentIntensityAnalyzer()
