"""Run folders: who may write, what is finished, and what a later stage may trust.

A stage owns `runs/<name>/<stage>/`:

    .lock           held (flock) while a process works there, or reads what is stored there (rlhf.runs.locks)
    stage.json      written first: the settings and inputs that this stage's results depend on
    config.yaml     the whole recipe, every default filled in
    model/, ...     what the stage publishes, each by one rename
    manifest.json   written last, by rename: its presence means finished
    replaced/       what `--clean` has set aside until the stage has read its inputs (rlhf.runs.replaced)

Staleness is decided by hashes, never by file times. Anything named `*.partial` is a leftover of a process
that died and is never read. Paths inside these files are relative to the run folder, which can be moved.
"""

import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rlhf.environment import has_ranks, is_rank0
from rlhf.errors import UserError
from rlhf.runs.date import date_of_stage, freeze_date, run_date
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
    write_atomic,
)
from rlhf.runs.locks import LOCK, Locks, no_folder
from rlhf.runs.manifest import (
    MANIFEST,
    MODEL,
    STAGE_FILE,
    Manifest,
    device_name,
    git_state,
    json_value,
    package_versions,
    require,
)
from rlhf.runs.replaced import MAX_NAMED, REPLACED, check_unused, put_back, repair, set_aside
from rlhf.runs.stage_file import StageFile
from rlhf.settings.recipe import Recipe, config_hash
from rlhf.settings.yaml_files import write_yaml

__all__ = ["StageRun", "Writer", "require"]

Writer = Callable[[Path], None]

_CONFIG = "config.yaml"
_State = Literal["new", "begun", "finished"]


