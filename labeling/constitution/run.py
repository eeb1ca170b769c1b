"""The two stages at work: from prompts or completions to published labels and a report."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from labeling.constitution import people, preferences, revisions
from labeling.constitution.cache import Cache
from labeling.constitution.checks import Finding, check_preferences, check_revisions
from labeling.constitution.config import (
    ConstitutionSettings,
    FeedbackSettings,
    PreferencesSettings,
    RevisionsSettings,
)
from labeling.constitution.constitution import Constitution
from labeling.constitution.feedback import Model, seed_of
from labeling.constitution.inputs import completions_file, model_folder
from labeling.constitution.metrics import Metrics, preference_metrics, revision_metrics, running_metrics
from labeling.constitution.mixture import mixed
from labeling.constitution.prompts import read_grouped
from labeling.constitution.report import preferences_page, revisions_page
from labeling.store.database import shown_location
from labeling.store.items import Item, read_items
from rlhf.data.counts import RecordCounts
from rlhf.data.records import Demonstration, Ranking, write_jsonl
from rlhf.data.scorers import load_scorer
from rlhf.data.sources import read_demonstrations, read_rankings
from rlhf.errors import UserError
from rlhf.parallel.start import start_process
from rlhf.runs.manifest import json_value
from rlhf.runs.progress import print_result
from rlhf.runs.stage import StageRun, Writer
from rlhf.settings.recipe import Recipe

DEMONSTRATIONS, RANKINGS, MIXED = "demonstrations.jsonl", "rankings.jsonl", "mixed.jsonl"
REVISIONS, COMPARISONS = "revisions.jsonl", "comparisons.jsonl"
REPORT, REPORT_JSON = "report.html", "report.json"


@dataclass
class StageWork:
    """A stage at work: who is asked, and where answers are kept."""

    recipe: Recipe
    settings: ConstitutionSettings
    constitution: Constitution
    stage: StageRun
    caches: dict[str, Cache]
    """One for each model: what is asked of it is counted by itself."""
    feedback: Model
    writer: Model

    @staticmethod
    def open(
        recipe: Recipe,
        settings: ConstitutionSettings,
        constitution: Constitution,
        stage: StageRun,
        *,
        clean: bool,
    ) -> "StageWork":
        """Open the cache and the models; counts of earlier attempts are continued."""
        path = Path(settings.cache.replace("{run}", str(recipe.run_folder)))
        caches, models = {}, {}
        for role, model in (("feedback", settings.feedback), ("writer", settings.writer)):
            if model is not None:
                caches[role] = Cache(path, scope=f"{recipe.run_folder}/{stage.stage}/{role}")
                if clean:
                    caches[role].forget_counts()
                models[role] = open_model(model, recipe, caches[role])
        feedback = models["feedback"]
        return StageWork(
            recipe, settings, constitution, stage, caches, feedback, models.get("writer", feedback)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cache in self.caches.values():
            cache.__exit__(kind, error, trace)

    def make(self, part: RevisionsSettings | PreferencesSettings) -> None:
        """Do the stage's work and publish it."""
        if isinstance(part, RevisionsSettings):
            self._make_revisions(part)
        else:
            self._make_preferences(part)

    @property
    def seed(self) -> int:
        return self.recipe.run.seed

    def _make_revisions(self, part: RevisionsSettings) -> None:
        counts = RecordCounts()
        reviser = revisions.Reviser(
            self.constitution, self.writer, self.feedback, part, self.settings.num_examples, self.seed
        )
        drafts = reviser.revise(self._first_drafts(reviser, part, counts))
        annotator = self.constitution.annotator
        own = revisions.demonstrations(drafts, part, annotator)
        if not own:
            raise UserError(
                "no revision came of it",
                where="labeling.constitution.revisions",
                fix=f"{_left_out_text(drafts)}Choose another feedback model.",
            )
        findings = self._checked(check_revisions(drafts))
        helpful = self._demonstrations(part.helpful, counts)
        both = mixed(own, helpful, part.helpful_share, seed=seed_of(self.seed, "mixture"))
        counts.print("revisions")
        score = load_scorer(part.scorer) if part.scorer else None
        found = {"revisions": revision_metrics(drafts, self.constitution, score)} | self._usage()
        num_own = sum(each.annotator == annotator for each in both)
        numbers = {"demonstrations": len(both), "demonstrations_by_constitution": num_own}
        self._publish(
            {
                DEMONSTRATIONS: lambda path: write_jsonl(path, both),
                REVISIONS: _lines(revisions.record(draft, reviser, annotator) for draft in drafts),
                REPORT: _text(revisions_page(found, drafts, self.constitution, self.feedback.name)),
            },
            found | numbers,
            counts,
        )
        first, last = found["revisions"]["rounds"][0], found["revisions"]["rounds"][-1]
        rows = [
            ("responses revised, rounds", f"{len(drafts):,}, {part.rounds}"),
            ("demonstrations, of these revisions", f"{len(both):,}, {num_own:,}"),
            ("words, response and last revision", f"{first['words_mean']:.1f} → {last['words_mean']:.1f}"),
            ("evasive", f"{first['evasive_share']:.1%} → {last['evasive_share']:.1%}"),
            *_score_row(first, last),
            *((f"left out: {what}", f"{n:,}") for what, n in found["revisions"]["left_out"].items()),
        ]
        self._print(rows, DEMONSTRATIONS, "sft", "demonstrations", findings)

    def _first_drafts(
        self, reviser: revisions.Reviser, part: RevisionsSettings, counts: RecordCounts
    ) -> list[revisions.Draft]:
        drafts = revisions.given(self._demonstrations(part.responses, counts), group="given responses")
        if part.prompts:
            asked, read = read_grouped(part.prompts, seed=self.seed, run_folder=self.recipe.run_folder)
            counts.merge(read)
            drafts += reviser.respond(asked)
        return drafts

    def _make_preferences(self, part: PreferencesSettings) -> None:
        counts = RecordCounts()
        comparer = preferences.Comparer(
            self.constitution, self.feedback, part, self.settings.num_examples, self.seed
        )
        judged = comparer.judge(self._items(part, counts))
        annotator = self.constitution.annotator
        rankings = [each.ranking(annotator, hard=part.labels == "hard") for each in judged]
        own = [ranking for ranking in rankings if ranking is not None]
        if not any(each.replies for each in judged):
            raise UserError(
                "no two completions of any item differ",
                where="labeling.constitution.preferences",
                fix="Sample them at a higher temperature, or from another model.",
            )
        if not own:
            raise UserError(
                "no pair has an answer in both orders",
                where="labeling.constitution.preferences",
                fix="Choose another feedback model, or another way of reading choices (`answers`).",
            )
        findings = self._checked(check_preferences(judged))
        humans = self._rankings(part.people, counts)
        if counts.read():
            counts.print("preferences")
        compared = people.compare_with_people(judged, humans, annotator) if humans else None
        score = load_scorer(part.scorer) if part.scorer else None
        found = {"preferences": preference_metrics(judged, compared, score)} | self._usage()
        writers: dict[str, Writer] = {
            RANKINGS: lambda path: write_jsonl(path, own),
            COMPARISONS: _lines(
                row for each in judged for row in preferences.records(each, self.feedback, annotator)
            ),
            REPORT: _text(preferences_page(found, judged, self.constitution, self.feedback.name)),
        }
        if humans:
            both = mixed(own, humans, part.people_share, seed=seed_of(self.seed, "people"))
            writers[MIXED] = lambda path: write_jsonl(path, both)
        if part.project is not None:
            entered = people.enter_ranks(part.project, judged, annotator)
            where = shown_location(part.project)
            print(f"preferences: {entered.labels:,} new labels by {annotator} in {where}")
        self._publish(writers, found | {"rankings": len(own)}, counts)
        self._print(_preference_rows(found["preferences"]), RANKINGS, "reward", "rankings", findings)

    def _items(self, part: PreferencesSettings, counts: RecordCounts) -> list[Item]:
        path = completions_file(part, self.recipe.run_folder)
        if path is not None:
            return read_items(path)[: part.limit]
        asked, read = read_grouped(part.prompts, seed=self.seed, run_folder=self.recipe.run_folder)
        counts.merge(read)
        items = preferences.write_completions(asked[: part.limit], self.writer, part, seed=self.seed)
        if not items:
            raise UserError(
                "no prompt got two answers",
                where="labeling.constitution.preferences.prompts",
                fix="Choose another writer, or allow longer answers (`text.max_tokens`).",
            )
        return items

    def _demonstrations(self, sources: Sequence[Any], counts: RecordCounts) -> list[Demonstration]:
        if not sources:
            return []
        found, read = read_demonstrations(sources, seed=self.seed, run_folder=self.recipe.run_folder)
        counts.merge(read)
        return found

    def _rankings(self, sources: Sequence[Any], counts: RecordCounts) -> list[Ranking]:
        if not sources:
            return []
        found, read = read_rankings(sources, seed=self.seed, run_folder=self.recipe.run_folder)
        counts.merge(read)
        return found

    def _usage(self) -> Metrics:
        """Requests, tokens and failures of the feedback model, and of the writer where it is another."""
        found = {
            "running": running_metrics(self.caches["feedback"].counts(), self.settings.feedback.endpoint)
        }
        if self.settings.writer is not None:
            counts = self.caches["writer"].counts()
            found["writing"] = running_metrics(counts, self.settings.writer.endpoint)
        return found

    def _publish(self, writers: Mapping[str, Writer], found: Metrics, counts: RecordCounts) -> None:
        values = json_value({"annotator": self.constitution.annotator, "model": self.feedback.name} | found)
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        self.stage.publish({**writers, REPORT_JSON: _text(text)}, metrics=values, counts=counts.accounts())

    def _checked(self, findings: Sequence[Finding]) -> list[Finding]:
        """What was found of the judge, for the end.

        Raises:
            UserError: its labels are worth nothing, and the recipe does not want them all the same.
        """
        worthless = [each for each in findings if each.level == "worthless"]
        if not worthless or self.settings.accept_any_judge:
            return list(findings)
        raise UserError(
            "; ".join(each.what for each in worthless),
            where=f"labeling.constitution.{self.stage.stage}",
            fix=f"{worthless[0].fix} Nothing is published; what it has answered is kept, and not asked "
            "again. To publish all the same: labeling.constitution.accept_any_judge=true.",
        )

    def _print(
        self, rows: list[tuple[str, str]], records: str, stage: str, read: str, findings: Sequence[Finding]
    ) -> None:
        """Say what came out, and the command of `stage`, whose setting `read` names what it reads.

        After labels that are doubtful the command is not said to be the next.
        """
        sources = getattr(self.recipe.sections.get(stage), read, [])
        is_named = any(source.path.startswith(f"{{run}}/{self.stage.stage}/") for source in sources)
        target = stage if is_named else f"{stage} LABELS=constitution"
        folder = self.stage.folder
        usage = self._usage().values()
        answers = sum(own["answers"] for own in usage)
        failed = sum(sum(own["failures"].values()) for own in usage)
        rows.append(("answers, attempts that failed", f"{answers:,}, {failed:,}"))
        rows += [("records", str(folder / records)), ("report", str(folder / REPORT))]
        command = self.stage.next_command(target)
        is_doubtful = any(each.level != "note" for each in findings)
        print_result(self.stage.stage, rows, None if is_doubtful else command)
        for each in findings:
            print(f"warning: {self.stage.stage}: {each.what}. {each.fix}", file=sys.stderr)
        if is_doubtful:
            print(f"{self.stage.stage}: if you have looked, and want to use them: {command}")


