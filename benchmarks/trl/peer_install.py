"""The peer's library in a folder of its own: our environment keeps its version."""

import subprocess
import sys
from pathlib import Path

from rlhf.errors import UserError

PEER_VERSION = "1.12.0"
"""The last TRL that has a PPOTrainer."""


def install_peer(folder: Path) -> Path:
    """Install TRL 1.12.0 alone, without what it depends on, unless it is there already; returns the folder.

    Raises:
        UserError: it cannot be installed.
    """
    target = folder / f"trl-{PEER_VERSION}"
    if (target / f"trl-{PEER_VERSION}.dist-info" / "RECORD").is_file():
        return target
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--target", str(target), f"trl=={PEER_VERSION}"]
    print(f"installing trl {PEER_VERSION} into {target}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(
            f"cannot install trl {PEER_VERSION}: {reason}",
            where=str(target),
            fix="A package index is needed once. Or put the wheel's content into that folder yourself.",
        )
    return target
