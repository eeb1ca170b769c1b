"""Run folders: who may write, what is finished, and what a later stage may trust.

A stage owns `runs/<name>/<stage>/`:

    .lock           held (flock) while a process works there, or reads what lies there (rlhf.runs.locks)
    stage.json      written first: the settings and inputs that this stage's results depend on
    config.yaml     the whole recipe, every default filled in
    model/, ...     what the stage publishes, each by one rename
    manifest.json   written last, by rename: its presence means finished
    replaced/       what `--clean` has set aside until the stage has read its inputs and begins to work

Staleness is decided by hashes, never by file times. Anything named `*.partial` is a leftover of a process
that died and is never read. Paths inside these files are relative to the run folder, which can be moved.
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rlhf.environment import has_ranks, is_rank0
from rlhf.errors import UserError
from rlhf.runs.files import (
    PARTIAL,
    files_under,
    names_hash,
    remove,
    replace,
    sha256_file,
    storing,
    sync,
    sync_tree,
    tree_hash,
    write_atomic,
)
from rlhf.runs.locks import LOCK, Locks, no_folder
from rlhf.runs.manifest import (
    MANIFEST,
    MODEL,
    RECORD,
    Manifest,
    Record,
    device_name,
    git_state,
    json_value,
    package_versions,
    require,
)
from rlhf.settings.recipe import Recipe, config_hash
from rlhf.settings.yaml_files import write_yaml

__all__ = ["Manifest", "StageRun", "Writer", "require", "sha256_file", "tree_hash"]

Writer = Callable[[Path], None]

_CONFIG = "config.yaml"
_REPLACED = "replaced"
_OWN_PLACES = frozenset({LOCK, RECORD, MANIFEST, _REPLACED})
_MAX_NAMED = 5
_UNSET = "unset"


class _StageRecord(Record):
    """What a stage's results depend on, with the values, so that an error can say which one differs."""

    schema_version: Literal[1] = 1
    stage: str
    config_hash: str
    settings: dict[str, Any]
    inputs: dict[str, str]

    def differences(self, now: "_StageRecord") -> list[str]:
        """What is not the same now, in words. A setting that did not exist yet counts as unset."""
        was, new = _flat(self.settings), _flat(now.settings)
        found = [
            f"{key} was {_short(was.get(key, _UNSET))}, is {_short(new.get(key, _UNSET))}"
            for key in sorted({*was, *new})
            if was.get(key, _UNSET) != new.get(key, _UNSET)
        ]
        for name in sorted({*self.inputs, *now.inputs}):
            if name not in now.inputs:
                found.append(f"input {name} is not used any more")
            elif name not in self.inputs:
                found.append(f"input {name} is new")
            elif self.inputs[name] != now.inputs[name]:
                found.append(f"input {name} has changed")
        return found


