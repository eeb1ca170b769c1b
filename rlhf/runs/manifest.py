"""`manifest.json`: what a finished stage was made from and what it published.

It is written last, by rename, so its presence means that the stage is finished. Paths in it are relative to
the run folder, which can be moved.
"""

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from rlhf.errors import UserError

MANIFEST = "manifest.json"
STAGE_FILE = "stage.json"
"""What a stage writes first: see rlhf.runs.stage_file."""
MODEL = "model"

_PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors"),
    "bitsandbytes",
)


class JsonFile(BaseModel):
    """A JSON file of ours, read strictly: damage is found here, and not by whoever uses a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `path`.

        Raises:
            UserError: it is unreadable, damaged, or of another version.
        """
        fix = f"Put the file back, or delete {path.parent} and run this stage again."
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"cannot read the file ({error.strerror})", where=str(path), fix=fix) from None
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"])
            detail = f"`{at}`: {first['msg']}" if at else first["msg"]
            raise UserError(
                f"the file is damaged or of another version ({detail})", where=str(path), fix=fix
            ) from None

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


class Manifest(JsonFile):
    """What a finished stage was made from and what it published."""

    schema_version: Literal[1] = 1
    stage: str
    config_hash: str
    """Hash of the settings and inputs that the results depend on; their values are in `stage.json`."""
    seed: int
    date: str | None = None
    """The day that chat templates wrote, if they wrote one; None in older manifests."""
    git_revision: str | None
    git_dirty: bool | None
    packages: dict[str, str]
    device: str
    inputs: dict[str, str]
    """Input → SHA-256, or `hub:<id>@<revision>`."""
    outputs: dict[str, str]
    """Published file → SHA-256."""
    output_bytes: dict[str, int]
    artifact_sha256: str
    """One hash of all outputs: what a later stage names as its input."""
    metrics: dict[str, Any]
    accounts: dict[str, Any]
    """What became of every record (`RecordCounts.accounts`)."""
    wandb: str | None
    """Address of the W&B run, if it was online."""

    _folder: Path = PrivateAttr(default=Path())

    @classmethod
    def read(cls, path: Path) -> Self:
        return super().read(path).stored_in(path.parent)

    def stored_in(self, folder: Path) -> Self:
        """The same manifest, which knows the stage's folder that it is stored in."""
        self._folder = folder
        return self

    @property
    def folder(self) -> Path:
        """The stage's folder, wherever the run is stored now."""
        return self._folder

    def path(self, name: str = MODEL) -> Path:
        """Where the output `name` is stored."""
        return self._folder / name

    def check_outputs(self) -> None:
        """Compare every output's size with the record: cheap, so a flipped bit is not found.

        Raises:
            UserError: an output is missing or has another size.
        """
        for name, size in self.output_bytes.items():
            path = self._folder.parent / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                what = "is missing" if found is None else f"is damaged ({found} bytes, should be {size})"
                raise UserError(
                    f"this output of the finished stage {what}",
                    where=str(path),
                    fix=f"Put the file back, or make it again: `make {self.stage} CLEAN=1` (`--clean`).",
                )


def require(run_folder: Path, stage: str) -> Manifest:
    """The manifest of a finished stage of this run: the only way in which a later stage finds a model.

    Raises:
        UserError: the stage has not finished, or its manifest or an output is damaged or missing.
    """
    path = run_folder / stage / MANIFEST
    try:
        begun = (path.parent / STAGE_FILE).exists()
        finished = path.exists()
    except OSError as error:
        raise UserError(
            f"cannot read the run ({error.strerror})", where=str(run_folder), fix="Correct its permissions."
        ) from None
    if not finished:
        how_far = "has begun but not finished" if begun else "has not run yet"
        raise UserError(
            f"the stage `{stage}` {how_far}",
            where=str(run_folder),
            fix=f"Run `make {stage}` for the run `{run_folder.name}` first.",
        )
    manifest = Manifest.read(path)
    manifest.check_outputs()
    return manifest


def json_value(value: Any) -> Any:
    """`value` as strict JSON: what is not finite becomes null, a 0-dim tensor or numpy scalar its number."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else json_value(value.item())


def git_state(file: Path = Path(__file__)) -> tuple[str | None, bool | None]:
    """The revision that `file` belongs to, by default this code's, and whether tracked files differ from it.

    (None, None) without git, and in a repository that does not track the file.
    """
    file = file.resolve()
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        revision = _git(file.parent, "rev-parse", "HEAD").strip()
        return revision, bool(_git(file.parent, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def package_versions() -> dict[str, str]:
    """Python and the packages that results depend on, as far as they are installed."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """What this process computed on, without loading torch for the answer."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"cuda ({torch.cuda.get_device_name()})"
    return "cpu"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout
