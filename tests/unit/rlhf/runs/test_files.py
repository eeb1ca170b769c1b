"""What the disk refuses becomes a user's error, and nothing else does."""

import errno
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.runs.files import storing


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5120 vs 5012"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_is_a_users_error_whoever_was_writing(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(UserError, match="cannot store the results \\(No space left on device\\)"),
        storing(tmp_path),
    ):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), FileNotFoundError(errno.ENOENT, "x")])
def test_any_other_error_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), storing(tmp_path):
        raise error
