"""The phases of every stage: which pieces run, on how much data, on top of what."""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from plan import decoding, passes, supervised
from plan.inputs import Batch, Run
from plan.ledger import GRADIENTS, TRUNK, Profile
from plan.memory import Devices, Phase, Resident, StagePlan, phase
from plan.model import QUANTIZED, Sketch
from ppo.config import PPOSettings
from reward.config import RewardSettings
from rlhf.errors import UserError
from rlhf.settings.groups import LoraSettings, SamplingSettings
from rlhf.settings.recipe import Recipe
from sft.config import SFTSettings

_MEASURED_TOKENS, _MEASURED_LOGITS = 8192, 2**28
"""What `sft.evaluate` holds at a time."""
_POLICY, _VALUE, _REWARD = "policy", "value", "reward"


@dataclass(frozen=True)
class Request:
    """A recipe, the model it names and the devices it is planned for."""

    recipe: Recipe
    sketch: Sketch
    devices: Devices
    tokens: int | None = None
    """The longest sequence, where the recipe gives no limit."""

    def each(self, num: int) -> int:
        """One device's part of `num` sequences."""
        return math.ceil(num / self.devices.num)

    def longest(self, limit: int | None) -> int:
        return min(limit or self.tokens or self.sketch.context, self.sketch.context)

    def notes(self, stage: str, limit: int | None) -> tuple[str, ...]:
        if limit is not None:
            return ()
        context = self.sketch.context
        if self.tokens is not None:
            cut = f"TOKENS={self.tokens:,} is beyond the model's context: planned for {context:,} tokens"
            return (f"{stage}: {cut}",) if self.tokens > context else ()
        tokens = f"{self.longest(None):,} tokens, the model's whole context"
        return (f"{stage}.length.max_tokens is unset: planned for sequences of {tokens} (or give TOKENS=)",)

    def prompt_tokens(self, stage: str, tokens: int, settings: SamplingSettings) -> int:
        """Room for a prompt before the longest response.

        Raises:
            UserError: there is none.
        """
        room = tokens - settings.max_response_tokens
        if room < 1:
            raise UserError(
                f"{settings.max_response_tokens} response tokens leave no room for a prompt in {tokens}",
                where=f"{stage}.sampling.max_response_tokens",
                fix="Lower it, or raise the longest sequence.",
            )
        return room


def plan_recipe(request: Request) -> list[StagePlan]:
    """The plans of the stages that the recipe has, in their order."""
    planners = {"sft": plan_sft, "reward": plan_reward, "ppo": plan_ppo}
    found = [planner(request) for stage, planner in planners.items() if stage in request.recipe.sections]
    if not found:
        raise UserError(
            "the recipe has no stage to plan for",
            where=str(request.recipe.path),
            fix="Add a section sft, reward or ppo.",
        )
    return found


