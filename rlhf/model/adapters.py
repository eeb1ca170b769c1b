"""LoRA adapters (2106.09685) on a plain model: where they go, how they are made, read, written and merged.

An adapter leaves as a plain PEFT folder, `adapter_config.json` and `adapter_model.safetensors`.
"""

import json
import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError
from rlhf.model.architecture import decoder_layers, has_conv1d, linear_modules
from rlhf.settings.groups import LoraSettings

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
"""What PEFT puts before the names of an adapter's tensors."""


# ---- where they go --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraPlaces:
    """Where adapters can be in a model. Read before there are any, which wrap the modules named here."""

    linear_names: frozenset[str]
    """Last name components of the linear layers that LoRA may wrap: all but the output head."""
    num_layers: int
    is_transposed: bool
    """Whether the plain model keeps its weights as (inputs, outputs)."""

    @staticmethod
    def of(model: Any) -> "LoraPlaces":
        names = frozenset(_last_name(name) for name in linear_modules(model))
        return LoraPlaces(names, len(decoder_layers(model)), has_conv1d(model))

    def config(self, settings: LoraSettings, *, where: str, **more: Any) -> LoraConfig:
        """PEFT's configuration of an adapter with the `settings` at `where`.

        Raises:
            UserError: a target module, or more top layers, than the model has.
        """
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT only divides by the rank
            target_modules=_targets(settings, self.linear_names, where=where),
            layers_to_transform=self._layer_numbers(settings, where=where),
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=self.is_transposed,
            **more,
        )

    def _layer_numbers(self, settings: LoraSettings, *, where: str) -> list[int] | None:
        """The layers that get an adapter; None for all of them, also outside the layers."""
        if settings.top_layers is None:
            return None
        _check_top_layers(settings.top_layers, self.num_layers, where=where)
        return list(range(self.num_layers - settings.top_layers, self.num_layers))


def adapted_modules(model: Any, settings: LoraSettings, *, where: str) -> list[Any]:
    """The linear modules of a plain model that the `settings` at `where` put an adapter on.

    Raises:
        UserError: a target module, or more top layers, than the model has.
    """
    parts: Sequence[nn.Module] = [model]
    if settings.top_layers is not None:
        layers = decoder_layers(model)
        _check_top_layers(settings.top_layers, len(layers), where=where)
        parts = layers[-settings.top_layers :]
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name, module in linear_modules(model, part).items():
            found.setdefault(_last_name(name), []).append(module)
    targets = _targets(settings, found, where=where)
    return [module for target in targets for module in found[target]]


def _targets(settings: LoraSettings, linear_names: Collection[str], *, where: str) -> list[str]:
    """The names of the modules that get an adapter, of those that there are.

    Raises:
        UserError: `target_modules` names another.
    """
    wanted = settings.target_modules
    if wanted == "all-linear":
        return sorted(linear_names)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in linear_names:
            raise UserError(
                f"the model has no linear module `{name}`",
                where=f"{where}.target_modules",
                fix=f'It has {", ".join(sorted(linear_names))}; "all-linear" takes all of them.',
            )
    return sorted(names)


def _check_top_layers(top_layers: int, num_layers: int, *, where: str) -> None:
    if top_layers > num_layers:
        what = f"the model has {num_layers} layers" if num_layers else "the model's layers are in no list"
        raise UserError(
            f"{what}, so adapters cannot be on the top {top_layers}",
            where=f"{where}.top_layers",
            fix="Give a smaller number, or unset it: adapters on all layers.",
        )


def _last_name(name: str) -> str:
    return name.rpartition(".")[2]


# ---- making them ----------------------------------------------------------------------------------------


def inject(model: PreTrainedModel, name: str, config: LoraConfig, *, seed: int) -> None:
    """Put a new adapter on `model`, drawn from `seed`. PEFT leaves it in a state of its own."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        inject_adapter_in_model(config, model, adapter_name=name)


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameter by PEFT's name for it (without the adapter's own name) of one adapter."""
    return {
        key.replace(f".{name}.", "."): parameter
        for key, parameter in model.named_parameters()
        if ".lora_" in key and f".{name}." in key
    }


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """The modules that adapters wrap."""
    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]


def lowest_adapted(layers: Sequence[nn.Module], num_adapted: int) -> int:
    """Number of the lowest of `layers` that holds an adapter; 0 if an adapted module is outside of them."""
    counts = [len(lora_layers(layer)) for layer in layers]
    if sum(counts) < num_adapted:
        return 0
    return next((number for number, count in enumerate(counts) if count), len(layers))


def init_head(head: nn.Linear, *, seed: int) -> None:
    """Draw a reward head's weights from N(0, 1/(H+1)) (2009.01325, as 2403.17031 section 4.4 reads it)."""
    generator = torch.Generator().manual_seed(seed)
    std = 1 / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)