class StageRun:
    """A stage at work: it holds the folder's lock from `open` until the `with` block ends."""

    def __init__(self, recipe: Recipe, record: StageFile, locks: Locks, *, resuming: bool) -> None:
        self.recipe = recipe
        self.stage = record.stage
        self.resuming = resuming
        self.run_folder = recipe.run_folder
        self.folder = recipe.run_folder / record.stage
        self._record = record
        self._locks = locks
        freeze_date(record.date, given=recipe.model.date)

    @staticmethod
    def open(
        recipe: Recipe,
        stage: str,
        inputs: Mapping[str, str],
        *,
        details: Mapping[str, str] | None = None,
        reads: Sequence[str] = (),
        clean: bool = False,
        sections: Sequence[str] | None = None,
        counted: Recipe | None = None,
        accept: Collection[str] = (),
    ) -> "StageRun | None":
        """Begin `stage`, resume a half-finished one, or return None (and say so) if it is up to date.

        `stage` names the folder. `inputs` maps a name to its hash, and so do `details`, which
        stages that earlier versions have made are not compared with. `reads` are the stages of this run whose
        results it works with: nobody can make them again meanwhile. `sections` are the parts of the
        recipe whose semantic settings count; by default those of this stage, `model` and `run`. `counted` is
        the recipe with only the settings that count in these sections, if that is not `recipe`. `clean`
        sets aside what the folder holds and begins again: see `drop_replaced`. The inputs in `accept` may
        have changed since a half-finished stage began; that is said.

        Raises:
            UserError: the folder was made with other settings or inputs, lacks a published file, is held by
                another process, or cannot be written; or a stage in `reads` is being made again.
        """
        if sections is None:
            recipe.section(stage)
            sections = (stage, "model", "run")
        settings = (counted or recipe).semantic(*sections)
        digest = config_hash({"settings": settings, "inputs": dict(inputs)})
        record = StageFile(
            stage=stage,
            config_hash=digest,
            settings=settings,
            inputs=dict(inputs),
            details=dict(details or {}),
        )
        if not has_ranks():
            return _begin_alone(recipe, record, reads=reads, clean=clean, accept=accept)
        return _begin_together(recipe, record, reads=reads, clean=clean, accept=accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError) and is_rank0():
            self._forget_if_nothing_was_made()
        self.close()

    def _forget_if_nothing_was_made(self) -> None:
        """After a refused input the folder must not pin the settings that it was refused with."""
        made = {path.name for path in self.folder.iterdir() if path.suffix != PARTIAL}
        if made <= {LOCK, _CONFIG, STAGE_FILE, REPLACED}:
            (self.folder / _CONFIG).unlink(missing_ok=True)
            (self.folder / STAGE_FILE).unlink(missing_ok=True)
            put_back(self.folder)

    @property
    def date(self) -> str:
        """The day on which the run began."""
        assert self._record.date is not None
        return self._record.date

    def drop_replaced(self) -> None:
        """Delete what `--clean` has set aside: the inputs are read, and new results begin to appear.

        Until then a refused input puts the old results back.
        """
        if is_rank0():
            with storing(self.folder):
                remove(self.folder / REPLACED)

    def close(self) -> None:
        """Unlock the folder, and those that were read."""
        self._locks.close()

    def next_command(self, target: str) -> str:
        """The make command that continues with this run, every setting as it was here."""
        config = str(self.folder / _CONFIG).replace("$", "$$")  # one $ is make's own
        return f"make {target} CONFIG={shlex.quote(config)}"

    def publish(
        self,
        outputs: Mapping[str, Writer] | None = None,
        *,
        write_model: Writer | None = None,
        metrics: Mapping[str, Any],
        counts: Mapping[str, Any],
        wandb_url: str | None = None,
        device: str | None = None,
    ) -> Manifest:
        """Write the stage's outputs, then the manifest that says it is finished.

        `outputs` maps a name to the function that writes it: a name with a suffix (`rankings.jsonl`) is a
        file, any other a folder, which exists when the function is called. `write_model=f` is short for
        `{"model": f}`. Everything is written apart, brought to the disk, hashed and renamed; if a function
        raises, nothing of it stays and an older output is untouched. `counts` say what became of every
        record.

        Raises:
            UserError: no space, or no permission to write.
        """
        writers = {**(outputs or {})}
        if write_model is not None:
            writers = {MODEL: write_model, **writers}

        def write() -> Manifest:
            return self._publish(writers, metrics=metrics, counts=counts, wandb_url=wandb_url, device=device)

        if not has_ranks():
            return write()
        from rlhf.parallel.world import world  # torch, which one process does not need to publish

        return world().run_on_rank0(write)

    def _publish(
        self,
        writers: Mapping[str, Writer],
        *,
        metrics: Mapping[str, Any],
        counts: Mapping[str, Any],
        wandb_url: str | None,
        device: str | None,
    ) -> Manifest:
        assert self._locks.held, "publish belongs inside the `with` block"
        manifest_path = self.folder / MANIFEST
        assert not manifest_path.exists()
        self.drop_replaced()
        with storing(self.folder):
            hashes = _publish_outputs(writers, self.folder)
            revision, dirty = git_state()
            manifest = Manifest(
                stage=self.stage,
                config_hash=self._record.config_hash,
                seed=self.recipe.run.seed,
                date=run_date().isoformat(),
                git_revision=revision,
                git_dirty=dirty,
                packages=package_versions(),
                device=device or device_name(),
                inputs=self._record.inputs | (self._record.details or {}),
                outputs=hashes,
                output_bytes={name: (self.run_folder / name).stat().st_size for name in hashes},
                artifact_sha256=names_hash(hashes),
                metrics=json_value(metrics),
                accounts=json_value(counts),
                wandb=wandb_url,
            )
            write_atomic(manifest_path, manifest.to_json())
        return manifest.stored_in(self.folder)


def _begin_alone(
    recipe: Recipe, record: StageFile, *, reads: Sequence[str], clean: bool, accept: Collection[str]
) -> StageRun | None:
    """`StageRun.open` in one process."""
    stage = record.stage
    folder = recipe.run_folder / stage
    if not clean and not accept and _state(folder, record) == "finished":
        _say_up_to_date(folder)
        return None
    locks = Locks()
    try:
        for name in reads:
            locks.read(recipe.run_folder / name, reader=stage)
            require(recipe.run_folder, name)  # it may have been deleted before we held it
        locks.work_in(folder)
        repair(folder)
        if clean:
            set_aside(folder)
        elif accept:
            _accept_changes(folder, record, accept)
        state = _state(folder, record)  # again: it may have been finished while we waited for the lock
        if state == "finished":
            _say_up_to_date(folder)
            locks.close()
            return None
        record = record.model_copy(update={"date": date_of_stage(folder)})
        _begin(folder, recipe, record, resuming=state == "begun")
    except BaseException:
        locks.close()
        raise
    return StageRun(recipe, record, locks, resuming=state == "begun")


