"""Whether our passes through a model come to what its own forward pass comes to: tried on a few tokens.

Sampling and training share what is made of the decoder's states, so that a fault in it shows in no metric:
the policy would be trained well, and another one in the hands of whoever opens it. An architecture may do
anything between its decoder and its logits, take its cache under any name, and look at padding. So when a
model is loaded, its own forward pass is compared with ours, and what cannot be made equal is refused.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from rlhf.errors import UserError
from rlhf.model.architecture import context_length, decoder_layers, decoder_of
from rlhf.model.batching import TokenBatch
from rlhf.model.cached import CachedDecoder, keep_rows
from rlhf.model.logits import OutputHead
from rlhf.model.quantization import is_quantized
from rlhf.parallel.deepspeed.sharded import whole_model
from rlhf.parallel.failures import is_rank_failure
from rlhf.parallel.world import world

# Shapes: B rows, L tokens, P tokens of a prompt, H hidden size, V vocabulary.

_LONG = 7
_SHORT = 4
_NEW = 2
"""Tokens of the longer and the shorter row, and how many of each are decoded one by one."""
_STRIDE = 7919
"""From one token id to the next: a prime number, so that no two are the same."""
_EXACT_NATS = 1e-3
"""What rounding explains in fp32."""
_ROUNDED_NATS = 0.05
_ROUNDED_SHARE = 0.1
"""What rounding explains in lower precision: nats in the mean, and a share of how far logits are apart."""
_OTHER_MODEL = "Choose a model of another type (`model.path`)."

Hidden = Callable[[TokenBatch], Tensor]


@dataclass(frozen=True)
class CacheUse:
    """What a model's decoding with a cache bears without a change of its results."""

    padded_prompts: bool
    """Prompts of unlike length, padded on the left."""
    fewer_rows: bool
    """That rows leave the cache while others decode on."""