# ---- reading them ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in a folder, written by `write_adapter` or by PEFT."""

    folder: Path
    settings: Mapping[str, Any]
    """PEFT's, as the folder holds them."""
    tensors: Mapping[str, Tensor]

    @staticmethod
    def read(folder: Path) -> "StoredAdapter":
        """Read a folder.

        Raises:
            UserError: it holds no adapter, or one that is not LoRA.
        """
        config_file = folder / _CONFIG
        weights_file = folder / _WEIGHTS
        if not config_file.is_file() or not weights_file.is_file():
            raise UserError(
                f"no adapter here ({_CONFIG} and {_WEIGHTS})",
                where=str(folder),
                fix="Give the folder that a finished stage published.",
            )
        settings = json.loads(config_file.read_text(encoding="utf-8"))
        if settings.get("peft_type") != "LORA":
            raise UserError(
                f"a {settings.get('peft_type')} adapter; only LoRA is known",
                where=str(folder),
                fix="Give a LoRA adapter.",
            )
        return StoredAdapter(folder, settings, load_file(weights_file))

    def lora_settings(self, num_layers: int) -> LoraSettings:
        """Its settings, on a base of so many layers."""
        targets = self.settings["target_modules"]
        layers = self.settings.get("layers_to_transform")
        return LoraSettings(
            rank=self.settings["r"],
            alpha=self.settings["lora_alpha"],
            target_modules=targets if isinstance(targets, str) else sorted(targets),
            top_layers=num_layers - min(layers) if layers else None,
        )

    def copy_into(self, model: PreTrainedModel, name: str) -> None:
        """Give the adapter `name` of `model` the weights of this one; a head is left alone.

        Raises:
            UserError: they are not of the adapter's shapes.
        """
        wanted = adapter_parameters(model, name)
        given = {k.removeprefix(_PREFIX): v for k, v in self.tensors.items() if "lora_" in k}
        if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in given.items()}:
            raise UserError(
                "the adapter's tensors do not fit on this base model",
                where=str(self.folder),
                fix="Use the adapter with the base it was trained on, or train it again.",
            )
        set_peft_model_state_dict(model, given, adapter_name=name)


def load_score_head(head: nn.Linear, folder: Path) -> None:
    """Copy the `score` of a published sequence-classification adapter into `head`.

    Raises:
        UserError: the adapter carries no score, or one of another width.
    """
    tensors = StoredAdapter.read(folder).tensors
    scores = [tensor for key, tensor in tensors.items() if key.endswith("score.weight")]
    if len(scores) != 1 or scores[0].shape != head.weight.shape:
        raise UserError(
            "the adapter has no score head that fits this base",
            where=str(folder),
            fix="Train a reward model first.",
        )
    with torch.no_grad():
        head.weight.copy_(scores[0])


# ---- writing and merging them ---------------------------------------------------------------------------


def write_adapter(
    model: PreTrainedModel, name: str, config: LoraConfig, folder: Path, *, head: nn.Module | None
) -> None:
    """Write one adapter as a plain PEFT folder.

    `head`, a scalar head, goes along as the `score` of a sequence-classification model; it must have no bias,
    because PEFT's has none.
    """
    tensors = get_peft_model_state_dict(model, adapter_name=name)
    tensors = {f"{_PREFIX}{k}": v.detach().cpu().contiguous() for k, v in tensors.items()}
    if head is not None:
        assert isinstance(head, nn.Linear)
        assert head.bias is None
        tensors[f"{_PREFIX}score.weight"] = head.weight.detach().cpu().clone()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    _sort_targets(folder / _CONFIG)


def _sort_targets(file: Path) -> None:
    """Put the target modules in order: PEFT keeps a set, whose order is another in every process."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@torch.no_grad()
def add_updates(name: str, adapted: Iterable[tuple[str, nn.Module]], plain: nn.Module) -> None:
    """Add the adapter `name` of the `adapted` modules to the weights of `plain`, the base that they are on.

    The sum is made in fp32 and rounded once.
    """
    modules: dict[str, Any] = dict(plain.named_modules())
    for key, layer in adapted:
        if isinstance(layer, LoraLayer) and name in layer.lora_A:
            weight = modules[key].weight
            down = layer.lora_A[name]
            up = layer.lora_B[name]
            assert isinstance(down, nn.Linear)
            assert isinstance(up, nn.Linear)
            update = (up.weight @ down.weight * layer.scaling[name]).float().cpu()
            # A quantized layer does not say which way round the plain model keeps its weight.
            update = update.T if isinstance(modules[key], Conv1D) else update
            weight.copy_((weight.float() + update).to(weight.dtype))