def _begin_together(
    recipe: Recipe, record: StageFile, *, reads: Sequence[str], clean: bool, accept: Collection[str]
) -> StageRun | None:
    """`StageRun.open` among ranks: rank 0 holds the folder, the others learn how it is."""
    from rlhf.parallel.world import world

    begun: list[StageRun | None] = []

    def begin() -> tuple[bool, str] | None:
        begun.append(_begin_alone(recipe, record, reads=reads, clean=clean, accept=accept))
        return None if begun[0] is None else (begun[0].resuming, begun[0].date)

    outcome = world().run_on_rank0(begin)
    if begun or outcome is None:
        return begun[0] if begun else None
    resuming, date = outcome
    return StageRun(recipe, record.model_copy(update={"date": date}), Locks(), resuming=resuming)


def _accept_changes(folder: Path, record: StageFile, names: Collection[str]) -> None:
    """Write a half-finished stage's record again, if nothing but these inputs has changed since it began."""
    if (folder / MANIFEST).exists() or not (folder / STAGE_FILE).exists():
        return
    before = StageFile.read(folder / STAGE_FILE)
    differences = before.differences(record)
    if differences and before.differs_only_in(record, names):
        with storing(folder):
            same_day = record.model_copy(update={"date": date_of_stage(folder)})
            write_atomic(folder / STAGE_FILE, same_day.to_json())
        print(
            f"warning: {record.stage}: {'; '.join(differences)} since this stage began; what was made before "
            "that stays as it is",
            file=sys.stderr,
        )


def _state(folder: Path, record: StageFile) -> _State:
    """How far the stage got with these settings and inputs.

    Raises:
        UserError: it was made with others, or an output of the finished stage is missing.
    """
    try:
        begun = (folder / STAGE_FILE).exists()
    except OSError as error:
        raise no_folder(folder, error) from None
    if not begun:
        check_unused(folder)
        return "new"
    differences = StageFile.read(folder / STAGE_FILE).differences(record)
    if differences:
        raise _made_differently(folder, differences)
    if not (folder / MANIFEST).exists():
        return "begun"
    require(folder.parent, folder.name)
    return "finished"


def _made_differently(folder: Path, differences: list[str]) -> UserError:
    what = "; ".join(differences[:MAX_NAMED])
    if len(differences) > MAX_NAMED:
        what += f"; and {len(differences) - MAX_NAMED} more"
    return UserError(
        f"this stage was made with other settings or inputs: {what}",
        where=str(folder),
        fix="Keep it and use another run name (`run.name=...`), go back to what it was made with "
        f"(`--config {folder / _CONFIG}`), or delete this stage's folder and begin again (`--clean`).",
    )


def _say_up_to_date(folder: Path) -> None:
    print(f"{folder.name}: up to date ({folder})")


def _begin(folder: Path, recipe: Recipe, record: StageFile, *, resuming: bool) -> None:
    """Clear what a dead process left, and write down what this stage depends on."""
    with storing(folder):
        for path in folder.glob(f"*{PARTIAL}"):
            remove(path)
        if resuming:
            print(f"{record.stage}: resuming an unfinished stage ({folder})")
        else:
            write_atomic(folder / STAGE_FILE, record.to_json())
        partial = folder / f"{_CONFIG}{PARTIAL}"
        write_yaml(partial, recipe.resolved)
        sync(partial)
        partial.replace(folder / _CONFIG)
        sync(folder)


def _publish_outputs(writers: Mapping[str, Writer], folder: Path) -> dict[str, str]:
    """Write every output and rename it into `folder`; file → SHA-256, named from the run folder."""
    staging = folder / f"publish{PARTIAL}"
    try:
        hashes = _write_outputs(writers, staging, folder.name)
        for name in writers:
            replace(staging / name, folder / name)
    finally:
        remove(staging)
    return hashes


def _write_outputs(writers: Mapping[str, Writer], staging: Path, stage: str) -> dict[str, str]:
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
