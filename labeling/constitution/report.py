"""The report: one HTML page that opens anywhere, without scripts and without the network."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from labeling.constitution.charts import bars, columns, lines
from labeling.constitution.constitution import Constitution
from labeling.constitution.metrics import Metrics
from labeling.constitution.preferences import Judged
from labeling.constitution.revisions import Draft
from labeling.sanitize import sanitize
from rlhf.model.chat import prompt_text

NUM_EXAMPLES = 6

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; background: #f5f5f5; padding: .5rem; margin: .2rem 0; }
figure { margin: 1rem 0; } figcaption, .note { color: #555; font-size: 13px; }
details { border-left: 3px solid #ccc; padding-left: .8rem; margin: .8rem 0; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } pre { background: #2a2a2a; } th, td { border-color: #555; }
}
"""
_ROUND_NAMES = (
    ("round", "round"),
    ("texts", "texts"),
    ("words_mean", "words"),
    ("edit_distance_mean", "edit distance"),
    ("novelty_mean", "novelty"),
    ("unchanged_share", "unchanged"),
    ("evasive_share", "evasive"),
    ("score_mean", "score"),
)
_ROUND_NOTE = (
    "Round 0 is the response. Edit distance (words changed over words of the longer text), novelty (share of "
    "pairs of neighbouring words that are new) and unchanged compare with the round before; evasive is the "
    "share of texts with a phrase that evades the question; score is the scorer's mean."
)


def revisions_page(metrics: Metrics, drafts: Sequence[Draft], constitution: Constitution, model: str) -> str:
    """Of the supervised stage."""
    found = metrics["revisions"]
    parts = [_head("Revisions", constitution, model)]
    parts.append(_rounds("All prompts", found["rounds"]))
    if len(found["groups"]) > 1:
        parts.append(_groups(found["groups"]))
        parts += [_rounds(f"Prompts: {name}", rounds) for name, rounds in found["groups"].items()]
    parts.append(_use("How often each principle was used", found["principles"]))
    if found["left_out"]:
        parts.append("<h2>Left out</h2>" + _table(("what and why", "texts"), list(found["left_out"].items())))
    phrases = found["boilerplate"]["phrases"]
    share = found["boilerplate"]["share"]
    parts.append(
        f"<h2>Boilerplate</h2><p>{share:.1%} of the revisions hold a phrase of the following kind.</p>"
    )
    parts.append(_table(("phrase of five words", "revisions"), phrases) if phrases else "<p>None.</p>")
    parts.append("<h2>Examples</h2>" + "".join(_draft(draft) for draft in drafts[:NUM_EXAMPLES]))
    parts.append(_usage(metrics))
    return _page("Revisions", parts)


def preferences_page(
    metrics: Metrics, judged: Sequence[Judged], constitution: Constitution, model: str
) -> str:
    """Of the preference stage."""
    found = metrics["preferences"]
    rows = [(label, found[name]) for name, label in _PREFERENCE_ROWS]
    parts = [_head("Preferences", constitution, model)]
    parts.append("<h2>Preferences</h2>" + _table(("", ""), rows))
    histogram = columns(found["histogram"], 0, 1, "probability that a pair's first is better")
    parts.append(_figure(histogram, "How sure the labels are: one half says nothing, the ends are certain."))
    methods = ", ".join(f"{name}: {n:,}" for name, n in found["methods"].items())
    parts.append(f"<p>Answers were read from {escape(methods)}.</p>")
    parts.append(_use("How often each principle was asked", found["principles"]))
    names = ("asked", "consistent_share", "bias_log_odds", "certainty_mean")
    table = [(name, *(own[key] for key in names)) for name, own in found["by_principle"].items()]
    parts.append(_table(("principle", "asked", "consistent", "bias, log-odds", "certainty"), table))
    for key, who in (("people", "people"), ("scorer", "the scorer")):
        if key in found:
            parts.append(_comparison(found[key], who))
    parts.append("<h2>Examples</h2>" + "".join(_item(each) for each in judged[:NUM_EXAMPLES]))
    parts.append(_usage(metrics))
    return _page("Preferences", parts)


_PREFERENCE_ROWS = (
    ("items", "items"),
    ("pairs", "pairs asked about"),
    ("pairs_decided", "pairs with an answer in both orders"),
    ("consistent_share", "both orders name the same one"),
    ("swap_correlation", "log-odds of both orders correlate by; −1: the responses alone decide"),
    ("bias_log_odds", "position bias, log-odds for the one shown first"),
    ("bias_probability", "… as its probability between equals"),
    ("entropy_bits_mean", "entropy of a label, bits"),
    ("option_mass_mean", "probability of A and B together in the model's answer"),
    ("triads_in_circle", "triples that beat each other in a circle"),
)


