"""Recipes: one YAML file, plus `key.sub=value` overrides, become one frozen, typed configuration.

A recipe's top-level sections are `run`, `tracking` and `model`, shared by every stage, and one section
per package (`sft`, `reward`, `ppo`, `labeling`), whose schema is that package's `config.SECTION`. All
sections are checked before any stage starts, so that a typo in `ppo` is found before an hour of `sft`.
"""

import difflib
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from rlhf.complaints import NAME_PATTERN, describe
from rlhf.errors import UserError

STAGES = ("sft", "reward", "ppo", "labeling")
Precision = Literal["fp32", "bf16", "int8", "nf4"]


class Settings(BaseModel):
    """A frozen group of settings; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def setting(default: Any = ..., *, semantic: bool = True, **constraints: Any) -> Any:
    """A field with constraints; `semantic=False` marks one that cannot change what a stage produces.

    So are paths: what they lead to is hashed, and counts as one of the stage's inputs.
    """
    return Field(default, json_schema_extra={"semantic": semantic}, **constraints)


class RunSettings(Settings):
    """Where a run lies and what makes it repeatable."""

    name: str = setting("run", semantic=False, pattern=NAME_PATTERN)
    """The run's name: its folder is `<folder>/<name>`."""
    folder: Path = setting(Path("runs"), semantic=False)
    """Folder that holds all runs."""
    seed: int = setting(0, ge=0, lt=2**32)
    """Every random choice of every stage is a function of this number."""
    device: str = setting("auto", semantic=False)
    """`auto` (CUDA, else MPS, else CPU) or a torch device such as `cpu`, `cuda:1`."""
    threads: int = setting(0, semantic=False, ge=0, le=1024)
    """CPU threads that torch uses; 0 leaves torch's own choice."""
    gather: Literal["auto", "whole", "layers"] = setting("auto", semantic=False)
    """ZeRO-3, outside training: gather the weights once a phase, or layer by layer in every forward pass.

    `auto`: once, if they take at most half of the memory that is free on every rank.
    """


class TrackingSettings(Settings):
    """Where metrics go beside `metrics.jsonl`."""

    wandb: Literal["auto", "online", "offline", "off"] = setting("auto", semantic=False)
    """`auto`: online when logged in to W&B, otherwise offline."""
    project: str = setting("triptych", semantic=False)
    """The W&B project."""
    log_every_steps: int = setting(10, semantic=False, ge=1)
    """Optimizer steps between two lines of `metrics.jsonl` in the SFT and reward stages."""


class ScratchSettings(Settings):
    """A small Llama-shaped model made from nothing: for tests, demonstrations and laptops."""

    hidden_size: int = setting(128, ge=8)
    """Width of the residual stream."""
    num_layers: int = setting(4, ge=1)
    """Transformer blocks."""
    num_heads: int = setting(4, ge=1)
    """Attention heads; must divide `hidden_size`."""
    intermediate_size: int = setting(384, ge=8)
    """Width of the feed-forward layer."""
    vocab_size: int = setting(1024, ge=300)
    """Size of the byte-level BPE vocabulary that is trained on the run's own texts."""
    max_length: int = setting(256, ge=16)
    """Context in tokens."""
    tie_embeddings: bool = True
    """Whether the output head is the input embedding."""
    pad_token: Literal["own", "eos", "unk"] = "own"
    """Which token pads: one of its own, the end of sequence, or `<|unk|>`. Never changes a result."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ScratchSettings":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide hidden_size ({self.hidden_size})")
        return self


class ModelSettings(Settings):
    """The model that the pipeline starts from."""

    path: str | None = setting(None, semantic=False)
    """A local folder or a hub id of a causal language model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    scratch: ScratchSettings | None = None
    """Make a model from nothing instead."""
    precision: Precision = "fp32"
    """How reward, PPO, samples and chat hold the frozen base; `int8` and `nf4` (4 bits) need bitsandbytes.

    Adapters and heads are always trained in fp32. The SFT stage trains and publishes unquantized weights.
    """
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    chat_template: str | None = None
    """Jinja chat template that overrides the tokenizer's own."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Leave off unless you have read that code."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSettings":
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give either `path` (a model) or `scratch` (sizes of a new one)")
        return self


class LoraSettings(Settings):
    """A low-rank adapter (Hu et al. 2021, 2106.09685)."""

    rank: int = setting(16, ge=1)
    """Rank r of the update B·A."""
    alpha: float = setting(32.0, gt=0)
    """The update is scaled by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Module names, or `all-linear` for every linear layer except the head."""
    top_layers: int | None = setting(None, ge=1)
    """Only the topmost so many decoder layers get an adapter; unset means all. What lies below them is then
    the same for every role, runs once for a sequence, and is never trained through: set it alike in
    `reward.lora` and `ppo.lora`."""


class LengthSettings(Settings):
    """What happens to an example that does not fit."""

    max_tokens: int | None = setting(None, ge=2)
    """Prompt and completion together; unset means the model's context."""
    over_length: Literal["error", "drop", "truncate_left"] = "error"
    """`truncate_left` removes the beginning of the prompt, never a token of the completion."""


