"""Scoring a file: rows of a prompt and a completion (or completions) get `score` and `raw_score`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from reward.model import RewardCard, RewardModel, folder_identity, load_reward, score_sequences
from rlhf.data.columns import Columns, UnusableRowError
from rlhf.data.prompt_form import conversation_of, form_of_run
from rlhf.data.readers import parse_json
from rlhf.data.records import Turns
from rlhf.errors import UserError
from rlhf.model.backbone import Backbone
from rlhf.model.chat import encode_completion
from rlhf.model.fitting import fit_prompt
from rlhf.model.rendering import of_record
from rlhf.parallel.start import start_process
from rlhf.runs.date import date_of_run, freeze_date
from rlhf.runs.files import storing, write_atomic
from rlhf.settings.groups import ModelSettings, RunSettings

_FORM = 'A row is {"prompt": ..., "completion": "..."} or {"prompt": ..., "completions": ["...", ...]}.'


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How a file is scored; nothing here changes a score but `over_length`."""

    batch_tokens: int = 8192
    over_length: Literal["error", "truncate_left"] = "error"
    device: str = "auto"
    force: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the input."""

    values: dict[str, Any]
    prompt: str | Turns
    completions: list[str]
    where: str


def score_file(model_folder: Path, source: Path, target: Path, options: ScoreOptions) -> None:
    """Write `source`'s rows to `target` with `score` (normalized) and `raw_score`, numbers or lists.

    Raises:
        UserError: a malformed row, an output that exists, or a folder that holds no reward model.
    """
    if target.exists() and not options.force:
        raise UserError("the output exists", where=str(target), fix="Name another file, or add --force.")
    if target.is_dir():
        raise UserError("the output is a folder", where=str(target), fix="Name a file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the output's folder ({error.strerror})", where=str(target), fix="Name another file."
        ) from None
    rows = read_rows(source)
    model = open_model(model_folder, device=options.device)
    if form_of_run(model_folder.resolve().parent.parent) == "messages":
        rows = [replace(row, prompt=conversation_of(row.prompt)) for row in rows]
    scores = score_rows(model, rows, options)
    lines: list[str] = []
    for row, raw in zip(rows, scores, strict=True):
        normalized = [(value - model.mean) / model.std for value in raw]
        single = "completion" in row.values
        added = {"score": normalized[0] if single else normalized, "raw_score": raw[0] if single else raw}
        lines.append(json.dumps(row.values | added, ensure_ascii=False) + "\n")
    with storing(target):
        write_atomic(target, "".join(lines))
    print(f"reward: scored {sum(map(len, scores)):,} completions of {len(rows):,} rows: {target}")


def open_model(folder: Path, *, device: str) -> RewardModel:
    """A published reward model on its own base.

    The base's path is taken as relative to the run folder, then as it stands; otherwise it is a hub id.

    Raises:
        UserError: no reward model there, its base is missing, or it is another base now.
    """
    card = RewardCard.of(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot use adapter_config.json ({error})", where=str(folder), fix="Train it again."
        ) from None
    run_folder = folder.resolve().parent.parent
    freeze_date(date_of_run(run_folder))
    near = run_folder / base
    path = near if near.is_dir() else Path(base)
    settings = ModelSettings.model_validate({"path": base, "precision": card.precision})
    backbone = Backbone.load(
        path if path.is_dir() else base,
        settings=settings,
        device=_device(device),
    )
    # A hub id names no files that could be compared; that the adapter fits on the base is checked below.
    identity = folder_identity(path) if path.is_dir() else card.base_sha256
    return load_reward(backbone, folder, expected_base_sha256=identity)


def _device(name: str) -> torch.device:
    try:
        return start_process(RunSettings(device=name)).device
    except UserError as error:
        raise error.at(f"--device {name}") from None


def read_rows(source: Path) -> list[Row]:
    """The rows of a JSONL file, checked.

    Raises:
        UserError: no such file, a line that is no row (named by its number), or no row at all.
    """
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read it ({error.strerror})", where=str(source), fix=_FORM) from None
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", where=str(source), fix="Save it as UTF-8.") from None
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError("the file holds no rows", where=str(source), fix=_FORM)
    return [_row(line, f"{source}, line {number}") for number, line in lines]


def score_rows(model: RewardModel, rows: Sequence[Row], options: ScoreOptions) -> list[list[float]]:
    """Raw scores of every completion of every row."""
    sequences: list[list[int]] = []
    for row in rows:
        if not isinstance(row.prompt, str) and not model.backbone.tokenizer.chat_template:
            raise UserError(
                "the prompt is a conversation, and this model has no chat template",
                where=row.where,
                fix='Write the prompt as text, as the model was trained: {"prompt": "...", ...}.',
            )
        try:
            sequences += [_encode(model, row, completion, options) for completion in row.completions]
        except UserError as error:
            raise of_record(error, row.where) from None
    flat = iter(score_sequences(model.backbone, sequences, max_tokens=options.batch_tokens).tolist())
    return [[next(flat) for _ in row.completions] for row in rows]


def _encode(model: RewardModel, row: Row, completion: str, options: ScoreOptions) -> list[int]:
    backbone = model.backbone
    response_ids = encode_completion(backbone.tokenizer, row.prompt, completion, eos=backbone.eos_ids)
    prompt_ids = fit_prompt(
        backbone.tokenizer,
        row.prompt,
        len(response_ids),
        model.card.max_tokens,
        options.over_length,
        fix="Shorten the row, or give --over-length truncate_left; the model was trained with this limit.",
    ).ids
    if prompt_ids is None:
        raise UserError(
            f"the completion ({len(response_ids)} tokens) and the last turn of its prompt do not fit into "
            f"{model.card.max_tokens} tokens",
            fix="Shorten it, or remove the row.",
        )
    return prompt_ids + response_ids


def _row(line: str, where: str) -> Row:
    try:
        values = parse_json(line.encode("utf-8", "surrogatepass"))
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
    except UserError as error:
        raise error.at(where, fix=_FORM) from None
    except ValueError:  # NaN, or half of a surrogate pair
        raise UserError("a number or text that JSON cannot carry", where=where, fix=_FORM) from None
    if not isinstance(values, dict):
        raise UserError("not a JSON object", where=where, fix=_FORM)
    if ("completion" in values) == ("completions" in values):
        raise UserError("give either `completion` or `completions`", where=where, fix=_FORM)
    completions = [values["completion"]] if "completion" in values else values["completions"]
    if (
        not isinstance(completions, list)
        or not completions
        or not all(isinstance(c, str) for c in completions)
    ):
        raise UserError(
            "a completion is text, and `completions` a list of at least one", where=where, fix=_FORM
        )
    return Row(values, _prompt(values.get("prompt"), values.get("tools"), where), completions, where)


def _prompt(value: Any, tools: Any, where: str) -> str | Turns:
    """The prompt of a row, read as every stage reads it."""
    fix = f'{_FORM} A message is {{"role": "...", "content": "..."}}.'
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise UserError("`prompt` is neither text nor a list of messages", where=where, fix=fix)
    try:
        return Columns({"prompt": value}, beside={} if tools is None else {"tools": tools}).prompt()
    except UserError as error:
        raise error.at(where) from None
    except UnusableRowError as error:
        raise UserError(error.reason, where=where, fix=fix) from None
