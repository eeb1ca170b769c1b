"""Recipes: one YAML file, plus `key.sub=value` overrides, become one frozen, typed configuration.

A recipe's top-level sections are `run`, `tracking` and `model`, shared by every stage, and one section
per package (`sft`, `reward`, `ppo`, `labeling`), whose schema is that package's `config.SECTION`. All
sections are checked before any stage starts, so that a typo in `ppo` is found before an hour of `sft`.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.settings.chat_templates import resolve_chat_template
from rlhf.settings.check import check, unknown_key
from rlhf.settings.groups import STAGES, ModelSettings, RunSettings, S, Settings, TrackingSettings
from rlhf.settings.yaml_files import apply_override, read_yaml


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
                fix=f"Add `{stage}:` to it, or choose a recipe that has it (see configs/ of the repository).",
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
    values, lines = read_yaml(path)
    for override in overrides:
        apply_override(values, override, lines)
    shared: dict[str, type[Settings]] = {
        "run": RunSettings,
        "tracking": TrackingSettings,
        "model": ModelSettings,
    }
    checked: dict[str, Settings] = {}
    for name in values:
        if name not in shared and name not in STAGES:
            raise unknown_key((name,), [*shared, *STAGES], path, lines)
    for name in [*shared, *(s for s in STAGES if s in values)]:
        schema = shared.get(name) or importlib.import_module(f"{name}.config").SECTION
        checked[name] = with_chat_templates(check(schema, values.get(name), (name,), path, lines), name, path)
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
    values, lines = read_yaml(path, what)
    checked = check(schema, values, (), path, lines)
    assert isinstance(checked, schema)
    return checked


def with_chat_templates(settings: S, name: str, path: Path) -> S:
    """The settings called `name`, of the recipe `path`, with every `chat_template` as the text of one.

    Raises:
        UserError: one is neither a known name nor a file nor a template.
    """
    changes: dict[str, Any] = {}
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, Settings):
            inner = with_chat_templates(value, f"{name}.{key}", path)
            if inner is not value:
                changes[key] = inner
        elif key == "chat_template" and value is not None:
            changes[key] = resolve_chat_template(value, setting=f"{name}.{key}", folders=(path.parent,))
    return settings.model_copy(update=changes) if changes else settings


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
