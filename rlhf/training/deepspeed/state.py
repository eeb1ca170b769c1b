"""A DeepSpeed engine's state as one process has it: the same tensors under the same names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.parallel.deepspeed.gather import gathered
from rlhf.parallel.world import world
from rlhf.runs.checkpoints import restore_optimizer
from rlhf.training.optimizer import Optimization

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroState:
    """Reads and sets an engine's weights and AdamW's state, one parameter after the other.

    `groups` are the trained parameters `named` as the optimizer has them. `keep` says what a rank keeps of a
    tensor that is whole for a moment.
    """

    def __init__(
        self,
        engine: Any,
        named: Mapping[str, nn.Parameter],
        groups: Sequence[Sequence[nn.Parameter]],
        *,
        keep: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        names = {id(parameter): name for name, parameter in named.items()}
        self._named, self._groups = dict(named), [[names[id(p)] for p in group] for group in groups]
        self._inner, self._keep = engine.optimizer, keep
        self._optimizer: torch.optim.Optimizer = engine.optimizer.optimizer
        self._make_states()

    def tensors(self) -> dict[str, Tensor]:
        """What `Optimization.tensors` gives on one process. All ranks must call it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weights = {name: self._keep(safe_get_full_fp32_param(value)) for name, value in self._named.items()}
        plain = self._plain(weights)
        for names, flats, ours, theirs in self._each_group(plain):
            theirs.update({key: value for key, value in ours.items() if key not in ("params", "idle")})
            step = self._optimizer.state[flats[0]]["step"]
            for name in names if float(step) else []:
                state = {key: safe_get_full_optimizer_state(self._named[name], key) for key in _MOMENTS}
                kept = {key: self._keep(value) for key, value in state.items()}
                plain.optimizer.state[plain.named[name]] = {"step": step.clone(), **kept}
        return plain.tensors()

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors`, or one process, gave. All ranks must call it."""
        for name, parameter in self._named.items():
            weights = tensors[f"weights.{name}"]
            with gathered([parameter], writer=0):
                parameter.copy_(weights)
            self._set(parameter, None, weights)
            for key in _MOMENTS:
                self._set(parameter, key, tensors.get(f"optimizer.{name}.{key}", torch.zeros_like(weights)))
        plain = self._plain({name: tensors[f"weights.{name}"] for name in self._named})
        rest = {key: value for key, value in tensors.items() if not key.endswith(_MOMENTS)}
        restore_optimizer(plain.optimizer, plain.named, rest)
        for names, flats, ours, theirs in self._each_group(plain):
            ours.update({key: value for key, value in theirs.items() if key != "params"})
            states = [plain.optimizer.state.get(plain.named[name], {}) for name in names]
            steps = [float(state["step"]) for state in states if state]
            for part in flats:
                self._optimizer.state[part]["step"].fill_(max(steps, default=0.0))

    def _plain(self, weights: Mapping[str, Tensor]) -> Optimization:
        """The same training as one process has it, without DeepSpeed and, so far, without AdamW's state."""
        named = {name: nn.Parameter(value) for name, value in weights.items()}
        groups = [({name: named[name] for name in names}, 0.0) for names in self._groups]
        return Optimization(groups, max_grad_norm=0.0)

    def _each_group(self, plain: Optimization) -> Any:
        """Each group: its names, this rank's parts of it, the optimizer's settings, and those of `plain`."""
        settings = (self._optimizer.param_groups, plain.optimizer.param_groups)
        return zip(self._groups, self._flats(), *settings, strict=True)

    def _flats(self) -> list[list[Tensor]]:
        """This rank's parts of the weights, for each group of parameters, as AdamW sees them."""
        if world().zero < 3:
            return [[part] for part in self._inner.single_partition_of_fp32_groups]
        flats: list[list[Tensor]] = [[] for _ in self._groups]
        for number, part in enumerate(self._inner.fp32_partitioned_groups_flat):
            flats[self._inner.sub_group_to_group_id[number]].append(part)
        return flats

    def _make_states(self) -> None:
        """Begin AdamW's state, as it would at its first step, so that it can be read and set from now on."""
        for flats in self._flats():
            for part in flats:
                zeros = {key: torch.zeros_like(part) for key in _MOMENTS}
                self._optimizer.state[part] = {"step": torch.zeros((), device=part.device), **zeros}
        if world().zero < 3:
            self._show_states()

    def _show_states(self) -> None:
        """Let DeepSpeed's `safe_get_...` find the states just made, as it does after its first step."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        groups = zip(self._inner.bit16_groups, self._inner.single_partition_of_fp32_groups, strict=True)
        for parameters, part in groups:
            lazy_init_hp_params_optimizer_state(parameters, part, self._optimizer.state)

    def _set(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Set a parameter's master weights, or the moment `key`."""
        from deepspeed import utils

        if world().zero < 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.partition_numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, size * world().size - value.numel()))
        own = padded[size * world().rank : size * (world().rank + 1)]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, key)
