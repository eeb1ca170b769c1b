"""The schemas that rows are recognized by: which fields of a row make which record.

A `RowConverter` is made once per source from its settings and applied to every row. docs/data-formats.md
describes the schemas to users.
"""

import difflib
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rlhf.data.cells import parse_cells, says_nothing
from rlhf.data.columns import Columns, UnusableRowError, one_turn, usable_completion, usable_prompt
from rlhf.data.judgements import Kind, check_answer, check_group, sounds_like_scores, stated
from rlhf.data.message_forms import parse_conversations, refuse_unread_conversation, renamed_preference
from rlhf.data.messages import TOOLS, is_messages, kind, without_keys, without_nulls
from rlhf.data.pairs import RANKS, check_comparisons, likelier, preference
from rlhf.data.records import FAILED, Demonstration, Message, Prompt, Ranking, Turns, bare_text
from rlhf.data.source_checks import SourceChecks
from rlhf.errors import UserError
from rlhf.settings.groups import SourceSettings

Row = Mapping[str, Any]
R = TypeVar("R", bound=Prompt | Demonstration | Ranking)

_CONVERSATIONS = ("messages", "prompt", "completion", "completions", "chosen", "rejected", TOOLS)
_ANSWERS = ("completion", "completions", "chosen", "rejected")
_ALIASES = {"messages": "conversations"}
"""Our field → the name that it has in data sets of ShareGPT's kind."""
_LABELS = ("better", "probability")
"""Fields without a value in a row whose answers nobody has judged: it is left out and counted."""


@dataclass(frozen=True)
class Schema(Generic[R]):
    """Fields that together make a record."""

    needs: tuple[str, ...]
    build: Callable[[Columns], R]
    may: tuple[str, ...] = ()
    kind: Kind = "answer"


def blank_line_after(*parts: str) -> str:
    """The default template of question and instruction rows: a blank line after each non-empty part."""
    return "".join(f"{part}\n\n" for part in parts if part.strip())


def _question(columns: Columns) -> str:
    return blank_line_after(columns.text("question"))


def _instruction(columns: Columns) -> str:
    return blank_line_after(columns.text("instruction"), columns.optional_text("input"))


def _demonstration(prompt: str | Turns, answer: Message) -> Demonstration:
    answer = usable_completion(answer)
    return Demonstration(prompt=usable_prompt(prompt), completion=answer.content, more=answer.more)


def _said(prompt: str, completion: str) -> Demonstration:
    return _demonstration(prompt, Message("assistant", one_turn(completion)))


def _completed(columns: Columns) -> Demonstration:
    made = _demonstration(columns.prompt(), columns.completion())
    return replace(made, annotator=columns.optional_text("annotator") or None)


def _prompt(prompt: str | Turns) -> Prompt:
    return Prompt(prompt=usable_prompt(prompt))


def _group(columns: Columns) -> Ranking:
    """A ranking of K completions. An empty one stays: a policy may answer nothing, and be ranked for it."""
    columns.refuse_nulls("ranks", "comparisons")
    ranking = Ranking(
        prompt=columns.prompt(),
        completions=columns.completions(),
        ranks=columns.ranks(),
        comparisons=columns.comparisons(),
        annotator=columns.optional_text("annotator") or None,
    )
    _check_best_is_first(ranking)
    check_group(columns.others, [math.inf if rank == FAILED else rank for rank in ranking.ranks or ()])
    check_comparisons(ranking.comparisons or ())
    if len({bare_text(completion) for completion in ranking.completions}) == 1:
        raise UnusableRowError("completions identical")
    return ranking


def _check_best_is_first(ranking: Ranking) -> None:
    """Ranks never exceed the number of completions; ratings do, and are the other way round."""
    for number, rank in enumerate(ranking.ranks or (), start=1):
        if rank != FAILED and rank > len(ranking.completions):
            fix = (
                "1 is the best rank. Turn ratings round, and number ranks from 1 without more gaps than ties."
            )
            raise UserError(
                f"completion {number} has rank {rank}, and there are {len(ranking.completions)} completions",
                fix=fix,
            )


def _better_answer(columns: Columns, split: Callable[[str], tuple[str | Turns, Message]]) -> Demonstration:
    """The better answer of a pair as a demonstration."""
    found = preference(columns)
    side = likelier(found) if isinstance(found, float) else found
    if side == "tie":
        raise UnusableRowError("neither answer is better")
    if side == "second" and "rejected" not in columns.values:
        raise UnusableRowError("the better answer is missing")
    return _demonstration(*split("chosen" if side == "first" else "rejected"))


