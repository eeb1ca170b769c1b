"""Random bases of any size, made on the device one weight at a time, and the roles of PPO on them.

A base is laid out without memory (torch's `meta` device); then every weight is drawn on the device and, where
the base is quantized, quantized before the next is drawn. So a base costs no more than what is kept of it and
one weight, and nothing of it is ever on a disk or in the host's memory.

Every linear layer keeps the size of what goes in (weights from N(0, 1/fan-in)). The tokenizer's EOS is an id
that the output head has no row for: no response ends before its full length.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from benchmarks.base_model import llama_config, perturb, word_tokenizer
from benchmarks.gpu.plan import Case, LlamaShape
from benchmarks.workloads import lora_values
from ppo.config import PPOSettings
from ppo.models import POLICY, VALUE, AdapterReward
from ppo.prompts import PromptSet
from ppo.update import Updater
from reward.model import ROLE, RewardCard, RewardModel
from rlhf.model.adapters import init_head
from rlhf.model.backbone import Backbone
from rlhf.model.loading import quiet_transformers
from rlhf.model.quantization import fix_quantized_layers, load_options
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision, SamplingSettings, SourceSettings

_FIRST_WORD = 3
"""Ids before it are padding, beginning and unknown."""


def random_base(shape: LlamaShape, precision: Precision, *, device: str, seed: int) -> Backbone:
    """A Llama of this shape with random weights, held in `precision` on `device`.

    Raises:
        UserError: bitsandbytes is needed and not installed.
    """
    quiet_transformers()
    options = load_options(precision, device)
    config = llama_config(shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=options["dtype"], attn_implementation="sdpa"
        )
    if quantization := options.get("quantization_config"):
        replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
        setattr(model, "is_loaded_in_4bit" if precision == "nf4" else "is_loaded_in_8bit", True)
    _draw_weights(model, options["dtype"], torch.device(device), seed=seed)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # computed, not drawn
    model.config.use_cache = True
    fix_quantized_layers(model)
    name = f"random {shape.name}"
    settings = ModelSettings(path=name, precision=precision)
    return Backbone(model, word_tokenizer(shape.vocab_size, eos_last=True), name, model_settings=settings)


def random_prompts(shape: LlamaShape, lengths: list[int], *, seed: int) -> PromptSet:
    """Prompts of the given lengths in tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = [
        torch.randint(_FIRST_WORD, shape.vocab_size, (length,), generator=generator).tolist()
        for length in lengths
    ]
    return PromptSet(ids, [f"prompt {number}" for number in range(len(ids))])


def ppo_settings(case: Case) -> PPOSettings:
    """The PPO section of a recipe that does what the case says."""
    work = case.workload
    return PPOSettings(
        prompts=[SourceSettings(path="random")],
        sampling=SamplingSettings(
            max_response_tokens=work.max_response_tokens, batch_size=max([work.rollouts, *case.batches])
        ),
        missing_eos_penalty=0.0,
        lora=LoraSettings.model_validate(lora_values(work, case.layers, case.shape.num_layers)),
        gradient_checkpointing=case.gradient_checkpointing,
        rollouts_per_iteration=work.rollouts,
        num_epochs=work.num_epochs,
        num_minibatches=work.num_minibatches,
        micro_batch_tokens=work.micro_batch_tokens,
        policy_learning_rate=work.learning_rate,
        value_learning_rate=work.learning_rate,
        schedule="constant",
    )


@dataclass(frozen=True)
class Engine:
    """The four roles of PPO on one random base."""

    case: Case
    backbone: Backbone
    reward: AdapterReward
    settings: PPOSettings

    @cached_property
    def updater(self) -> Updater:
        """Adapters in training, and their optimizer."""
        return Updater(self.backbone, self.settings, seed=self.case.seed)


def add_roles(backbone: Backbone, case: Case) -> Engine:
    """Put a random reward, its copy as the value, and a policy on `backbone`, as a run of PPO has them."""
    settings = ppo_settings(case)
    backbone.add_adapter(ROLE, settings.lora, seed=case.seed)
    perturb(backbone, ROLE, torch.Generator().manual_seed(case.seed))
    init_head(backbone.add_head(ROLE, bias=False), seed=case.seed)
    backbone.copy_adapter(ROLE, VALUE)
    backbone.add_head(VALUE, bias=True)
    backbone.add_adapter(POLICY, settings.lora, seed=case.seed + 1)
    if case.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    card = RewardCard(
        base_sha256="random",
        precision=case.precision,
        mean=0.0,
        std=1.0,
        num_reference_samples=1,
        eos_ids=list(backbone.eos_ids),
        max_tokens=backbone.max_length,
    )
    reward = AdapterReward(
        RewardModel(backbone, card), max_tokens=settings.micro_batch_tokens, sampling=settings.sampling
    )
    return Engine(case, backbone, reward, settings)


def _draw_weights(model: PreTrainedModel, dtype: torch.dtype, device: torch.device, *, seed: int) -> None:
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if old.dim() < 2:
                drawn = torch.ones(old.shape, dtype=dtype, device=device)
            else:
                rows, width = _plain_shape(module)
                drawn = torch.randn((rows, width), dtype=dtype, device=device, generator=generator)
                if not isinstance(module, nn.Embedding):
                    drawn *= width**-0.5
            setattr(module, name, _kept(old, drawn))


def _plain_shape(module: Any) -> tuple[int, int]:
    """Rows and columns of a module's weight, which a quantized layer keeps in another shape."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return module.out_features, module.in_features


def _kept(old: nn.Parameter, drawn: Tensor) -> nn.Parameter:
    """`drawn` as the parameter that stands in for `old`: quantized as transformers does when it loads."""
    kind = type(old)
    if kind is nn.Parameter:
        return nn.Parameter(drawn, requires_grad=False)
    # bitsandbytes quantizes a weight when it is moved to its device, an 8-bit one only from the host.
    options = {key: value for key, value in vars(old).items() if key != "SCB"}
    source = drawn.cpu() if kind.__name__ == "Int8Params" else drawn
    made: Any = kind(source, requires_grad=False, **options)
    kept: nn.Parameter = made.to(drawn.device)
    return kept
