from pathlib import Path

import pytest

from benchmarks.jobs import Job
from benchmarks.machine import memory_gib, processor_name
from benchmarks.peer_install import PEER_VERSION, install_peer
from benchmarks.race import Racer, alone_in, environment, run_racer, with_seed
from rlhf.errors import UserError


def job() -> Job:
    return Job(
        racer="ours, all layers",
        recipe="recipe.yaml",
        overrides=["run.threads=1"],
        run_folder="run",
        output="run/output",
        seed=0,
        threads=1,
    )


def test_every_racer_gets_the_same_threads_and_only_the_peer_its_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    ours, peer = environment(3, None), environment(3, Path("peer"))
    assert "PYTHONPATH" not in ours
    assert peer.pop("PYTHONPATH") == "peer"
    assert ours == peer
    assert ours["OMP_NUM_THREADS"] == ours["MKL_NUM_THREADS"] == "3"


def test_a_round_has_its_seed_and_its_folder() -> None:
    seeded = with_seed(job(), 7)
    assert (seeded.seed, seeded.overrides[-1], seeded.output) == (7, "run.seed=7", "run/output-7")


def test_a_racer_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"No module named benchmarks\.nobody"):
        run_racer(Racer("benchmarks.nobody", job()), job(), tmp_path)


def test_a_peer_that_lies_there_is_not_installed_again(tmp_path: Path) -> None:
    record = tmp_path / f"trl-{PEER_VERSION}" / f"trl-{PEER_VERSION}.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    record.touch()
    assert install_peer(tmp_path) == tmp_path / f"trl-{PEER_VERSION}"


def test_the_machine_is_read_from_what_the_kernel_says() -> None:
    assert processor_name("processor\t: 0\nmodel name\t: Some CPU @ 2.50GHz\n") == "Some CPU @ 2.50GHz"
    assert processor_name("") is None
    assert memory_gib("MemTotal:       16777216 kB\n") == 16.0
    assert memory_gib("") is None


def test_two_benchmarks_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="is running a benchmark"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass
