"""Steps that are not finite, left out by DeepSpeed: by itself it looks for them in fp16 alone."""

from typing import Any

from accelerate.utils import DeepSpeedEngineWrapper
from torch import Tensor


class SkippingEngine(DeepSpeedEngineWrapper):  # type: ignore[misc]
    """How accelerate calls an engine; a step whose gradients are not finite on some rank is left out on all.

    Losses are not looked at: whoever calls `backward` gives one that is not finite gradients that are not.
    """

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        # accelerate's own three calls, with a check before the last.
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            # The ranks reduce one flag. `step` obeys what was found, whatever the precision.
            self.engine.optimizer.check_overflow()
            self.engine.step()