class Trial:
    """A few fixed tokens, and what the model's own forward pass makes of them."""

    def __init__(self, model: PreTrainedModel, head: OutputHead, *, hidden: Hidden | None = None) -> None:
        self._model, self._head = model, head
        self._hidden = hidden or self._plain_hidden
        self._decoder = CachedDecoder(model)
        ids = _plain_ids(model.config, 2 * _LONG)
        self._ids_BL = torch.tensor(ids, device=model.device).reshape(2, _LONG)
        self._own_BLV = self._own(self._ids_BL)

    def forward_difference(self) -> str | None:
        """How our forward pass differs from the model's own, in words; None: it does not."""
        lengths_B = torch.tensor([_LONG, _SHORT], device=self._ids_BL.device)
        ids_BL = self._ids_BL.clone()
        ids_BL[1, _SHORT:] = ids_BL[0, _SHORT:]  # in the place of padding, other tokens than the row's own
        hidden_BLH = self._hidden(TokenBatch(ids_BL, lengths_B))
        short = slice(0, _SHORT)
        gap = self._gap(self._head.logits(hidden_BLH[0]), self._own_BLV[0])
        if gap is not None:
            return f"its logits are {gap} from those that we make of its decoder's states"
        gap = self._gap(self._head.logits(hidden_BLH[1, short]), self._own_BLV[1, short])
        if gap is None:
            return None
        own_alone = self._own(self._ids_BL[1:, short])[0]
        if self._gap(own_alone, self._own_BLV[1, short]) is not None:
            return f"a token's logits change by {gap} with the tokens after it, as in an encoder"
        return f"the logits of a row are {gap} apart next to a longer row and alone"

    def cache_difference(self) -> str | None:
        """How decoding with a cache differs from the model's own pass, in words; None: it does not."""
        if not self._decoder.takes_cache:
            return "its decoder takes no cache, and would see one token at a time"
        prompt_1P = self._ids_BL[:1, : _LONG - _NEW]
        mask_1C = torch.ones_like(prompt_1P, dtype=torch.bool)
        cache = self._decoder.new_cache()
        logits_BV = self._next(prompt_1P, mask_1C, cache)
        for place in range(_LONG - _NEW, _LONG):
            gap = self._gap(logits_BV[0], self._own_BLV[0, place - 1])
            if gap is not None:
                return f"its logits with a cache are {gap} from those without"
            mask_1C = _longer(mask_1C)
            logits_BV = self._next(self._ids_BL[:1, place : place + 1], mask_1C, cache)
        gap = self._gap(logits_BV[0], self._own_BLV[0, _LONG - 1])
        return None if gap is None else f"its logits with a cache are {gap} from those without"

    def cache_use(self) -> CacheUse:
        """What decoding with a cache bears."""
        padded = self._survives(self._decode_padded)
        return CacheUse(padded_prompts=padded, fewer_rows=self._survives(self._decode_fewer))

    def _decode_padded(self) -> bool:
        """Whether a shorter row next to a longer one gets the logits that it gets alone."""
        pad = _LONG - _SHORT
        ids_BP = self._ids_BL[:, : _LONG - _NEW].clone()
        mask_BC = torch.ones_like(ids_BP, dtype=torch.bool)
        mask_BC[1, :pad] = False
        ids_BP[1, pad:] = self._ids_BL[1, : _SHORT - _NEW]
        cache = self._decoder.new_cache()
        first_BV = self._next(ids_BP, mask_BC, cache)
        new_B1 = torch.stack([self._ids_BL[0, _LONG - _NEW], self._ids_BL[1, _SHORT - _NEW]])[:, None]
        second_BV = self._next(new_B1, _longer(mask_BC), cache)
        places = [(0, _LONG - _NEW - 1), (1, _SHORT - _NEW - 1)]
        return all(
            self._gap(logits_BV[row], self._own_BLV[row, place + step]) is None
            for step, logits_BV in enumerate((first_BV, second_BV))
            for row, place in places
        )

    def _decode_fewer(self) -> bool:
        """Whether a row decodes on as before when the other one has left the cache."""
        ids_BP = self._ids_BL[:, : _LONG - 2]
        mask_BC = torch.ones_like(ids_BP, dtype=torch.bool)
        cache = self._decoder.new_cache()
        self._next(ids_BP, mask_BC, cache)
        keep_rows(cache, torch.tensor([1], device=ids_BP.device))
        mask_1C = mask_BC[1:]
        for place in (_LONG - 2, _LONG - 1):
            mask_1C = _longer(mask_1C)
            logits_BV = self._next(self._ids_BL[1:, place : place + 1], mask_1C, cache)
            if self._gap(logits_BV[0], self._own_BLV[1, place]) is not None:
                return False
        return True

    def _survives(self, decode: Callable[[], bool]) -> bool:
        """Whether decoding in this way runs at all, and comes to the same."""
        try:
            return decode()
        except _FOREIGN_ERRORS as error:
            _raise_what_is_not_the_models(error)
            return False

    def _own(self, ids_BL: Tensor) -> Tensor:
        output: Any = self._model(input_ids=ids_BL, use_cache=False)
        logits_BLV: Tensor = output.logits.float()
        return logits_BLV

    def _plain_hidden(self, batch: TokenBatch) -> Tensor:
        output: Any = decoder_of(self._model)(input_ids=batch.ids_BL, use_cache=False)
        hidden_BLH: Tensor = output.last_hidden_state
        return hidden_BLH

    def _next(self, ids_BQ: Tensor, mask_BC: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) after the last of the new tokens."""
        return self._head.logits(self._decoder.next_hidden(ids_BQ, mask_BC, cache)[:, -1])

    def _gap(self, ours: Tensor, own: Tensor) -> str | None:
        """How far our logits are from the model's own, in words; None: no farther than rounding explains."""
        if ours.shape != own.shape:
            return f"of another shape ({tuple(ours.shape)} and not {tuple(own.shape)}), and so far"
        ours_logprobs, own_logprobs = ours.log_softmax(-1), own.log_softmax(-1)
        # Where the model's own are not finite there is nothing to be equal to.
        difference = (ours_logprobs - own_logprobs).abs()[own_logprobs.isfinite()].nan_to_num(nan=torch.inf)
        if not difference.numel():
            return None
        if self._model.dtype == torch.float32 and not is_quantized(self._model):
            # Of logits far from 0, and so far from one another, fp32 holds fewer decimal places.
            allowed = _EXACT_NATS * max(1.0, float(own[own.isfinite()].abs().max()) / 100)
            found = float(difference.max())
        else:
            apart = float(own_logprobs[own_logprobs.isfinite()].std(correction=0))
            allowed = _ROUNDED_NATS + _ROUNDED_SHARE * apart
            found = float(difference.mean())
        return None if found <= allowed else f"{found:.2g} nats"