class SamplingSettings(Settings):
    """How completions are drawn: plain ancestral sampling, so log-probabilities are those of the draw."""

    max_response_tokens: int = setting(64, ge=1)
    """Longest response, its EOS included."""
    temperature: float = setting(1.0, gt=0)
    """Logits are divided by this before the softmax."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """A response also ends where one of these strings appears; the string itself is cut off."""
    batch_size: int = setting(64, semantic=False, ge=1)
    """Sequences decoded together."""


class SourceSettings(Settings):
    """One source of records: a local file or a hub data set."""

    path: str = setting(semantic=False)
    """A .jsonl, .json, .csv or .parquet file (`{run}` is the run's folder), or a hub id `owner/name`."""
    name: str | None = None
    """Configuration (subset) of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    columns: dict[str, str] = {}
    """Our field → the source's column: `{prompt: question, completion: answer}`; unset detects the shape."""
    templates: dict[str, str] = {}
    """Our field → text with `{column}` place-holders: `{prompt: "Question: {question}\\nAnswer:"}`."""
    transcripts: Literal["text", "messages"] = "text"
    """Whether a "\\n\\nHuman: … \\n\\nAssistant: …" transcript stays plain text or becomes messages."""
    weight: float | None = setting(None, gt=0)
    """Share of the mixture, relative to the other sources' weights; unset everywhere means all records."""
    limit: int | None = setting(None, ge=1)
    """Use only the first records of this source."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: the shared sections and one section per stage that the file names."""

    run: RunSettings
    tracking: TrackingSettings
    model: ModelSettings
    sections: Mapping[str, Settings]
    path: Path

    @property
    def run_folder(self) -> Path:
        return self.run.folder / self.run.name

    def section(self, stage: str) -> Settings:
        """The section of `stage`.

        Raises:
            UserError: the recipe has none.
        """
        if stage not in self.sections:
            raise UserError(
                f"the recipe has no `{stage}` section",
                where=str(self.path),
                fix=f"Add `{stage}:` to it, or choose a recipe that has it (see configs/).",
            )
        return self.sections[stage]

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Every setting with its default filled in, as plain YAML values."""
        shared = {"run": self.run, "tracking": self.tracking, "model": self.model}
        return {key: value.model_dump(mode="json") for key, value in {**shared, **self.sections}.items()}

    def semantic(self, *names: str) -> dict[str, Any]:
        """The settings of the sections `names` that can change a result."""
        parts: dict[str, Settings] = {"run": self.run, "model": self.model, **self.sections}
        return {name: _semantic(parts[name]) for name in names}


def config_hash(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain settings, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, apply `key.sub=value` overrides in order, and check every section.

    Raises:
        UserError: no such file, malformed YAML, an unknown key, a wrong type or value.
    """
    path = Path(path)
    values, lines = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override, lines)
    shared: dict[str, type[Settings]] = {
        "run": RunSettings,
        "tracking": TrackingSettings,
        "model": ModelSettings,
    }
    checked: dict[str, Settings] = {}
    for name in values:
        if name not in shared and name not in STAGES:
            raise _unknown_key((name,), [*shared, *STAGES], path, lines)
    for name in [*shared, *(s for s in STAGES if s in values)]:
        schema = shared.get(name) or importlib.import_module(f"{name}.config").SECTION
        checked[name] = _check(schema, values.get(name), (name,), path, lines)
    run, tracking, model = (checked.pop(name) for name in shared)
    assert isinstance(run, RunSettings)
    assert isinstance(tracking, TrackingSettings)
    assert isinstance(model, ModelSettings)
    return Recipe(run=run, tracking=tracking, model=model, sections=checked, path=path)


