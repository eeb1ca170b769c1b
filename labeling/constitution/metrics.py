"""What the report says, as plain numbers: of the revisions, the preferences and the requests."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from labeling.constitution.checks import swap_correlation
from labeling.constitution.config import EndpointSettings
from labeling.constitution.constitution import Constitution
from labeling.constitution.endpoint import cost
from labeling.constitution.meters import boilerplate, change, evades
from labeling.constitution.opinions import entropy_bits, log_odds, sigmoid, triads_in_circle
from labeling.constitution.people import PeopleComparison, reliability
from labeling.constitution.preferences import Judged, PairReply
from labeling.constitution.revisions import Draft
from rlhf.model.chat import prompt_text
from rlhf.statistics.evaluation import calibration_error

Metrics = dict[str, Any]
Score = Callable[[Sequence[str], Sequence[str]], list[float]]

NUM_BINS = 20
"""Of the histogram of probabilities."""


def revision_metrics(drafts: Sequence[Draft], constitution: Constitution, score: Score | None) -> Metrics:
    """Of all drafts, and of each group of prompts; round 0 is the response."""
    scores = _scores(drafts, score)
    groups: dict[str, list[int]] = {}
    for number, draft in enumerate(drafts):
        groups.setdefault(draft.asked.group, []).append(number)
    texts = [each.revision.text for draft in drafts for each in draft.rounds if each.revision is not None]
    repeated = boilerplate(texts)
    return {
        "responses": len(drafts),
        "revisions": len(texts),
        "left_out": _use(
            f"{each.left_out.what} {each.left_out.why or 'empty'}"
            for draft in drafts
            for each in draft.rounds
            if each.left_out is not None
        ),
        "principles": _use(each.principle for draft in drafts for each in draft.rounds),
        "rounds": _rounds(drafts, constitution, scores),
        "groups": {
            name: _rounds([drafts[n] for n in numbers], constitution, [scores[n] for n in numbers])
            for name, numbers in groups.items()
        },
        "boilerplate": {"share": repeated.share, "phrases": repeated.phrases},
    }


def preference_metrics(
    judged: Sequence[Judged], people: PeopleComparison | None, score: Score | None
) -> Metrics:
    """Of all questions, all pairs, and all items."""
    replies = [each for item in judged for each in item.replies]
    opinions = [each.opinion for each in replies]
    probabilities = [p for item in judged for _, _, p in item.comparisons]
    biases = [each.bias for each in opinions if each.bias is not None]
    consistent = [each.consistent for each in opinions if each.consistent is not None]
    masses = [a.mass for each in replies for a in each.answers if a is not None and a.mass is not None]
    bias = _mean(biases)
    found: Metrics = {
        "items": len(judged),
        "pairs": sum(item.num_pairs for item in judged),
        "pairs_decided": len(probabilities),
        "principles": _use(each.question.principle.id for each in replies),
        "methods": _use(a.method for each in replies for a in each.answers if a is not None),
        "consistent_share": _mean(consistent),
        "swap_correlation": swap_correlation(judged),
        "bias_log_odds": bias,
        "bias_probability": None if bias is None else sigmoid(bias),
        "option_mass_mean": _mean(masses),
        "entropy_bits_mean": _mean([entropy_bits(p) for p in probabilities]),
        "histogram": _histogram(probabilities),
        "triads_in_circle": sum(triads_in_circle(item.comparisons) for item in judged),
        "by_principle": _by_principle(replies),
    }
    if people is not None:
        found["people"] = asdict(people)
    if score is not None:
        found["scorer"] = _against_scorer(judged, score)
    return found


def running_metrics(counts: Mapping[str, int], endpoint: EndpointSettings | None) -> Metrics:
    """Requests, tokens and failures by kind; `retries` is every attempt after a request's first."""
    known = [
        *("requests", "answers", "retries", "input_tokens", "output_tokens", "unanswered", "too_long"),
        *("cut_off", "refused", "reasoned"),  # answers that are no whole ones, or had reasoning before them
    ]
    found: Metrics = {name: counts.get(name, 0) for name in known}
    failures = {name: n for name, n in counts.items() if name not in known}
    found["failures"] = failures
    attempts = sum(failures.values()) + found["answers"]
    found["parse_failure_rate"] = counts.get("unusable_answer", 0) / attempts if attempts else 0.0
    if endpoint is not None:
        found["cost"] = cost(endpoint, found["input_tokens"], found["output_tokens"])
    return found


