"""An adapter in a folder, written by us or by PEFT: what of it can be read exactly, and what is refused.

Every setting of PEFT's `LoraConfig` is in one of two lists here, or must have its default: so a kind of
adapter that came after this file is refused by name, and never read as plain LoRA.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf.errors import UserError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the names of an adapter's tensors."""

_MEANS = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"),
    }
)
"""Settings that PEFT itself carries out when it puts the adapter on a model."""
_MEANS_NOTHING = frozenset(
    {
        *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
        *("inference_mode", "lora_dropout", "runtime_config", "megatron_core", "qalora_group_size"),
        # Checked apart: `_check_start` and `_check_head`.
        *("init_lora_weights", "modules_to_save"),
        # How the first weights were found; they are in the file now.
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    }
)
"""Settings that change nothing of what a finished adapter computes."""
_KEEPS_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""First weights that were made without changing the base's own: all others subtract something from it."""
_HEADS = frozenset({"score", "classifier"})
"""What PEFT saves of a sequence classifier besides the adapter, whether or not the model has it."""
_RETRAIN = "Train it again as plain LoRA, or merge it into its base with PEFT's `merge_and_unload`."


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in a folder, which PEFT can put on its base with the same result."""

    folder: Path
    settings: Mapping[str, Any]
    """PEFT's, as the folder holds them."""
    tensors: Mapping[str, Tensor]

    @staticmethod
    def read(folder: Path) -> "StoredAdapter":
        """Read a folder.

        Raises:
            UserError: it holds no adapter, or one that does more than LoRA on linear layers.
        """
        config_file = folder / CONFIG
        weights_file = folder / WEIGHTS
        if not config_file.is_file() or not weights_file.is_file():
            raise UserError(
                f"no adapter here ({CONFIG} and {WEIGHTS})",
                where=str(folder),
                fix="Give the folder that a finished stage published.",
            )
        try:
            settings = json.loads(config_file.read_text(encoding="utf-8"))
            tensors = load_file(weights_file)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"the adapter is damaged ({error})", where=str(folder), fix="Put the files back."
            ) from None
        if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
            kind = settings.get("peft_type") if isinstance(settings, dict) else None
            raise UserError(
                f"a {kind} adapter; only LoRA is known", where=str(folder), fix="Give a LoRA adapter."
            )
        stored = StoredAdapter(folder, settings, tensors)
        stored._check_settings()
        stored._check_start()
        stored._check_head()
        stored._check_tensors()
        return stored

    @property
    def lora_tensors(self) -> dict[str, Tensor]:
        """Tensor by PEFT's name for it, of LoRA's pairs; a head is left out."""
        pairs = {key: value for key, value in self.tensors.items() if _is_pair(key)}
        return {key.removeprefix(PREFIX): value for key, value in pairs.items()}

    def config(self, **more: Any) -> LoraConfig:
        """PEFT's configuration of the adapter, which draws no first weights and has no dropout.

        Raises:
            UserError: PEFT refuses the settings.
        """
        given = {name: self.settings[name] for name in sorted(_MEANS) if name in self.settings}
        try:
            return LoraConfig(**given, lora_dropout=0.0, **more)
        except (TypeError, ValueError) as error:
            raise self._refused(f"PEFT refuses its settings ({error})") from error

    def score_head(self) -> list[Tensor]:
        """The weights called `score` that it carries."""
        return [tensor for key, tensor in self.tensors.items() if key.endswith("score.weight")]

    def check_not_on(self, head_name: str) -> None:
        """Check that no pair is on the output head, which all roles share.

        Raises:
            UserError: one is.
        """
        if any(key.startswith(f"{head_name}.") for key in self.lora_tensors):
            raise self._refused(f"it is also on the output head, `{head_name}`")

    def _check_settings(self) -> None:
        defaults = {field.name: _default(field) for field in dataclasses.fields(LoraConfig)}
        for name, value in sorted(self.settings.items()):
            if name in _MEANS or name in _MEANS_NOTHING:
                continue
            if not _same(value, defaults.get(name)):
                raise self._refused(f"its `{name}` is {_shortened(value)}, and only plain LoRA is read")

    def _check_start(self) -> None:
        start = self.settings.get("init_lora_weights", True)
        if start not in _KEEPS_THE_BASE:
            raise UserError(
                f"its `init_lora_weights` is {start!r}: on the base as it is, it is another model",
                where=str(self.folder),
                fix="Convert it (PEFT's `save_pretrained` with `path_initial_model_for_weight_conversion`), "
                "or merge it into its base.",
            )

    def _check_head(self) -> None:
        saved = set(self.settings.get("modules_to_save") or [])
        is_classifier = self.settings.get("task_type") == "SEQ_CLS"
        others = saved - _HEADS if is_classifier else saved
        if others:
            raise self._refused(
                f"its `modules_to_save` has {', '.join(sorted(others))}: trained base weights"
            )

    def _check_tensors(self) -> None:
        is_classifier = self.settings.get("task_type") == "SEQ_CLS"
        for key in self.tensors:
            name = key.removeprefix(PREFIX)
            if not _is_pair(name) and not (is_classifier and name.split(".")[0] in _HEADS):
                raise self._refused(f"it holds `{key}`, which is no part of a LoRA pair")

    def _refused(self, what: str) -> UserError:
        return UserError(what, where=str(self.folder), fix=_RETRAIN)


def load_score_head(head: nn.Linear, folder: Path) -> None:
    """Copy the `score` of a published sequence-classification adapter into `head`.

    Raises:
        UserError: the adapter carries no score, or one of another width.
    """
    scores = StoredAdapter.read(folder).score_head()
    if len(scores) != 1 or scores[0].shape != head.weight.shape:
        raise UserError(
            "the adapter has no score head that fits this base",
            where=str(folder),
            fix="Train a reward model first.",
        )
    with torch.no_grad():
        head.weight.copy_(scores[0])


def _is_pair(key: str) -> bool:
    return key.endswith((".lora_A.weight", ".lora_B.weight"))


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _same(value: Any, default: Any) -> bool:
    """Whether a setting says no more than its default: what is empty or off is as good as unset."""
    return bool(value == default or (not value and not default))


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