def plan_sft(request: Request) -> StagePlan:
    """Training, the held-out loss between steps, and samples of the finished model."""
    settings, devices = cast(SFTSettings, request.recipe.section("sft")), request.devices
    held = request.sketch.precision
    trained_in = held if held not in QUANTIZED else request.sketch.stored_precision
    full = settings.method == "full"
    sketch = request.sketch.held_as("fp32" if full else trained_in)
    tokens = request.longest(settings.length.max_tokens)
    prompt = request.prompt_tokens("sft", tokens, settings.sampling)
    # This stage's adapter is on all layers, whatever `top_layers` says: it is merged before the others begin.
    lora = settings.lora.model_copy(update={"top_layers": None}) if settings.method == "lora" else None
    adapter = sketch.adapter_parameters(lora, stage="sft") if lora else 0
    trained = sketch.num_parameters if full else adapter
    resident = Resident(sketch.base_bytes, sketch.largest_part_bytes, adapter, trained)
    phases: list[Phase] = []
    if settings.method != "none":
        per_step = settings.batch_size // settings.accumulation
        batch = Batch(request.each(per_step), tokens, tokens)
        run = supervised.fine_tuning(
            batch,
            bf16=trained_in == "bf16",
            checkpointing=settings.gradient_checkpointing,
            again=settings.accumulation > 1,
            on_cuda=devices.on_cuda,
        )
        phases.append(
            phase("training", resident, sketch.profile({}, run, wrap=supervised.fine_tuned(lora)), devices)
        )
        phases.append(phase("update", resident, _step(resident), devices))
    limit = min(_MEASURED_TOKENS, _MEASURED_LOGITS // sketch.network.config.get_text_config().vocab_size)
    run = supervised.held_out(Batch.within(limit, 2**31, tokens=tokens, response_tokens=0))
    measured = sketch.profile({}, run, wrap=supervised.fine_tuned(lora))
    phases.append(phase("measuring", resident, measured, devices))
    if settings.num_samples:
        run = decoding.sampling(
            request.each(settings.num_samples),
            prompt,
            settings.sampling,
            role="reference",
            on_cuda=devices.on_cuda,
        )
        drawn = sketch.profile({}, run, per_trained_layer=False)
        phases.append(phase("sampling", resident, drawn, devices))
    return StagePlan("sft", tuple(phases), request.notes("sft", settings.length.max_tokens))


def plan_reward(request: Request) -> StagePlan:
    """Training on groups, scoring, and the samples that normalize."""
    settings, devices = cast(RewardSettings, request.recipe.section("reward")), request.devices
    sketch, adapters = request.sketch, {_REWARD: settings.lora}
    tokens = request.longest(settings.length.max_tokens)
    prompt = request.prompt_tokens("reward", tokens, settings.sampling)
    trained = sketch.adapter_parameters(settings.lora, stage="reward") + sketch.hidden_size
    resident = _resident(sketch, adapters=trained, trained=trained)
    batch = Batch.within(settings.micro_batch_tokens, 2**31, tokens=tokens, response_tokens=1)
    run = passes.training(batch, with_logits=(), without=(_REWARD,), again=True, below=False)
    trains = _profile(sketch, adapters, run, checkpointing=settings.gradient_checkpointing)
    scores = _profile(sketch, adapters, passes.scoring(batch, role=_REWARD, with_logits=False, below=False))
    run = decoding.sampling(
        request.each(settings.num_normalization_samples),
        prompt,
        settings.sampling,
        role="reference",
        on_cuda=devices.on_cuda,
    )
    draws = sketch.profile(adapters, run, per_trained_layer=False)
    phases = (
        phase("training", resident, trains, devices),
        phase("update", resident, _step(resident), devices),
        phase("sampling", resident, draws, devices),
        phase("scoring", resident, scores, devices),
    )
    return StagePlan("reward", phases, request.notes("reward", settings.length.max_tokens))


def plan_ppo(request: Request) -> StagePlan:
    """Sampling, scoring by all roles, training of policy and value, and measuring on held-out prompts."""
    settings, devices = cast(PPOSettings, request.recipe.section("ppo")), request.devices
    sketch, adapters = request.sketch, ppo_adapters(request.recipe, settings)
    tokens = request.longest(settings.length.max_tokens)
    prompt = request.prompt_tokens("ppo", tokens, settings.sampling)
    resident = _ppo_resident(sketch, settings, adapters)
    rows = request.each(settings.rollouts_per_iteration)
    step_rows = math.ceil(rows / settings.num_minibatches)
    held_out = request.each(settings.evaluation.num_prompts)
    measured_rows = held_out * max(settings.evaluation.best_of, default=1)
    below = all(lora.top_layers not in (None, len(sketch.layers)) for lora in adapters.values())

    def batch(num: int) -> Batch:
        limit, response = settings.micro_batch_tokens, settings.sampling.max_response_tokens
        return Batch.within(limit, num, tokens=tokens, response_tokens=response)

    @functools.cache
    def drawing(num: int) -> Profile:
        run = decoding.sampling(num, prompt, settings.sampling, role=_POLICY, on_cuda=devices.on_cuda)
        return sketch.profile(adapters, run, per_trained_layer=False)

    @functools.cache
    def scoring(micro: Batch) -> Profile:
        return sketch.profile(adapters, passes.scoring(micro, role=_POLICY, with_logits=True, below=below))

    without = (_POLICY if settings.value == "joint" else _VALUE,)
    again = step_rows > batch(step_rows).rows
    run = passes.training(batch(step_rows), with_logits=(_POLICY,), without=without, again=again, below=below)
    training = _profile(sketch, adapters, run, checkpointing=settings.gradient_checkpointing)
    state = tokens * sketch.hidden_size * sketch.compute.itemsize if below else 0
    refills = settings.sampling.batch_size + 1  # more rows than that are drawn in the same way

    def of(name: str, profile: Profile, num_states: int) -> Phase:
        # The measurement before training stays in memory, states and all.
        extra = Counter({TRUNK: (held_out + num_states) * state})
        return phase(name, resident, profile, devices, extra=extra)

    measuring = (
        of("measuring", drawing(min(measured_rows, refills)), 0),
        of("measuring", scoring(batch(measured_rows)), measured_rows),
    )
    phases = (
        of("sampling", drawing(min(rows, refills)), 0),
        of("scoring", scoring(batch(rows)), rows),
        of("training", training, rows + step_rows),
        of("update", _step(resident), rows + step_rows),
        max(measuring, key=lambda each: each.total),
    )
    return StagePlan("ppo", phases, request.notes("ppo", settings.length.max_tokens))


def _ppo_resident(sketch: Sketch, settings: PPOSettings, adapters: Mapping[str, LoraSettings]) -> Resident:
    sizes = {name: sketch.adapter_parameters(lora, stage="ppo") for name, lora in adapters.items()}
    value_head, reward_head = sketch.hidden_size + 1, sketch.hidden_size * (_REWARD in adapters)
    trained = sizes[_POLICY] + sizes.get(_VALUE, 0) + value_head
    return _resident(sketch, adapters=sum(sizes.values()) + value_head + reward_head, trained=trained)


def ppo_adapters(recipe: Recipe, settings: PPOSettings) -> dict[str, LoraSettings]:
    """The adapters that PPO puts on the backbone; a value that starts as the reward has its shape."""
    adapters = {_POLICY: settings.lora}
    reward = recipe.sections.get("reward")
    reward_lora = cast(RewardSettings, reward).lora if reward is not None else settings.lora
    if settings.reward == "adapter":
        adapters[_REWARD] = reward_lora
    if settings.value == "separate":
        adapters[_VALUE] = reward_lora if settings.reward == "adapter" else settings.lora
    return adapters


def _resident(sketch: Sketch, *, adapters: int, trained: int) -> Resident:
    return Resident(
        sketch.base_bytes,
        sketch.largest_part_bytes,
        adapters,
        trained,
        shardable=sketch.precision not in QUANTIZED,
    )


def _profile(
    sketch: Sketch, adapters: Mapping[str, LoraSettings], run: Run, *, checkpointing: bool = False
) -> Profile:
    return sketch.profile(adapters, passes.checkpointed(run) if checkpointing else run)


def _step(resident: Resident) -> Profile:
    """The optimizer's step: all gradients. AdamW is fused, and makes nothing on the way."""
    return {"step": Counter({GRADIENTS: resident.gradients})}
