"""Both racers of every kind at toy size, each in a process of its own: the same work on both sides."""

import json
from pathlib import Path

import pytest

from benchmarks.trl.peer_install import install_peer
from benchmarks.trl.suite import Options, race_ppo, race_reward
from benchmarks.workloads import REWARD_WORKLOADS, SHAPES, PPOWorkload
from rlhf.errors import UserError

pytestmark = pytest.mark.slow

WORKLOAD = PPOWorkload(
    name="ppo-toy",
    prompt_tokens=6,
    max_response_tokens=12,
    eos_hazard=0.1,
    rollouts=8,
    num_epochs=2,
    num_minibatches=2,
    num_prompts=40,
)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(rounds=1, laps=2, build=tmp_path / "build", results=tmp_path / "results")


def test_ppo_racers_do_the_same_work(options: Options, root: Path, tmp_path: Path) -> None:
    installed = root / "build" / "benchmarks"
    try:
        install_peer(installed)
    except UserError as error:
        pytest.skip(f"the peer cannot be installed: {error.what}")
    options.build.mkdir()
    (options.build / "trl-1.12.0").symlink_to(installed / "trl-1.12.0")
    report = race_ppo(WORKLOAD, SHAPES["toy"], options)
    ours, peer = (report["racers"][f"{side}, all layers"] for side in ("ours", "peer"))
    assert ours["optimizer_steps_per_lap"] == peer["optimizer_steps_per_lap"] == [4]
    assert ours["trainable_parameters"] == peer["trainable_parameters"]
    assert ours["base_parameters"] == peer["base_parameters"]
    assert ours["lengths"]["num"] == peer["lengths"]["num"] == 3 * WORKLOAD.rollouts
    assert ours["lengths"]["max"] <= 12
    assert peer["lengths"]["max"] <= 12
    assert ours["versions"]["trl"] != "1.12.0"
    assert peer["versions"]["trl"] == "1.12.0"
    assert set(ours["breakdown"]) == {"sampling", "scoring", "training", "everything else"}
    written = json.loads((tmp_path / "results" / "ppo-toy-toy.json").read_text(encoding="utf-8"))
    assert [set(each) for each in written["rounds"]] == [{"ours, all layers", "peer, all layers"}]
    assert written["racers"] == report["racers"]


def test_reward_racers_do_the_same_work(options: Options) -> None:
    workload = REWARD_WORKLOADS["reward-skewed-4"].model_copy(update={"num_groups": 64, "num_held_out": 20})
    report = race_reward(workload, SHAPES["toy"], options)
    ours, peer = (report["racers"][f"{side}, all layers"] for side in ("ours", "peer"))
    assert ours["optimizer_steps_per_lap"] == peer["optimizer_steps_per_lap"] == [1]
    assert ours["trainable_parameters"] == peer["trainable_parameters"]
    assert {"accuracy", "accuracy_low", "accuracy_high"} <= set(ours["figures"]) & set(peer["figures"])