def _plain_ids(config: Any, count: int) -> list[int]:
    """Token ids from all over the vocabulary, without those that an architecture gives a meaning."""
    vocab_size = int(config.get_text_config().vocab_size)
    settings = {**config.get_text_config().to_dict(), **config.to_dict()}
    # The id that stands for an image, for one, wants an image.
    special = {value for name, value in settings.items() if "token" in name and isinstance(value, int)}
    plain = [token for token in range(vocab_size) if token not in special] or [0]
    return [plain[(place * _STRIDE + len(plain) // 3) % len(plain)] for place in range(count)]


def check_agreement(
    model: PreTrainedModel, head: OutputHead, *, where: str | None = None, hidden: Hidden | None = None
) -> None:
    """Check that our passes through `model` come to what its own forward pass comes to.

    `hidden` gives the last states of a padded batch; without it the decoder's own pass does. Under ZeRO-3 all
    ranks must call it. No random number is drawn from the process.

    Raises:
        UserError: they do not, or the model cannot be run in this way.
    """
    kind = f"a model of type `{model.config.get_text_config().model_type}` ({type(model).__name__})"
    with _trying(model):
        try:
            trial = Trial(model, head, hidden=hidden)
            difference = trial.forward_difference()
            decoding = None if difference else trial.cache_difference()
        except _FOREIGN_ERRORS as error:
            _raise_what_is_not_the_models(error)
            raise UserError(
                f"{kind} cannot be run as a causal language model: {type(error).__name__}: {error}",
                where=where,
                fix=_OTHER_MODEL,
            ) from error
    if difference is not None:
        raise UserError(
            f"{kind} cannot be trained here: {difference}. What would be trained is not the model that plain "
            "transformers runs",
            where=where,
            fix=_OTHER_MODEL,
        )
    if decoding is not None:
        raise UserError(
            f"{kind} cannot be sampled from here: {decoding}. It would be trained on what it did not say",
            where=where,
            fix=_OTHER_MODEL,
        )


def say_how_far_it_sees(model: PreTrainedModel, path: str) -> None:
    """Print where the model sees less than its config says, which messages about lengths then build on."""
    seen = context_length(model.config)
    named = getattr(model.config.get_text_config(), "max_position_embeddings", None) or seen
    if seen < named and world().is_rank0:
        print(
            f"{path}: beyond {seen} tokens its rotary frequencies are others (longrope), for all rows of a "
            f"batch if one of them is so long: it is used up to there, and not to {named}",
            file=sys.stderr,
        )


def cache_use(model: PreTrainedModel, head: OutputHead) -> CacheUse:
    """What decoding with a cache bears, in the role that is on. Weights must be whole."""
    with _trying(model):
        return Trial(model, head).cache_use()


def logit_rounding_nats(model: PreTrainedModel) -> float:
    """Half a step between two numbers of the model's type, at the size of its highest logits."""
    with _trying(model):
        ids = torch.tensor([_plain_ids(model.config, _LONG)], device=model.device)
        output: Any = model(input_ids=ids, use_cache=False)
        highest_L = output.logits[0].float().abs().amax(-1)
    return torch.finfo(model.dtype).eps / 2 * float(highest_L.mean())


@contextlib.contextmanager
def _trying(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block weights are whole, dropout is off, and random numbers do not count."""
    was_training = model.training
    devices = [model.device.index or 0] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), whole_model(model, decoder_layers(model)):
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


_FOREIGN_ERRORS = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError)
"""What the code of an architecture raises that was not made for the way in which it is called."""


def _raise_what_is_not_the_models(error: Exception) -> None:
    """Raise an error again that says nothing of the architecture."""
    if isinstance(error, torch.OutOfMemoryError) or is_rank_failure(error):
        raise error


def _longer(mask_BC: Tensor) -> Tensor:
    return torch.cat([mask_BC, torch.ones_like(mask_BC[:, :1])], dim=1)