def _left_out_text(drafts: Sequence[revisions.Draft]) -> str:
    """What came of a model, and was not used, in words."""
    left_out = [each.left_out for draft in drafts for each in draft.rounds if each.left_out is not None]
    counts = Counter((each.what, each.why or "empty") for each in left_out)
    if not counts:
        return ""
    listed = ", ".join(f"{n:,} × {what} {why}" for (what, why), n in counts.most_common())
    return f"Left out: {listed} (`revisions.text.max_tokens` is the room they have). "


def open_model(settings: FeedbackSettings, recipe: Recipe, cache: Cache) -> Model:
    """The model that the settings describe; nothing is asked yet."""
    if settings.endpoint is not None:
        from labeling.constitution.served import ServedModel

        return ServedModel(settings.endpoint, cache)
    from labeling.constitution.local import LocalModel

    assert settings.local is not None
    folder = model_folder(settings.local.path, recipe.run_folder)
    return LocalModel(settings.local, folder, start_process(recipe.run).device, cache)


def _preference_rows(found: Metrics) -> list[tuple[str, str]]:
    rows = [
        ("items, pairs with an answer", f"{found['items']:,}, {found['pairs_decided']:,}"),
        ("both orders agree", _share(found["consistent_share"])),
        ("position bias, log-odds", f"{found['bias_log_odds']:+.3f}"),
        ("entropy of a label, bits", f"{found['entropy_bits_mean']:.3f}"),
    ]
    if "scorer" in found:
        rows.append(("pairs in the scorer's order", _share(found["scorer"]["accuracy"])))
    if "people" in found:
        same = found["people"]["same_order"]
        rows.append(
            ("pairs in people's order", "none to compare" if same is None else f"{same['value']:.1%}")
        )
    return rows


def _score_row(first: Metrics, last: Metrics) -> list[tuple[str, str]]:
    if first["score_mean"] is None:
        return []
    return [("score", f"{first['score_mean']:.3f} → {last['score_mean']:.3f}")]


def _share(value: float | None) -> str:
    return "not determined" if value is None else f"{value:.1%}"


def _text(text: str) -> Writer:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def _lines(rows: Any) -> Writer:
    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write
