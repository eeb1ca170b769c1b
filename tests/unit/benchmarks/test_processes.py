from pathlib import Path

import pytest

from benchmarks.processes import alone_in, environment, file_name, last_lines
from rlhf.errors import UserError


def test_every_racer_gets_the_same_threads_and_only_the_peer_its_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    ours, peer = environment(3, None), environment(3, Path("peer"))
    assert "PYTHONPATH" not in ours
    assert peer.pop("PYTHONPATH") == "peer"
    assert ours == peer
    assert ours["OMP_NUM_THREADS"] == ours["MKL_NUM_THREADS"] == "3"


def test_two_benchmarks_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="is running a benchmark"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


def test_a_title_makes_one_word_of_a_files_name() -> None:
    assert file_name("ours, all layers") == "ours-all-layers"


def test_of_a_log_the_end_is_told_whatever_bytes_it_has(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\n\xff\n")
    assert last_lines(log, 2) == "two\n\N{REPLACEMENT CHARACTER}"