def _comparison(found: Metrics, who: str) -> str:
    rows = [(name.replace("_", " "), value) for name, value in found.items() if name != "reliability"]
    points = [(p, share) for p, share, _ in found["reliability"]]
    picture = lines(
        [("labels", points)], f"probability; upwards, share that {who} preferred", unit_square=True
    )
    caption = "Honest labels lie on the diagonal: of the pairs labelled 0.7, the first is preferred in 70 %."
    return f"<h2>Compared with {escape(who)}</h2>" + _table(("", ""), rows) + _figure(picture, caption)


def _rounds(title: str, rounds: Sequence[Metrics]) -> str:
    columns_ = [(key, label) for key, label in _ROUND_NAMES if any(own[key] is not None for own in rounds)]
    table = _table([label for _, label in columns_], [[own[key] for key, _ in columns_] for own in rounds])
    series = [
        (label, [(own["round"], own[key]) for own in rounds if own[key] is not None])
        for key, label in (*_ROUND_NAMES[3:5], *_ROUND_NAMES[6:])
    ]
    picture = lines([(name, points) for name, points in series if points], "round")
    return f"<h2>{escape(title)}</h2>{table}{_figure(picture, _ROUND_NOTE)}"


def _groups(groups: Mapping[str, Sequence[Metrics]]) -> str:
    series = [
        (name, [(own["round"], own["evasive_share"]) for own in rounds]) for name, rounds in groups.items()
    ]
    rows = [
        (name, rounds[0]["texts"], rounds[0]["evasive_share"], rounds[-1]["evasive_share"])
        for name, rounds in groups.items()
    ]
    table = _table(("prompts", "number", "evasive at first", "evasive in the end"), rows)
    note = "Evasive answers to prompts that are safe are over-refusal; to unsafe ones they may be right."
    return f"<h2>Groups of prompts</h2>{table}{_figure(lines(series, 'round'), note)}"


def _usage(metrics: Metrics) -> str:
    parts = []
    for key, title in (("running", "What it took"), ("writing", "What the writer took")):
        if key in metrics:
            found = metrics[key]
            rows = [(name.replace("_", " "), value) for name, value in found.items() if name != "failures"]
            rows += [(f"failed: {name.replace('_', ' ')}", n) for name, n in found["failures"].items()]
            parts.append(f"<h2>{title}</h2>{_table(('', ''), rows)}")
    return "".join(parts)


def _use(title: str, counts: Mapping[str, int]) -> str:
    return _figure(bars(list(counts), list(counts.values())), title)


def _draft(draft: Draft) -> str:
    parts = [f"<summary>{_inline(prompt_text(draft.asked.prompt))}</summary>"]
    parts.append(f"<p>Response</p>{_pre(draft.response.text)}")
    for each in draft.rounds:
        for what, text in (("critique", each.critique), ("revision", each.revision)):
            shown = "<p class=note>nothing that can be used</p>" if text is None else _pre(text.text)
            parts.append(f"<p>Round {each.number}, {what} ({escape(each.principle)})</p>{shown}")
    return f"<details>{''.join(parts)}</details>"


def _item(judged: Judged) -> str:
    parts = [f"<summary>{_inline(prompt_text(judged.item.prompt))}</summary>"]
    parts += [f"<p>{n}</p>{_pre(text)}" for n, text in enumerate(judged.item.completions)]
    parts.append(_table(("first", "second", "probability that the first is better"), judged.comparisons))
    return f"<details>{''.join(parts)}</details>"


def _head(title: str, constitution: Constitution, model: str) -> str:
    articles = constitution.articles
    return (
        f"<h1>{title}</h1><p>{_inline(articles.name)}, version {_inline(articles.version)} "
        f"(<code>{escape(constitution.annotator)}</code>, {len(constitution.principles)} principles); "
        f"feedback model <code>{_inline(model)}</code>.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    first = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{first}</tr>' if first else ''}{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "value" in value:  # an estimate
        if value["low"] is None or value["high"] is None:
            return f'<td class="n">{value["value"]:.3f} [not determined]</td>'
        return f'<td class="n">{value["value"]:.3f} [{value["low"]:.3f}, {value["high"]:.3f}]</td>'
    if isinstance(value, int | float):
        return (
            f'<td class="n">{value:,}</td>'
            if isinstance(value, int)
            else f'<td class="n">{round(value, 3) + 0.0:.3f}</td>'
        )
    return f"<td>{'–' if value is None else _inline(str(value))}</td>"


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>" if picture else ""


def _pre(text: str) -> str:
    return f"<pre>{escape(sanitize(text))}</pre>"


def _inline(text: str) -> str:
    return escape(sanitize(text).replace("\n", " "))


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
