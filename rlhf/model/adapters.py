"""LoRA adapters (2106.09685) on a plain model: where they go, how they are made, filled and written.

An adapter leaves as a plain PEFT folder, `adapter_config.json` and `adapter_model.safetensors`.
"""

import contextlib
import json
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from rlhf.errors import UserError
from rlhf.model.architecture import decoder_layers, has_conv1d, linear_modules
from rlhf.model.stored_adapter import CONFIG, PREFIX, WEIGHTS, StoredAdapter
from rlhf.settings.groups import LoraSettings

BASE_PATH = "./sft/model"
"""The base of a published adapter, seen from the run folder, which can be moved.

The dot says that it is a folder: `sft/model` alone is the name of a repository on the hub, which PEFT would
ask for wherever the folder is not found.
"""


# ---- where they go --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraPlaces:
    """Where adapters can be in a model. Read before there are any, which wrap the modules named here."""

    linear_names: frozenset[str]
    """`_target_name` of the linear layers that LoRA may wrap: all but the output head."""
    num_layers: int
    is_transposed: bool
    """Whether the plain model keeps its weights as (inputs, outputs)."""
    head_name: str
    """The output head's, which gets no adapter."""

    @staticmethod
    def of(model: Any) -> "LoraPlaces":
        names = frozenset(_target_name(name) for name in linear_modules(model))
        head = model.get_output_embeddings()
        head_name = next((name for name, module in model.named_modules() if module is head), "")
        return LoraPlaces(names, len(decoder_layers(model)), has_conv1d(model), head_name)

    def config(self, settings: LoraSettings, *, where: str, **more: Any) -> LoraConfig:
        """PEFT's configuration of an adapter with the `settings` at `where`.

        Raises:
            UserError: a target module, or more top layers, than the model has.
        """
        # PEFT goes by the ends of names, and the head's may also be another layer's.
        is_ambiguous = _target_name(self.head_name) in self.linear_names
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT only divides by the rank
            target_modules=_targets(settings, self.linear_names, where=where),
            layers_to_transform=self._layer_numbers(settings, where=where),
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=self.is_transposed,
            exclude_modules=[self.head_name] if is_ambiguous else None,
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
            found.setdefault(_target_name(name), []).append(module)
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


def _target_name(name: str) -> str:
    """The last component of a module's name, with those before it as long as they are numbers.

    PEFT takes a module whose name ends so: a lone "0", of a layer in a list, would be every list's first.
    """
    parts = name.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])


# ---- making them ----------------------------------------------------------------------------------------


def inject(model: PreTrainedModel, name: str, config: LoraConfig, *, seed: int) -> None:
    """Put a new adapter on `model`, drawn from `seed`. PEFT leaves it in a state of its own."""
    with torch.random.fork_rng(devices=[]), without_advice():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, adapter_name=name)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"PEFT cannot put the adapter `{name}` on this model ({error})",
                where=type(model).__name__,
                fix="Use the adapter with the base it was trained on, or name other `target_modules`.",
            ) from error


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Inside the block PEFT does not warn of what is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # It has written a pattern for stacked experts itself, and then looks for modules of that name.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        yield


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameter by PEFT's name for it (without the adapter's own name) of one adapter.

    In the order in which the model holds them. A module of the base may be called as the adapter is: so what
    belongs to an adapter is asked of the layers that hold it, and never read from a name.
    """
    keys: dict[int, str] = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for part in ("lora_A", "lora_B"):
            pairs: nn.ModuleDict = getattr(layer, part)
            if name in pairs:
                keys |= {id(p): f"{path}.{part}.{key}" for key, p in pairs[name].named_parameters()}
    return {keys[id(p)]: p for p in model.parameters() if id(p) in keys}


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


def copy_stored(stored: StoredAdapter, model: PreTrainedModel, name: str) -> None:
    """Give the adapter `name` of `model` the weights of a stored one.

    Raises:
        UserError: the adapter has other modules or shapes.
    """
    wanted = adapter_parameters(model, name)
    given = stored.lora_tensors
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in given.items()}:
        raise UserError(
            "the adapter's tensors do not fit on this base model",
            where=str(stored.folder),
            fix="Use the adapter with the base it was trained on, or train it again.",
        )
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(given[key])


# ---- writing them ---------------------------------------------------------------------------------------


def write_adapter(
    model: PreTrainedModel, name: str, config: LoraConfig, folder: Path, *, head: nn.Module | None
) -> None:
    """Write one adapter as a plain PEFT folder.

    `head`, a scalar head, goes along as the `score` of a sequence-classification model; it must have no bias,
    because PEFT's has none.
    """
    # PEFT's own `get_peft_model_state_dict` tells adapters apart by their names anywhere in a key, and so
    # loses what is on a module that is called as another adapter is (`attention.value`).
    parameters = adapter_parameters(model, name)
    tensors = {f"{PREFIX}{k}": v.detach().cpu().contiguous() for k, v in parameters.items()}
    if head is not None:
        assert isinstance(head, nn.Linear)
        assert head.bias is None
        tensors[f"{PREFIX}score.weight"] = head.weight.detach().cpu().clone()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    _sort_targets(folder / CONFIG)


def _sort_targets(file: Path) -> None:
    """Put the target modules in order: PEFT keeps a set, whose order is another in every process."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