def load_settings(path: Path, schema: type[S], *, what: str) -> S:
    """Read a YAML file that holds one group of settings; `what` is what to call it.

    Raises:
        UserError: as `load_recipe`.
    """
    values, lines = _read_yaml(path, what)
    checked = _check(schema, values, (), path, lines)
    assert isinstance(checked, schema)
    return checked


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as YAML, keeping their order."""
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-5` is a number, `off` is a word and `2026-01-31` is text."""


class _Dumper(yaml.SafeDumper):
    """Puts in quotes whatever text either `_Loader` or plain YAML would read as something else."""


_BOOL, _FLOAT, _DATE = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "timestamp"))
_FLOAT_FORM = re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in (_BOOL, _FLOAT, _DATE)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, _FLOAT_FORM, list("-+.0123456789"))
_Dumper.add_implicit_resolver(_FLOAT, _FLOAT_FORM, list("-+.0123456789"))

_Key = tuple[str | int, ...]
_OVERRIDE = 0
"""The line of what an override has set."""


def _read_yaml(path: Path, what: str = "the recipe") -> tuple[dict[str, Any], dict[_Key, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot read {what} ({error.strerror})",
            where=str(path),
            fix="Give CONFIG= or --config a YAML file." if what == "the recipe" else "Name a YAML file.",
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{what} is not UTF-8 text", where=str(path), fix="Save it as UTF-8.") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"not valid YAML: {error.problem}", where=f"{path}, line {line}", fix="Mend that line."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=str(path), fix="Mend the file.") from None
    if node is None or not isinstance(values, dict):
        raise UserError(
            f"a {what.removeprefix('the ')} is a YAML mapping of sections",
            where=str(path),
            fix="See configs/tiny/recipe.yaml, and configs/constitutions/ for constitutions.",
        )
    lines: dict[_Key, int] = {}
    try:
        _collect_lines(node, (), path, lines)
    except RecursionError:
        raise UserError("an anchor contains itself", where=str(path), fix="Write the value out.") from None
    return values, lines


def _collect_lines(node: yaml.Node, key: _Key, path: Path, lines: dict[_Key, int]) -> None:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            at, line = (*key, name.value), name.start_mark.line + 1
            if at in lines:
                raise UserError(
                    f"`{_dotted(at)}` stands twice, first in line {lines[at]}",
                    where=f"{path}, line {line}",
                    fix="Keep one of them.",
                )
            lines[at] = line
            _collect_lines(child, at, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _collect_lines(child, (*key, index), path, lines)


def _apply_override(values: dict[str, Any], override: str, lines: dict[_Key, int]) -> None:
    name, equals, text = override.partition("=")
    fix = "Write overrides as key.sub=value, for example ppo.kl.coefficient=0.1."
    if not equals or not name:
        raise UserError(f"`{override}` is not an override", fix=fix)
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        value = text
    *groups, last = name.split(".")
    target: Any = values
    at: _Key = ()
    for part in groups:
        key = _key_of(target, part, override)
        at = (*at, key)
        if isinstance(target, dict) and target.get(part) is None:
            target[part], lines[at] = {}, _OVERRIDE
        target = target[key]
        if not isinstance(target, dict | list):
            raise UserError(f"`{_dotted(at)}` is a value, not a group", where=override, fix=fix)
    key = _key_of(target, last, override)
    target[key], at = value, (*at, key)
    for stale in [known for known in lines if known[: len(at)] == at]:
        del lines[stale]
    lines[at] = _OVERRIDE


def _key_of(target: dict[str, Any] | list[Any], part: str, override: str) -> str | int:
    if isinstance(target, dict):
        return part
    if not part.isdecimal() or int(part) >= len(target):
        raise UserError(
            f"`{part}` is not an item of a list of {len(target)}",
            where=override,
            fix="Items count from 0: reward.rankings.0.path=my.jsonl.",
        )
    return int(part)


def _check(schema: type[Settings], values: Any, key: _Key, path: Path, lines: dict[_Key, int]) -> Settings:
    """Validate in JSON mode, strictly: a list may become a tuple, but "3" is never a number."""
    try:
        text = json.dumps({} if values is None else values)
    except TypeError as error:  # !!binary or !!set
        what = f"`{_dotted(key)}` holds what is neither text, number, list nor group ({error})"
        raise UserError(what, where=_where(key, path, lines), fix="Write it as text or a list.") from None
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors()
    # A misspelled key also leaves its field missing: name the key first, for it is the mistake.
    first = min(found, key=lambda error: error["type"] != "extra_forbidden")
    plain = json.loads(text)
    inner, groups, field = _locate(schema, plain, first["loc"])
    at = (*key, *inner)
    if first["type"] == "extra_forbidden":
        raise _unknown_key(at, [name for group in groups for name in group.model_fields], path, lines)
    same = [error for error in found if _locate(schema, plain, error["loc"])[0] == inner]
    what, fix = describe(same, _dotted(at), field)
    raise UserError(what, where=_where(at, path, lines), fix=fix)


def _dotted(key: _Key) -> str:
    return ".".join(str(part) for part in key)


def _where(at: _Key, path: Path, lines: dict[_Key, int]) -> str:
    for length in range(len(at), 0, -1):
        line = lines.get(at[:length])
        if line == _OVERRIDE:
            return f"override {_dotted(at[:length])}"
        if line:
            return f"{path}, line {line}"
    return str(path)


def _unknown_key(at: _Key, known: Sequence[str], path: Path, lines: dict[_Key, int]) -> UserError:
    close = difflib.get_close_matches(str(at[-1]), known, n=1)
    return UserError(
        f"unknown key `{_dotted(at)}`",
        where=_where(at, path, lines),
        fix=f"Did you mean `{close[0]}`?" if close else f"Known here: {', '.join(known)}.",
    )


def _locate(
    schema: type[Settings], values: Any, loc: Sequence[str | int]
) -> tuple[_Key, list[type[Settings]], FieldInfo | None]:
    """Where a validation error's location leads: its key, the groups of settings around it, its field.

    A location also holds pydantic's names for the members of a union, which are no part of the key.
    """
    key: _Key = ()
    around, groups, last = [schema], [schema], None
    for part in loc:
        field = next((group.model_fields[str(part)] for group in groups if part in group.model_fields), None)
        if isinstance(values, dict):
            inside, present = values.get(part), part in values
        else:
            present = isinstance(values, list) and isinstance(part, int)
            inside = values[part] if present else None
        if field is None and not present:
            continue
        key, values, around = (*key, part), inside, groups
        if field is not None:
            groups, last = _groups_in(field.annotation), field
    return key, around, last


def _groups_in(annotation: Any) -> list[type[Settings]]:
    """The groups of settings that a field's values may be made of."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [group for inner in get_args(annotation) for group in _groups_in(inner)]


def _semantic(settings: Settings) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("semantic") is False:
            continue
        result[name] = _plain(getattr(settings, name))
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return _semantic(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
