import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf.errors import UserError
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import Best, Checkpoint
from tests.unit.rlhf.runs.saved_checkpoints import folder_of, found_step, save, steps

ROOT = Path(__file__).resolve().parents[4]


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, torch\nfrom rlhf.runs import checkpoints\n{code}",
            *map(str, arguments),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# What is kept


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 100):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-000010", "step-000100"]
    assert found_step(tmp_path) == 100


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert checkpoints.latest(tmp_path) is None


def test_saving_a_step_again_replaces_it_and_those_after_it(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    checkpoints.save(tmp_path, 2, {"w": torch.tensor(7.0)}, {}, keep=3)
    assert steps(tmp_path) == ["step-000001", "step-000002"]
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.tensors["w"] == 7


def test_a_damaged_checkpoint_of_a_later_step_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    for step in (4, 8):
        save(tmp_path, step)
    (folder_of(tmp_path, 8) / "state.json").write_text("")
    save(tmp_path, 6, keep=1)
    assert found_step(tmp_path) == 6


def test_the_best_is_kept_with_the_newest(tmp_path: Path) -> None:
    best = Best()
    for step, figure in enumerate([0.1, 0.9, 0.3, float("nan"), 0.9]):
        best.offer(step, figure)
        tensors = {"w": torch.full((4,), float(step))}
        checkpoints.save(tmp_path, step, tensors, {"step": step}, keep=2, best=best.step)
    assert best == Best(step=1, figure=0.9)  # the first of equals
    assert steps(tmp_path) == ["step-000001", "step-000003", "step-000004"]
    found = checkpoints.load(tmp_path, 1)
    assert found is not None
    assert (found.tensors["w"] == 1).all()
    cut(folder_of(tmp_path, 1) / "tensors.safetensors")
    assert checkpoints.load(tmp_path, 1) is None
    assert checkpoints.load(tmp_path, 7) is None


def test_a_copy_in_memory_stays_as_it_was() -> None:
    tensor, state = torch.zeros(3), {"step": 1}
    copy = Checkpoint.of(1, {"w": tensor, "row": tensor[1:]}, state)
    tensor += 1
    state["step"] = 2
    assert copy.tensors["w"].sum() == copy.tensors["row"].sum() == 0
    assert copy.state == {"step": 1}


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(folder_of(tmp_path, 2) / name)
    assert found_step(tmp_path) == 1
    assert "step-000002" in capsys.readouterr().err


def test_where_all_are_damaged_none_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        cut(folder_of(tmp_path, step) / "tensors.safetensors")
    assert checkpoints.latest(tmp_path) is None
    assert capsys.readouterr().err.count("warning") == 2


def test_a_checkpoint_under_another_steps_name_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder_of(tmp_path, 1).rename(folder_of(tmp_path, 9))
    assert checkpoints.latest(tmp_path) is None


def test_what_is_valid_json_of_the_wrong_shape_is_damage_too(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for text in ("[]", "null", "{}", '{"tensors.safetensors": 1, "state.json": 2}'):
        (folder_of(tmp_path, 1) / "checksums.json").write_text(text)
        assert checkpoints.latest(tmp_path) is None


def test_leftovers_are_never_read_and_a_replaced_checkpoint_is_put_back(tmp_path: Path) -> None:
    save(tmp_path, 1)
    root = tmp_path / "checkpoints"
    folder_of(tmp_path, 1).rename(root / "step-000001.old.partial")  # died between the two renames
    (root / "step-000001.new.partial").mkdir()
    (root / "step-000007.partial").mkdir()  # died while deleting
    assert found_step(tmp_path) == 1
    assert steps(tmp_path) == ["step-000001"]


def test_a_process_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = """
import os, signal, time
from pathlib import Path
from tests.unit.rlhf.runs.saved_checkpoints import found_step
folder, reached = Path(sys.argv[1]), 0
for kill in range(20):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for step in range(reached, 10**6):
            tensors = {"w": torch.full((100_000,), float(step))}
            checkpoints.save(folder, step, tensors, {"step": step}, keep=1)
            os.write(writing, step.to_bytes(4))
    os.close(writing)
    saved = os.read(reading, 4)  # one is on disk; the blow falls somewhere in the next
    time.sleep(0.001 * kill)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 4):
        saved = more
    found = found_step(folder)
    assert found is not None and found >= int.from_bytes(saved), (found, saved)
    reached = found
"""
    process = python(code, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "warning" not in errors


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path) -> None:
    code = """
import resource
from pathlib import Path
from rlhf.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(Path(sys.argv[1]), 3, {"w": torch.zeros(100_000)}, {})
except UserError as error:
    print(error)
    sys.exit(2)
"""
    save(tmp_path, 1)
    save(tmp_path, 2)
    process = python(code, tmp_path)
    printed, problems = process.communicate(timeout=120)
    assert process.returncode == 2, problems
    assert "cannot store the results (File too large)" in printed
    assert steps(tmp_path) == ["step-000001", "step-000002"]
    assert found_step(tmp_path) == 2


def test_a_checkpoint_whose_replacement_fails_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "step-000001.new.partial":
            raise OSError(errno.ENOSPC, "full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="cannot store the results"):
        save(tmp_path, 1)
    assert found_step(tmp_path) == 1


def test_state_that_is_no_json_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(TypeError):
        checkpoints.save(tmp_path, 2, {}, {"tensor": torch.zeros(1)})
    assert steps(tmp_path) == ["step-000001"]
    assert found_step(tmp_path) == 1


def test_a_folder_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    code = """
import os
from pathlib import Path
from rlhf.errors import UserError
if os.geteuid() == 0:
    os.setuid(65534)  # nothing is forbidden to root
try:
    checkpoints.save(Path(sys.argv[1]), 2, {}, {})
except UserError as error:
    print(error)
    sys.exit(2)
"""
    save(tmp_path, 1)
    (tmp_path / "checkpoints").chmod(0o500)
    process = python(code, tmp_path)
    printed, problems = process.communicate(timeout=120)
    (tmp_path / "checkpoints").chmod(0o700)
    assert process.returncode == 2, problems
    assert "cannot store the results (Permission denied)" in printed
    assert found_step(tmp_path) == 1
