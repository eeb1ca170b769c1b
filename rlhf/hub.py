"""What is on the Hugging Face hub and what in a folder; whether the hub answers, asked once and briefly.

The hub's own libraries try again and again, for most of a minute and without a word, before they give up.
"""

import os
import sys
from pathlib import Path
from typing import Literal, cast

from rlhf.errors import UserError

Kind = Literal["model", "dataset"]

TIMEOUT_SECONDS = 5.0


def local_model_folder(path: str, *, where: str) -> Path | None:
    """The folder that `path` names, or None for a hub id.

    Raises:
        UserError: it can only be a local folder, and there is none.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local or folder.exists():
        raise UserError(
            "there is no such model folder",
            where=where,
            fix="Give a folder that holds a Hugging Face model, or a hub id owner/name.",
        )
    return None


def check_hub(repo_id: str, *, kind: Kind, where: str, revision: str | None = None) -> None:
    """Say that `repo_id` is being looked for, and find out whether the hub answers at all.

    Nothing is asked offline (HF_HUB_OFFLINE), or where a copy is in the cache. What the hub answers is left
    to the library that loads.

    Raises:
        UserError: the hub does not answer.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE or (kind == "dataset" and _datasets_offline()):
        return
    print(f"looking for the {kind} {repo_id} at {constants.ENDPOINT}", file=sys.stderr, flush=True)
    if _cached(repo_id, kind, Path(constants.HF_HUB_CACHE)):
        return
    # The base of the hub's own errors is its HTTP library's, which has not always been the same one.
    http_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        HfApi().repo_info(repo_id, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
    except (HfHubHTTPError, ValueError):
        return
    except (http_error, OSError) as error:
        raise UserError(
            f"the hub cannot be reached to look for the {kind} `{repo_id}` "
            f"({constants.ENDPOINT}: {' '.join(str(error).split()) or type(error).__name__})",
            where=where,
            fix=f"Check the network, or give the path of a local {'folder' if kind == 'model' else 'file'}.",
        ) from None


def _datasets_offline() -> bool:
    return os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _cached(repo_id: str, kind: Kind, cache: Path) -> bool:
    """Whether some of it was downloaded before: then the libraries do not wait for the hub."""
    folders = [cache / f"{kind}s--{repo_id.replace('/', '--')}" / "snapshots"]
    if kind == "dataset":
        import datasets

        folders.append(Path(datasets.config.HF_DATASETS_CACHE) / repo_id.replace("/", "___"))
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)
