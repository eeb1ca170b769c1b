import subprocess
from pathlib import Path

import pytest

from rlhf.runs.files import tree_hash
from rlhf.runs.manifest import git_state
from tests.unit.rlhf.runs.stages import write_weights


def test_a_trees_hash_depends_on_names_and_contents_and_not_on_its_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_weights()(tmp_path / name)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    (tmp_path / "two" / "weights.safetensors").write_bytes(b"weightz")
    assert tree_hash(tmp_path / "one") != tree_hash(tmp_path / "two")
    (tmp_path / "one" / "weights.safetensors").rename(tmp_path / "one" / "weights.bin")
    assert tree_hash(tmp_path / "one") != tree_hash(tmp_path / "two")


def test_the_code_revision_is_that_of_the_repository_that_tracks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    code, other = tmp_path / "code.py", tmp_path / "other.py"
    code.write_text("1")
    assert git_state(code) == (None, None)
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    assert git_state(code) == (git("rev-parse", "HEAD"), False)
    other.write_text("1")
    assert git_state(code) == (git("rev-parse", "HEAD"), False)
    assert git_state(other) == (None, None)
    code.write_text("2")
    assert git_state(code) == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("PATH", "")
    assert git_state(code) == (None, None)