class StageRun:
    """A stage at work: it holds the folder's lock from `open` until the `with` block ends."""

    def __init__(self, recipe: Recipe, record: _StageRecord, locks: Locks, *, resuming: bool) -> None:
        self.recipe, self.stage, self.resuming = recipe, record.stage, resuming
        self.run_folder = recipe.run_folder
        self.folder = recipe.run_folder / record.stage
        self._record, self._locks = record, locks
        self._leads = is_rank0()

    @staticmethod
    def open(
        recipe: Recipe,
        stage: str,
        inputs: Mapping[str, str],
        *,
        reads: Sequence[str] = (),
        clean: bool = False,
        sections: Sequence[str] | None = None,
        counted: Recipe | None = None,
    ) -> "StageRun | None":
        """Begin `stage`, go on with a half-finished one, or return None (and say so) if it is up to date.

        `stage` names the folder. `inputs` maps a name to its hash. `reads` are the stages of this run whose
        results it works with: nobody can make them anew meanwhile. `sections` are the parts of the
        recipe whose semantic settings count; by default those of this stage, `model` and `run`. `counted` is
        the recipe with only the settings that count in these sections, if that is not `recipe`. `clean`
        sets aside what the folder holds and begins again: see `drop_replaced`.

        Raises:
            UserError: the folder was made with other settings or inputs, lacks a published file, is held by
                another process, or cannot be written; or a stage in `reads` is being made anew.
        """
        if sections is None:
            recipe.section(stage)
            sections = (stage, "model", "run")
        settings = (counted or recipe).semantic(*sections)
        digest = config_hash({"settings": settings, "inputs": dict(inputs)})
        record = _StageRecord(stage=stage, config_hash=digest, settings=settings, inputs=dict(inputs))
        if not has_ranks():
            return _begin_alone(recipe, record, reads=reads, clean=clean)
        return _begin_together(recipe, record, reads=reads, clean=clean)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError) and self._leads:
            self._forget_if_nothing_was_made()
        self.close()

    def _forget_if_nothing_was_made(self) -> None:
        """After a refused input the folder must not pin the settings that it was refused with."""
        made = {path.name for path in self.folder.iterdir() if path.suffix != PARTIAL}
        if made <= {LOCK, _CONFIG, RECORD, _REPLACED}:
            (self.folder / _CONFIG).unlink(missing_ok=True)
            (self.folder / RECORD).unlink(missing_ok=True)
            _put_back(self.folder)

    def drop_replaced(self) -> None:
        """Delete what `--clean` has set aside: the inputs are read, and new results begin to appear.

        Until then a refused input puts the old results back.
        """
        if self._leads:
            with storing(self.folder):
                remove(self.folder / _REPLACED)

    def close(self) -> None:
        """Let go of the folder, and of those that were read."""
        self._locks.close()

    def next_command(self, target: str) -> str:
        """The make command that goes on with this run, every setting as it was here."""
        config = str(self.folder / _CONFIG).replace("$", "$$")  # one $ is make's own
        return f"make {target} CONFIG={shlex.quote(config)}"

    def publish(
        self,
        outputs: Mapping[str, Writer] | None = None,
        *,
        write_model: Writer | None = None,
        metrics: Mapping[str, Any],
        accounts: Mapping[str, Any],
        wandb_url: str | None = None,
        device: str | None = None,
    ) -> Manifest:
        """Write the stage's outputs, then the manifest that says it is finished.

        `outputs` maps a name to the function that writes it: a name with a suffix (`rankings.jsonl`) is a
        file, any other a folder, which exists when the function is called. `write_model=f` is short for
        `{"model": f}`. Everything is written apart, brought to the disk, hashed and renamed; if a function
        raises, nothing of it stays and an older output is untouched.

        Raises:
            UserError: no space, or no permission to write.
        """
        writers = {**({MODEL: write_model} if write_model else {}), **(outputs or {})}

        def write() -> Manifest:
            return self._publish(
                writers, metrics=metrics, accounts=accounts, wandb_url=wandb_url, device=device
            )

        if not has_ranks():
            return write()
        from rlhf.parallel.world import world

        return world().run_on_rank0(write)

    def _publish(
        self,
        writers: Mapping[str, Writer],
        *,
        metrics: Mapping[str, Any],
        accounts: Mapping[str, Any],
        wandb_url: str | None,
        device: str | None,
    ) -> Manifest:
        assert self._locks.held, "publish belongs inside the `with` block"
        manifest_path, staging = self.folder / MANIFEST, self.folder / f"publish{PARTIAL}"
        assert not manifest_path.exists()
        self.drop_replaced()
        with storing(self.folder):
            try:
                hashes = _write_outputs(writers, staging, self.stage)
                for name in writers:
                    replace(staging / name, self.folder / name)
            finally:
                remove(staging)
            revision, dirty = git_state()
            manifest = Manifest(
                stage=self.stage,
                config_hash=self._record.config_hash,
                seed=self.recipe.run.seed,
                git_revision=revision,
                git_dirty=dirty,
                packages=package_versions(),
                device=device or device_name(),
                inputs=self._record.inputs,
                outputs=hashes,
                output_bytes={name: (self.run_folder / name).stat().st_size for name in hashes},
                artifact_sha256=names_hash(hashes),
                metrics=json_value(metrics),
                accounts=json_value(accounts),
                wandb=wandb_url,
            )
            write_atomic(manifest_path, manifest.to_json())
        manifest._folder = self.folder
        return manifest


def _begin_alone(
    recipe: Recipe, record: _StageRecord, *, reads: Sequence[str], clean: bool
) -> StageRun | None:
    """`StageRun.open` in one process."""
    stage = record.stage
    folder = recipe.run_folder / stage
    if not clean and _state(folder, record) == "finished":
        _say_up_to_date(folder)
        return None
    locks = Locks()
    try:
        for name in reads:
            locks.read(recipe.run_folder / name, reader=stage)
            require(recipe.run_folder, name)  # it may have gone before we held it
        locks.work_in(folder)
        _mend_set_aside(folder)
        if clean:
            _set_aside(folder)
        state = _state(folder, record)  # again: it may have been finished while we came for the lock
        if state == "finished":
            _say_up_to_date(folder)
            locks.close()
            return None
        _begin(folder, recipe, record, resuming=state == "begun")
    except BaseException:
        locks.close()
        raise
    return StageRun(recipe, record, locks, resuming=state == "begun")


def _begin_together(
    recipe: Recipe, record: _StageRecord, *, reads: Sequence[str], clean: bool
) -> StageRun | None:
    """`StageRun.open` among ranks: the first holds the folder, the others learn how it is."""
    from rlhf.parallel.world import world

    begun: list[StageRun | None] = []

    def begin() -> bool | None:
        begun.append(_begin_alone(recipe, record, reads=reads, clean=clean))
        return None if begun[0] is None else begun[0].resuming

    resuming = world().run_on_rank0(begin)
    if begun or resuming is None:
        return begun[0] if begun else None
    return StageRun(recipe, record, Locks(), resuming=resuming)


