from pathlib import Path

import pytest

from benchmarks.trl.jobs import Job
from benchmarks.trl.peer_install import PEER_VERSION, install_peer
from benchmarks.trl.race import Racer, run_racer, with_seed


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


def test_a_round_has_its_seed_and_its_folder() -> None:
    seeded = with_seed(job(), 7)
    assert (seeded.seed, seeded.overrides[-1], seeded.output) == (7, "run.seed=7", "run/output-7")


def test_a_racer_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"No module named benchmarks\.nobody"):
        run_racer(Racer("benchmarks.nobody", job()), job(), tmp_path)


def test_a_peer_that_is_there_is_not_installed_again(tmp_path: Path) -> None:
    record = tmp_path / f"trl-{PEER_VERSION}" / f"trl-{PEER_VERSION}.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    record.touch()
    assert install_peer(tmp_path) == tmp_path / f"trl-{PEER_VERSION}"
