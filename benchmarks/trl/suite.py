"""The races for speed and memory: what is prepared, who runs, and what is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_code, describe_machine
from benchmarks.processes import file_name
from benchmarks.report import write_report
from benchmarks.trl.jobs import Job, prompt_ids_path
from benchmarks.trl.peer_install import install_peer
from benchmarks.trl.race import OUR_PPO, OUR_REWARD, PEER_PPO, PEER_REWARD, Racer, Round, run_rounds
from benchmarks.trl.report import markdown
from benchmarks.trl.summary import summarize
from benchmarks.workloads import Layers, PPOWorkload, RewardWorkload, Shape, racer_pairs
from rlhf.settings.recipe import load_recipe


@dataclass(frozen=True)
class Options:
    """What holds for every race."""

    rounds: int = 5
    laps: int = 2
    """Counted iterations of PPO in a start; optimizer steps of reward training at most, 0: all."""
    warmup_laps: int = 1
    """Iterations or steps before the counted ones."""
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    layers: tuple[Layers, ...] = ("all layers",)
    sides: tuple[str, ...] = ("peer", "ours")
    build: Path = Path("build/benchmarks")
    results: Path = Path("benchmarks/results")

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.rounds))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Who is compared with whom: nobody, if one side is left out."""
        return racer_pairs(self.layers) if set(self.sides) == {"peer", "ours"} else []


def race_ppo(workload: PPOWorkload, shape: Shape, options: Options) -> dict[str, Any]:
    """PPO on one workload and shape; returns the report."""
    from benchmarks.trl.fixtures import prepare_ppo, write_prompt_ids

    folder = (options.build / f"{workload.name}-{shape.name}").resolve()
    path = install_peer(options.build.resolve()) if "peer" in options.sides else None
    racers: list[Racer] = []
    for layers in options.layers:
        run_folder = folder / layers.replace(" ", "-")
        recipe = prepare_ppo(run_folder, workload, shape, layers)
        for seed in options.seeds:
            write_prompt_ids(load_recipe(recipe, [f"run.seed={seed}"]), prompt_ids_path(run_folder, seed))
        overrides = [f"ppo.num_iterations={options.warmup_laps + options.laps}", *_run_overrides(options)]
        for side in options.sides:
            job = _job(f"{side}, {layers}", recipe, overrides, layers, options)
            job = job.model_copy(update={"stops_at_eos": workload.eos_hazard > 0})
            racers.append(Racer(PEER_PPO, job, path) if side == "peer" else Racer(OUR_PPO, job))
    rounds = run_rounds(racers, options.rounds, folder=folder / "rounds", seed=options.seed)
    ended = "no EOS" if workload.eos_hazard == 0 else f"EOS with probability {workload.eos_hazard} a token"
    conditions = (
        f"Prompt {workload.prompt_tokens} tokens, response up to {workload.max_response_tokens} ({ended}); "
        f"{workload.rollouts} rollouts, {workload.num_epochs} × {workload.num_minibatches} optimizer steps; "
        f"LoRA rank {workload.lora_rank} on all linear layers, policy and value. "
        f"Rounds: {options.rounds}, each racer in a process of its own; iterations: {options.laps} counted "
        f"after {options.warmup_laps} that are not."
    )
    from benchmarks.trl.peer_settings import FIXED_LENGTH_DIFFERENCES, PPO_DIFFERENCES

    return _finish(
        f"{workload.name}, {shape.name}",
        rounds,
        options,
        conditions=conditions,
        unit="iterations",
        units_per_lap=1,
        lap="iteration",
        differences=[*PPO_DIFFERENCES, *(() if workload.eos_hazard else FIXED_LENGTH_DIFFERENCES)],
        workload=workload.model_dump(),
        shape=shape.model_dump(),
    )


def race_reward(workload: RewardWorkload, shape: Shape, options: Options) -> dict[str, Any]:
    """Reward training on one workload and shape; returns the report."""
    from benchmarks.trl.fixtures import prepare_reward
    from benchmarks.trl.peer_settings import REWARD_DIFFERENCES

    folder = (options.build / f"{workload.name}-{shape.name}").resolve()
    racers: list[Racer] = []
    for layers in options.layers:
        recipe = prepare_reward(folder / layers.replace(" ", "-"), workload, shape, layers)
        for side in options.sides:
            job = _job(f"{side}, {layers}", recipe, _run_overrides(options), layers, options)
            job = job.model_copy(update={"max_laps": options.laps})
            racers.append(Racer(PEER_REWARD if side == "peer" else OUR_REWARD, job))
    rounds = run_rounds(racers, options.rounds, folder=folder / "rounds", seed=options.seed)
    tokens = (
        f"log-normal, median {workload.median_tokens}, sigma {workload.sigma}, "
        f"cut to {workload.min_tokens}–{workload.max_tokens}"
        if workload.skewed
        else f"all {workload.median_tokens}"
    )
    conditions = (
        f"K = {workload.num_completions} completions a prompt, {workload.pairs_per_group} pairs; prompt "
        f"{workload.prompt_tokens} tokens, completions {tokens} tokens and EOS; {workload.num_groups} groups "
        f"to train on, {workload.num_held_out} held out, {workload.batch_groups} groups a step, "
        f"{workload.num_epochs} epochs, learning rate {workload.learning_rate:g}; LoRA rank "
        f"{workload.lora_rank}. Rounds: {options.rounds}; first steps that do not count: "
        f"{options.warmup_laps}."
    )
    return _finish(
        f"{workload.name}, {shape.name}",
        rounds,
        options,
        conditions=conditions,
        unit="groups",
        units_per_lap=workload.batch_groups,
        lap="optimizer step",
        differences=list(REWARD_DIFFERENCES),
        workload=workload.model_dump(),
        shape=shape.model_dump(),
    )


def _job(racer: str, recipe: Path, overrides: list[str], layers: Layers, options: Options) -> Job:
    return Job(
        racer=racer,
        recipe=str(recipe),
        overrides=overrides,
        run_folder=str(recipe.parent),
        output=str(recipe.parent / f"output-{racer.partition(',')[0]}"),
        seed=options.seed,
        threads=options.threads,
        device=options.device,
        layers=layers,
        num_warmup_laps=options.warmup_laps,
    )


def _run_overrides(options: Options) -> list[str]:
    return [f"run.threads={options.threads}", f"run.device={options.device}"]


def _finish(title: str, rounds: Sequence[Round], options: Options, **known: Any) -> dict[str, Any]:
    report = {
        "title": title,
        "machine": describe_machine(),
        "code": describe_code(),
        "device": options.device,
        "threads": options.threads,
        "seeds": options.seeds,
        **known,
        **summarize(rounds, options.pairs),
    }
    text = markdown(report)
    plain = [{name: result.model_dump() for name, result in each.items()} for each in rounds]
    write_report({**report, "rounds": plain}, text, options.results, file_name(title))
    print(f"\n{text}", flush=True)
    return report