def _state(folder: Path, record: _StageRecord) -> Literal["new", "begun", "finished"]:
    """How far the stage got with these settings and inputs.

    Raises:
        UserError: it was made with others, or an output of the finished stage is missing.
    """
    try:
        begun = (folder / RECORD).exists()
    except OSError as error:
        raise no_folder(folder, error) from None
    if not begun:
        _check_unused(folder)
        return "new"
    differences = _StageRecord.read(folder / RECORD).differences(record)
    if differences:
        raise _made_differently(folder, differences)
    if not (folder / MANIFEST).exists():
        return "begun"
    require(folder.parent, folder.name)
    return "finished"


def _check_unused(folder: Path) -> None:
    """A folder without stage.json is not ours to write into, or to delete, unless it is empty."""
    try:
        names = {path.name for path in folder.iterdir() if path.suffix != PARTIAL}
        strangers = names - {LOCK, _REPLACED}
    except FileNotFoundError:
        return
    except OSError as error:
        raise no_folder(folder, error) from None
    if strangers:
        raise UserError(
            f"the folder holds files that no stage has made ({', '.join(sorted(strangers)[:_MAX_NAMED])})",
            where=str(folder),
            fix="Move it away, or use another run name (`run.name=...`).",
        )


def _made_differently(folder: Path, differences: list[str]) -> UserError:
    named, more = differences[:_MAX_NAMED], len(differences) - _MAX_NAMED
    what = "; ".join(named) + (f"; and {more} more" if more > 0 else "")
    return UserError(
        f"this stage was made with other settings or inputs: {what}",
        where=str(folder),
        fix="Keep it and use another run name (`run.name=...`), go back to what it was made with "
        f"(`--config {folder / _CONFIG}`), or delete this stage's folder and begin again (`--clean`).",
    )


def _say_up_to_date(folder: Path) -> None:
    print(f"{folder.name}: up to date ({folder})")


def _set_aside(folder: Path) -> None:
    """Move the stage's files out of the way: first what says it is finished, last what says it is ours."""
    if not (folder / RECORD).exists():
        _check_unused(folder)
        return
    replaced = folder / _REPLACED
    with storing(folder):
        others = [path.name for path in folder.iterdir() if path.name not in _OWN_PLACES]
        if replaced.is_dir():  # nothing has come of what is here: what came before it stays set aside
            for name in (*others, RECORD):
                remove(folder / name)
            return
        replaced.mkdir()
        for name in (MANIFEST, *others, RECORD):
            if (folder / name).exists():
                (folder / name).rename(replaced / name)
        sync(folder)


def _mend_set_aside(folder: Path) -> None:
    """Put back what a process was setting aside when it died; each of two results has its own record."""
    if not ((folder / RECORD).exists() and (folder / _REPLACED / RECORD).exists()):
        _put_back(folder)


def _put_back(folder: Path) -> None:
    """Undo `_set_aside`: first what says it is ours, last what says it is finished."""
    replaced = folder / _REPLACED
    if not replaced.is_dir():
        return
    with storing(folder):
        others = [path.name for path in replaced.iterdir() if path.name not in (RECORD, MANIFEST)]
        for name in (RECORD, *others, MANIFEST):
            if (replaced / name).exists():
                (replaced / name).rename(folder / name)
        replaced.rmdir()
        sync(folder)


def _begin(folder: Path, recipe: Recipe, record: _StageRecord, *, resuming: bool) -> None:
    """Clear what a dead process left, and write down what this stage depends on."""
    with storing(folder):
        for path in folder.glob(f"*{PARTIAL}"):
            remove(path)
        if resuming:
            print(f"{record.stage}: going on with an unfinished stage ({folder})")
        else:
            write_atomic(folder / RECORD, record.to_json())
        partial = folder / f"{_CONFIG}{PARTIAL}"
        write_yaml(partial, recipe.resolved)
        sync(partial)
        partial.replace(folder / _CONFIG)
        sync(folder)


def _write_outputs(writers: Mapping[str, Writer], staging: Path, stage: str) -> dict[str, str]:
    """Write every output into `staging`; returns file → SHA-256, named as they will lie in the run folder."""
    staging.mkdir()
    for name, write in writers.items():
        target = staging / name
        if not target.suffix:
            target.mkdir()
        write(target)
        assert target.is_file() or any(target.iterdir()), f"nothing was written to {name}"
    sync_tree(staging)
    found = files_under(staging)
    return {f"{stage}/{path.relative_to(staging).as_posix()}": sha256_file(path) for path in found}


def _flat(values: Any, key: str = "") -> dict[str, str]:
    """Nested settings as `a.b.0.c` → value in short; an empty group or list is a value."""
    items: Any = ()
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list):
        items = enumerate(values)
    if not items or not values:
        return {key: _UNSET if values is None else json.dumps(values, ensure_ascii=False)}
    found: dict[str, str] = {}
    for name, value in items:
        found.update(_flat(value, f"{key}.{name}" if key else str(name)))
    return found


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