def _answer(build: Callable[[Columns], Demonstration]) -> Callable[[Columns], Demonstration]:
    """`build`, of rows whose only answer is not marked as a bad one."""

    def checked(columns: Columns) -> Demonstration:
        check_answer(columns.others)
        return build(columns)

    return checked


def _pair(columns: Columns) -> Ranking:
    prompt, chosen = columns.plain_conversation("chosen")
    other_prompt, rejected = columns.plain_conversation("rejected")
    found = preference(columns)
    annotator = columns.optional_text("annotator") or None
    if prompt != other_prompt:
        raise UnusableRowError("prompts differ")
    prompt, completions = usable_prompt(prompt), (usable_completion(chosen), usable_completion(rejected))
    if bare_text(chosen) == bare_text(rejected):
        raise UnusableRowError("completions identical")
    if not isinstance(found, float):
        return Ranking(prompt=prompt, completions=completions, ranks=RANKS[found], annotator=annotator)
    comparisons = ((0, 1, found),)
    return Ranking(prompt=prompt, completions=completions, comparisons=comparisons, annotator=annotator)


_OF_PAIRS = ("probability", "better", "annotator")

DEMONSTRATIONS: tuple[Schema[Demonstration], ...] = (
    Schema(("prompt", "completion"), _answer(_completed), ("annotator",)),
    Schema(("messages",), _answer(lambda columns: _demonstration(*columns.conversation("messages")))),
    Schema(
        ("question", "answer"),
        _answer(lambda columns: _said(_question(columns), columns.text("answer"))),
    ),
    Schema(
        ("instruction", "output"),
        _answer(lambda columns: _said(_instruction(columns), columns.text("output"))),
        ("input",),
    ),
    Schema(("transcript",), _answer(lambda columns: _demonstration(*columns.conversation("transcript")))),
    Schema(
        ("prompt", "chosen"),
        lambda columns: _better_answer(columns, columns.continued_prompt),
        ("rejected", *_OF_PAIRS),
        "pair",
    ),
    Schema(
        ("chosen",),
        lambda columns: _better_answer(columns, columns.conversation),
        ("rejected", *_OF_PAIRS),
        "pair",
    ),
)

RANKINGS: tuple[Schema[Ranking], ...] = (
    Schema(("prompt", "completions"), _group, ("ranks", "comparisons", "annotator"), "group"),
    Schema(("prompt", "chosen", "rejected"), _pair, _OF_PAIRS, "pair"),
    Schema(("chosen", "rejected"), _pair, _OF_PAIRS, "pair"),
)

# In the order of the schemas of demonstrations, so that a row's prompt is the same in every stage.
PROMPTS: tuple[Schema[Prompt], ...] = (
    Schema(("prompt", "completion"), lambda columns: _prompt(columns.prompt()), kind="prompt"),
    Schema(("prompt", "completions"), lambda columns: _prompt(columns.prompt()), kind="prompt"),
    Schema(("messages",), lambda columns: _prompt(columns.open_conversation("messages")), kind="prompt"),
    Schema(("prompt",), lambda columns: _prompt(columns.prompt()), _OF_PAIRS + _ANSWERS, kind="prompt"),
    Schema(("question",), lambda columns: _prompt(_question(columns)), kind="prompt"),
    Schema(("instruction",), lambda columns: _prompt(_instruction(columns)), ("input",), kind="prompt"),
    Schema(("transcript",), lambda columns: _prompt(columns.open_conversation("transcript")), kind="prompt"),
    Schema(("chosen",), lambda columns: _prompt(columns.open_conversation("chosen")), kind="prompt"),
)