def _rounds(
    drafts: Sequence[Draft], constitution: Constitution, scores: Sequence[Sequence[float]]
) -> list[Metrics]:
    """Of the responses and of what stands after each round."""
    phrases = constitution.articles.evasions
    found = []
    for number in range(max(len(draft.texts) for draft in drafts)):
        texts = [draft.texts[number] for draft in drafts]
        before = [draft.texts[max(0, number - 1)] for draft in drafts]
        changes = [change(old, new) for old, new in zip(before, texts, strict=True)]
        found.append(
            {
                "round": number,
                "texts": len(texts),
                "words_mean": _mean([each.words_after for each in changes]),
                "edit_distance_mean": _mean([each.edit_distance for each in changes]) if number else None,
                "novelty_mean": _mean([each.novelty for each in changes]) if number else None,
                "unchanged_share": _mean([old == new for old, new in zip(before, texts, strict=True)])
                if number
                else None,
                "evasive_share": _mean([evades(text, phrases) for text in texts]),
                "score_mean": _mean([own[number] for own in scores if own]),
            }
        )
    return found


def _scores(drafts: Sequence[Draft], score: Score | None) -> list[list[float]]:
    """Of each draft's texts; nothing at all without a scorer."""
    if score is None:
        return [[] for _ in drafts]
    texts = [text for draft in drafts for text in draft.texts]
    prompts = [prompt_text(draft.asked.prompt) for draft in drafts for _ in draft.texts]
    flat = iter(score(prompts, texts))
    return [[next(flat) for _ in draft.texts] for draft in drafts]


def _by_principle(replies: Sequence[PairReply]) -> dict[str, Metrics]:
    parts: dict[str, list[PairReply]] = {}
    for each in replies:
        parts.setdefault(each.question.principle.id, []).append(each)
    found = {}
    for name, part in sorted(parts.items()):
        opinions = [each.opinion for each in part]
        known = [o.log_odds for o in opinions if o.log_odds is not None]
        found[name] = {
            "asked": len(part),
            "consistent_share": _mean([o.consistent for o in opinions if o.consistent is not None]),
            "bias_log_odds": _mean([o.bias for o in opinions if o.bias is not None]),
            "certainty_mean": _mean([abs(sigmoid(value) - 0.5) * 2 for value in known]),
        }
    return found


def _against_scorer(judged: Sequence[Judged], score: Score) -> Metrics:
    """Pairs whose scores differ: how often the likelier one scores higher, and how honest that is."""
    prompts = [prompt_text(each.item.prompt) for each in judged for _ in each.item.completions]
    texts = [text for each in judged for text in each.item.completions]
    flat = iter(score(prompts, texts))
    points = []
    for each in judged:
        values = [next(flat) for _ in each.item.completions]
        points += [
            (p, float(values[i] > values[j])) for i, j, p in each.comparisons if values[i] != values[j]
        ]
    right = [0.5 if p == 0.5 else float((p > 0.5) == (outcome > 0.5)) for p, outcome in points]
    return {
        "pairs": len(points),
        "accuracy": _mean(right),
        "calibration_error": calibration_error([log_odds(p) for p, _ in points], [o for _, o in points]),
        "reliability": reliability(points),
    }


def _histogram(values: Sequence[float]) -> list[int]:
    counts = Counter(min(NUM_BINS - 1, int(value * NUM_BINS)) for value in values)
    return [counts[n] for n in range(NUM_BINS)]


def _use(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
