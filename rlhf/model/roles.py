"""A frozen model in memory once, and the roles that adapters give it.

| role | what runs |
|---|---|
| `reference` | the base alone |
| `policy`, `reward`, `value` | the base plus the LoRA adapter of that name |

A role is entered with `with backbone.role("policy"):`. Entering one changes which adapter a LoRA layer
adds, and nothing else: no weight is merged and no `requires_grad` flag is touched, so optimizers and
their parameter groups never notice. Dropout is off in every role, in training too.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from rlhf.model.adapters import (
    LoraPlaces,
    adapter_parameters,
    copy_stored,
    inject,
    lora_layers,
    write_adapter,
)
from rlhf.model.layers.lora import patch_lora_forward
from rlhf.model.stored_adapter import StoredAdapter
from rlhf.settings.groups import LoraSettings

# Shapes: H hidden size.

REFERENCE = "reference"


class AdaptedModel(nn.Module):
    """The frozen base, its adapters and its scalar heads."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.heads = nn.ModuleDict()
        self.adapters: dict[str, LoraSettings | StoredAdapter] = {}
        """What each adapter was made from."""
        self._lora_places = LoraPlaces.of(model)
        self._lora_layers: list[LoraLayer] = []
        self._role = REFERENCE
        _disable_dropout(model)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    def train(self, mode: bool = True) -> Self:
        """Does nothing: every role stays in evaluation mode, so that dropout never comes on."""
        del mode
        return self

    # ---- roles ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Run the base as `name` inside the block; roles nest."""
        if name != REFERENCE and name not in self.adapters:
            raise ValueError(f"no adapter {name!r} (there are {sorted(self.adapters)})")
        before = self._role
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, name: str) -> None:
        # PEFT's public set_adapter/enable_adapters also flip requires_grad, which would change an
        # optimizer's (and DeepSpeed's) parameter groups under it; these two attributes are all a LoRA
        # layer's forward reads.
        if name == self._role:
            return
        for layer in self._lora_layers:
            layer._disable_adapters = name == REFERENCE
            layer._active_adapter = [name]
        self._role = name

    # ---- adapters and heads -----------------------------------------------------------------------

    def add_adapter(self, name: str, settings: LoraSettings | StoredAdapter, *, seed: int) -> None:
        """Add a fresh LoRA adapter (B = 0: it starts as the base), kept in fp32.

        Raises:
            UserError: `target_modules` names a module that the base does not have, or PEFT refuses it.
        """
        if name in self.adapters or name == REFERENCE:
            raise ValueError(f"adapter {name!r} exists")
        inject(self.model, name, self._config(settings), seed=seed)
        self._lora_layers = lora_layers(self.model)
        for layer in self._lora_layers:
            patch_lora_forward(layer)
        self.adapters[name] = settings
        for parameter in self.adapter_parameters(name).values():
            parameter.data = parameter.data.float()
        self.model.requires_grad_(False).eval()
        self._role = ""  # injection left the layers in PEFT's own state
        self._enter(REFERENCE)

    def copy_adapter(self, source: str, name: str) -> None:
        """Add the adapter `name` as a copy of `source`."""
        self.add_adapter(name, self.adapters[source], seed=0)
        originals = self.adapter_parameters(source)
        with torch.no_grad():
            for key, parameter in self.adapter_parameters(name).items():
                parameter.copy_(originals[key])

    def load_adapter(self, name: str, folder: Path) -> None:
        """Add the adapter that `export_adapter` (or PEFT) wrote into `folder`; heads in it are left alone.

        Raises:
            UserError: the folder holds no plain LoRA adapter, or one that does not fit on this base.
        """
        stored = StoredAdapter.read(folder)
        stored.check_not_on(self._lora_places.head_name)
        self.add_adapter(name, stored, seed=0)
        copy_stored(stored, self.model, name)

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Parameter by PEFT's name for it (without the adapter's own name) of one adapter."""
        return adapter_parameters(self.model, name)

    def add_head(self, name: str, *, bias: bool) -> nn.Linear:
        """Add a scalar head H → 1 in fp32, all zeros."""
        head = nn.Linear(self.hidden_size, 1, bias=bias, dtype=torch.float32, device=self.device)
        nn.init.zeros_(head.weight)
        if bias:
            nn.init.zeros_(head.bias)
        self.heads[name] = head.requires_grad_(False)
        return head

    def set_trainable(self, names: Sequence[str]) -> list[nn.Parameter]:
        """Let gradients flow into exactly the adapters and heads called `names`; returns their parameters."""
        chosen: list[nn.Parameter] = []
        for name in sorted({*self.adapters, *self.heads}):
            parameters = self.role_parameters(name)
            for parameter in parameters.values():
                parameter.requires_grad_(name in names)
            if name in names:
                chosen += parameters.values()
        return chosen

    def role_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """All parameters of one role: its adapter's, and its head's as `head.*`."""
        parameters = self.adapter_parameters(name) if name in self.adapters else {}
        if name in self.heads:
            parameters |= {f"head.{key}": value for key, value in self.heads[name].named_parameters()}
        return parameters

    # ---- export -----------------------------------------------------------------------------------

    def export_adapter(
        self, name: str, folder: Path, *, task_type: str, base_path: str, head: str | None = None
    ) -> None:
        """Write one adapter as a plain PEFT folder (`adapter_config.json`, `adapter_model.safetensors`).

        With `head`, the scalar head goes along as the `score` of a sequence-classification model; it must
        have no bias, because PEFT's has none.
        """
        config = self._config(
            self.adapters[name],
            task_type=task_type,
            base_model_name_or_path=base_path,
            modules_to_save=["score"] if head is not None else None,
            inference_mode=True,
        )
        module = None if head is None else self.heads[head]
        write_adapter(self.model, name, config, folder, head=module)

    def _config(self, source: LoraSettings | StoredAdapter, **more: Any) -> LoraConfig:
        """PEFT's configuration of an adapter that is made from `source`."""
        if isinstance(source, StoredAdapter):
            return source.config(**more)
        return self._lora_places.config(source, where="lora", **more)


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        for attribute, value in vars(module).items():
            if "drop" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # a pad id that is also a real token must get its gradient