class RowConverter(Generic[R]):
    """How the rows of one source become records: its settings, checked, and the schemas they leave possible.

    `columnar` says that the source keeps one type per column (CSV, Parquet, a hub data set): lists may then
    be JSON text, and ranks may be numbers written as text, since "F" would not fit among integers.

    Raises:
        UserError: a field that no schema has, fields that belong to different schemas, a malformed template.
    """

    def __init__(self, schemas: Sequence[Schema[R]], settings: SourceSettings, *, columnar: bool) -> None:
        self._columns, self._columnar = settings.columns, columnar
        self._as_messages = settings.transcripts == "messages"
        self._templates = {field: _parse_template(field, text) for field, text in settings.templates.items()}
        self._ignored = frozenset(settings.ignore or ())
        self._choices: dict[str, str] = dict(settings.choices or {})
        self.checks = SourceChecks(self._columns.get("probability", "probability"), self._ignored)
        self._schemas: list[Schema[R]] = _possible_schemas(schemas, settings)
        placeholders = (column for parts in self._templates.values() for _, column in parts if column)
        self._read = {*settings.columns.values(), *placeholders}

    def record(self, row: Row, where: str = "") -> R:
        """The record that `row` holds; `where` it was read is for messages.

        Raises:
            UserError: the row is malformed.
            UnusableRowError: it is well-formed and gives no record.
        """
        row = {name: value for name, value in row.items() if name in self._read or name not in self._ignored}
        row = renamed_preference(row)
        values = self._values(row)
        for schema in self._schemas:
            if all(name in values for name in schema.needs):
                return self._built(schema, row, values, where)
        raise _no_schema(self._schemas, row, values)

    def _built(self, schema: Schema[R], row: Row, values: Mapping[str, Any], where: str) -> R:
        read = self._read_by(schema, row)
        found = self._found(schema, row, values, read)
        self.checks.see(row, found, schema.kind, read=read, where=where)
        _refuse_other_messages(schema, values, self._columns)
        refuse_unread_conversation(values, self._read)
        made = _usable(schema.build(found), found)
        self.checks.keep(row, made, read=read, fields=schema.needs, where=where)
        return made

    def _read_by(self, schema: Schema[R], row: Row) -> frozenset[str]:
        """The columns that are read where a row has this schema."""
        names = (*schema.needs, *schema.may)
        read = {self._columns.get(name, name) for name in names if name not in self._templates}
        for parts in self._templates.values():
            read.update(column for _, column in parts if column is not None)
        read.update(_ALIASES[name] for name in names if name in _ALIASES and name not in row)
        return frozenset(read)

    def _found(self, schema: Schema[R], row: Row, values: Mapping[str, Any], read: frozenset[str]) -> Columns:
        """What `schema` takes of a row, and what else the row may say of its answers."""
        names = (*schema.needs, *schema.may)
        return Columns(
            {name: values[name] for name in names if name in values},
            self._as_messages,
            nulls=frozenset(
                name for name in names if self._columns.get(name, name) in row and name not in values
            ),
            names=self._columns,
            others={} if schema.kind == "prompt" else stated(row, read, self._ignored),
            choices=self._choices,
            beside={name: values[name] for name in (*_ANSWERS, TOOLS) if name in values},
        )

    def _values(self, row: Row) -> dict[str, Any]:
        """The row's columns and, over them, what `columns` and `templates` name; without null values."""
        values = {name: value for name, value in row.items() if value is not None}
        parse_conversations(values)
        for field, alias in _ALIASES.items():
            if field not in values and is_messages(values.get(alias)):
                values[field] = values[alias]
        for field, column in self._columns.items():
            if field in _LABELS and column in row and says_nothing(row[column]):
                values.pop(field, None)
                continue
            values[field] = _column(row, column, f"columns.{field}")
        for field, parts in self._templates.items():
            values[field] = "".join(
                literal if column is None else literal + _printable(row, column, f"templates.{field}")
                for literal, column in parts
            )
        parse_conversations(values)
        if self._columnar:
            parse_cells(values)
        for field in _CONVERSATIONS:
            if self._columnar and field in values:
                values[field] = without_nulls(values[field])
            if field in values:
                values[field] = without_keys(values[field], self._ignored)
        return values


def _refuse_other_messages(schema: Schema[R], values: Row, columns: Mapping[str, str]) -> None:
    """Check that `messages` which a row is read by hold the answer that its pair calls the better one.

    Raises:
        UserError: they hold another one, and `columns` does not say that they count.
    """
    if schema.needs != ("messages",) or "messages" in columns or "rejected" not in values:
        return
    chosen = values.get("chosen")
    answer = values["messages"][-1].get("content") if is_messages(values["messages"]) else None
    if chosen not in (values["messages"], answer):
        raise UserError(
            "`messages` is not the conversation of `chosen`, and the row has both",
            fix="Say which of them is to be read: `columns: {messages: messages}`, or `columns: {chosen: "
            "chosen, rejected: rejected}`.",
        )


