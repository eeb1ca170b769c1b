"""`stage.json`: the settings and inputs that a stage's results depend on, written before it begins."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from rlhf.runs.manifest import JsonFile

_UNSET = "unset"
_MAX_SHOWN = 60
_NOT_COMPARED = frozenset({"ppo.export_merged"})
"""Settings in older files that change nothing of what their stage publishes: see `rlhf.runs.derived`."""


class StageFile(JsonFile):
    """What a stage's results depend on, with the values, so that an error can say which one differs."""

    schema_version: Literal[1] = 1
    stage: str
    config_hash: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    date: str | None = None
    """The day on which the run began, which its chat templates write: see `rlhf.runs.date`."""
    details: dict[str, str] | None = None
    """Inputs that records of earlier versions do not have (None there): not compared with those."""

    def differences(self, now: "StageFile") -> list[str]:
        """What is not the same now, in words. A setting that did not exist yet counts as unset."""
        was = _flat(self.settings)
        new = _flat(now.settings)
        found = []
        for key in sorted({*was, *new} - _NOT_COMPARED):
            before = was.get(key, _UNSET)
            after = new.get(key, _UNSET)
            if before != after:
                found.append(f"{key} was {_shortened(before)}, is {_shortened(after)}")
        found += _changed_inputs(self.inputs, now.inputs)
        if self.details is not None and now.details is not None:
            found += _changed_inputs(self.details, now.details)
        return found

    def differs_only_in(self, now: "StageFile", names: Collection[str]) -> bool:
        """Whether nothing else is different now than the inputs `names`, and details of these."""
        inputs = {name: value for name, value in now.inputs.items() if name not in names}
        was = {name: value for name, value in self.inputs.items() if name not in names}
        of_names = {f"{what} of {name}" for what in ("modules", "packages") for name in names}
        details = {name: value for name, value in (now.details or {}).items() if name not in of_names}
        had = {name: value for name, value in (self.details or {}).items() if name not in of_names}
        same_inputs = (inputs, now.inputs.keys()) == (was, self.inputs.keys())
        return same_inputs and details == had and _flat(self.settings) == _flat(now.settings)


def _changed_inputs(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        if name not in after:
            yield f"input {name} is not used any more"
        elif name not in before:
            yield f"input {name} is new"
        elif before[name] != after[name]:
            yield f"input {name} has changed"


def _flat(values: Any, key: str = "") -> dict[str, str]:
    """Nested settings as `a.b.0.c` → value as JSON; an empty group or list is a value."""
    items: Any = ()
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list):
        items = enumerate(values)
    if not items or not values:
        return {key: _UNSET if values is None else json.dumps(values, ensure_ascii=False)}
    found: dict[str, str] = {}
    for name, value in items:
        inner = f"{key}.{name}" if key else str(name)
        found.update(_flat(value, inner))
    return found


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
