"""DeepSpeed as a `Trainer` of transformers enters it: what it is told, the state of its engine, and its end.

SFT may train every weight. Gradients are therefore reduced by DeepSpeed as they come, and not by
`ZeroOptimization`, which holds them whole; reading and setting the state is the same.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.model.layers.router import replace_forward
from rlhf.parallel.deepspeed.gather import set_engine
from rlhf.parallel.deepspeed.setup import deepspeed_settings, forget_settings
from rlhf.parallel.world import world
from rlhf.training.deepspeed.nonfinite import SkippingEngine
from rlhf.training.deepspeed.state import ZeroState


def trainer_options(
    num_trained: int, *, micro_batch_rows: int, accumulation: int, max_grad_norm: float
) -> dict[str, Any]:
    """Arguments with which a `Trainer` uses DeepSpeed; what either would choose by itself is said here."""
    settings = deepspeed_settings(
        num_trained,
        micro_batch_rows=micro_batch_rows,
        accumulation=accumulation,
        max_grad_norm=max_grad_norm,
        # Transformers' own choice: norms and biases stay whole, matrices are cut.
        stage3_param_persistence_threshold="auto",
    )
    # It would say that accumulation is DeepSpeed's and not accelerate's, which is so on purpose.
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    return {"deepspeed": settings, "accelerator_config": {"use_configured_state": True}, "use_cpu": False}


class TrainerEngine:
    """An engine that a `Trainer` has made, and which takes its steps by itself."""

    def __init__(
        self, accelerator: Any, named: Mapping[str, nn.Parameter], groups: Sequence[Sequence[nn.Parameter]]
    ) -> None:
        self._engine: Any = accelerator.deepspeed_engine_wrapped.engine
        accelerator.deepspeed_engine_wrapped = SkippingEngine(self._engine)
        self.state = ZeroState(self._engine, named, groups, keep=_keep_on_the_first)
        set_engine(self._engine.module, self._engine)
        self._undo = contextlib.ExitStack()
        """What `release` takes back of what was done to the module."""

    @property
    def skipped(self) -> bool:
        """Whether the last step was left out, because a loss or a gradient was not finite on some rank."""
        return bool(self._engine.optimizer.overflow)

    @property
    def gradient_norm(self) -> float:
        """The norm, before clipping, of the gradients of the last step that was not left out."""
        return float(self._engine.get_global_grad_norm())

    def check(self, *, accumulation: int, max_grad_norm: float) -> None:
        """See that DeepSpeed does what it was told."""
        engine = self._engine
        assert engine.zero_optimization_stage() == world().zero
        assert engine.gradient_clipping() == max_grad_norm
        assert engine.gradient_accumulation_steps() == accumulation
        assert not engine.bfloat16_enabled()
        assert not engine.fp16_enabled()
        trained = [value for value in engine.module.parameters() if value.requires_grad]
        assert {value.dtype for value in trained} == {torch.float32}

    def compute_in_bf16(self) -> None:
        """Run the module under autocast; what is trained stays as it is.

        Inside the module, as accelerate does it: around the engine DeepSpeed would switch it off.
        """
        module = self._engine.module
        # Copies that are kept would make the whole model of what ZeRO-3 gathers layer by layer.
        computing = torch.autocast(world().device.type, dtype=torch.bfloat16, cache_enabled=world().zero < 3)
        self._undo.callback(replace_forward(module, computing(module.forward)))

    def release(self) -> None:
        """Free the module of DeepSpeed, training is over. What ZeRO-3 has sharded stays sharded."""
        module = self._engine.module
        self._undo.close()
        if world().zero == 3:
            self._engine.destroy()
            set_engine(module, None)
            parameters = list(module.parameters())
            parameters[0].partition(parameters)  # small ones are whole during training
            for parameter in parameters:
                # By this the parameters would keep DeepSpeed's optimizer alive, with gradients and moments.
                vars(parameter).pop("_z3_optimizer", None)
        else:
            _give_weights_of_its_own(module)
        forget_settings()


def _give_weights_of_its_own(module: nn.Module) -> None:
    """Put copies in the place of weights that are views of DeepSpeed's buffers, which would stay alive."""
    own: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        # A parameter that has two names in a module is to keep both.
        named = list(part.named_parameters(recurse=False, remove_duplicate=False))
        for name, parameter in named:
            if parameter not in own:
                own[parameter] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            part.register_parameter(name, own[parameter])


def _keep_on_the_first(whole: Tensor) -> Tensor:
    """A tensor in CPU memory on rank 0, which writes checkpoints; its shape on others."""
    return whole.to("cpu", copy=True) if world().is_rank0 else whole.to("meta")