def _usable(made: R, columns: Columns) -> R:
    """The record, if its prompt is one.

    Raises:
        UnusableRowError: it is text and the row offers tools, or it ends with an answer.
    """
    if isinstance(made.prompt, str) and not says_nothing(columns.beside.get(TOOLS)):
        raise UnusableRowError("tools for a prompt that is text")
    if not isinstance(made.prompt, str) and made.prompt[-1].role == "assistant":
        raise UnusableRowError("prompt ends with an answer")
    return made


def _possible_schemas(schemas: Sequence[Schema[R]], settings: SourceSettings) -> list[Schema[R]]:
    given = [*settings.columns, *settings.templates]
    known = sorted({name for schema in schemas for name in (*schema.needs, *schema.may)})
    for field in given:
        if field not in known:
            close = difflib.get_close_matches(field, known, n=1)
            fix = f"Did you mean `{close[0]}`?" if close else f"Fields here: {', '.join(known)}."
            raise UserError(f"`{field}` under `columns` or `templates` is not a field", fix=fix)
        if field in settings.columns and field in settings.templates:
            raise UserError(f"`{field}` is under both `columns` and `templates`", fix="Keep one of the two.")
    if sounds_like_scores(settings.columns.get("ranks", "")):
        column = settings.columns["ranks"]
        fix = "1 is the best rank, and the highest score is: write ranks, and name their column."
        raise UserError(f"`columns.ranks` names `{column}`, which sounds like scores", fix=fix)
    possible = [schema for schema in schemas if set(given) <= {*schema.needs, *schema.may}]
    if not possible:
        fix = f"Fields that go together: {_listed(schemas)}."
        raise UserError(f"the fields {', '.join(given)} do not make one record", fix=fix)
    return possible


def _parse_template(field: str, template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the column that follows it."""
    fix = "A place-holder is {column}, without format or conversion; a literal brace is doubled: {{ or }}."
    parts: list[tuple[str, str | None]] = []
    try:
        for literal, column, spec, conversion in string.Formatter().parse(template):
            if column == "" or spec or conversion:
                raise UserError(
                    f"`templates.{field}` has a place-holder that is not a column's name", fix=fix
                )
            parts.append((literal, column))
    except ValueError as error:
        raise UserError(f"`templates.{field}`: {error}", fix=fix) from None
    return parts


def _column(row: Row, column: str, setting: str) -> Any:
    if column not in row:
        raise UserError(f"the record has no column `{column}`, which `{setting}` names", fix=_it_has(row))
    if row[column] is None:
        fix = "Fill it in or remove the record."
        raise UserError(f"column `{column}`, which `{setting}` names, is null", fix=fix)
    return row[column]


def _printable(row: Row, column: str, setting: str) -> str:
    value = _column(row, column, setting)
    if not isinstance(value, str | int | float):
        fix = "A template takes text and numbers; use `columns` for lists."
        raise UserError(f"column `{column}`, which `{setting}` names, is {kind(value)}", fix=fix)
    return str(value)


def _no_schema(schemas: Sequence[Schema[R]], row: Row, values: Row) -> UserError:
    def missing(schema: Schema[R]) -> list[str]:
        return [name for name in schema.needs if name not in values]

    def unnamed(schema: Schema[R]) -> int:
        return sum(name not in row for name in schema.needs)

    nearest = min(schemas, key=lambda schema: (len(missing(schema)), unnamed(schema), -len(schema.needs)))
    absent = [f"no `{name}`" for name in missing(nearest) if name not in row]
    present = [name for name in missing(nearest) if name in row]
    empty = [f"`{name}` is {'null' if row[name] is None else 'empty'}" for name in present]
    what = " and ".join([*empty, *([f"the record has {' and '.join(absent)}"] if absent else [])])
    if len(absent) == len(nearest.needs):
        what = "the record has no known schema"
    fill = "Fill it in or remove the record. " if empty else ""
    fix = f"{fill}Needed: {_listed(schemas)}; or name its columns under `columns`. {_it_has(row)}"
    return UserError(what, fix=fix)


def _listed(schemas: Sequence[Schema[R]]) -> str:
    return ", or ".join("+".join(schema.needs) for schema in schemas)


def _it_has(row: Row) -> str:
    return f"The record has: {', '.join(f'`{name}`' for name in row) or 'nothing'}."
