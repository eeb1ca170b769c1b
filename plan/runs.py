"""The pieces of the stages that decide their peaks, run on a backbone without memory.

Each piece calls what its stage calls: the backbone's forward passes, its chunked log-probabilities, the
sampler's cache, TRL's fused head. Data are replaced by sequences of the greatest length.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from plan.ledger import ACTIVATIONS, KV_CACHE, LOGITS, TRUNK, Ledger
from rlhf.model.backbone import Backbone
from rlhf.sampling.local import _Columns, _Drawn, _SlotLayer, fixed_shapes_pay
from rlhf.settings.groups import LoraSettings, SamplingSettings

# Shapes: B sequences, L tokens of a sequence, N response tokens, H hidden size, S slots, P prompt tokens.

Run = Callable[[Any, Ledger], None]


@dataclass(frozen=True)
class Batch:
    """Sequences that go through the model together, all of one length."""

    rows: int
    tokens: int
    response_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.tokens

    @staticmethod
    def within(max_tokens: int, rows: int, *, tokens: int, response_tokens: int) -> "Batch":
        """As many of `rows` as `max_tokens` padded tokens allow; at least one."""
        return Batch(max(1, min(rows, max_tokens // tokens)), tokens, min(response_tokens, tokens))


def training(
    batch: Batch, *, with_logits: tuple[str, ...], without: tuple[str, ...], again: bool, below: bool
) -> Run:
    """A micro-batch through the roles in turn; with `again`, a second one beside the first's gradients."""

    def run(backbone: Backbone, ledger: Ledger) -> None:
        roles = [*with_logits, *without]
        ledger.watch_gradients(backbone.set_trainable(roles))
        for _ in range(2 if again else 1):
            for role in roles:
                ledger.book(TRUNK)
                states = _states(backbone, batch) if below else None
                ledger.book(ACTIVATIONS)
                _forward_backward(backbone, ledger, batch, role, role in with_logits, states)

    return run


def checkpointed(run: Run) -> Run:
    """The same with gradient checkpointing."""

    def again(backbone: Backbone, ledger: Ledger) -> None:
        backbone.enable_gradient_checkpointing()
        run(backbone, ledger)

    return again


def scoring(batch: Batch, *, role: str, with_logits: bool, below: bool) -> Run:
    """A micro-batch through a role without gradients; `below` also runs the frozen trunk."""

    def run(backbone: Backbone, ledger: Ledger) -> None:
        ids_BL = _ids(batch.rows, batch.tokens)
        states = None
        if below:
            with ledger.section("trunk"):
                states = backbone.run_trunk(ids_BL)
        with torch.no_grad(), backbone.role(role):
            hidden_NH = _response_states(backbone, batch, ids_BL, states)
            if with_logits:
                ledger.book(LOGITS)
                with ledger.section("logits"):
                    backbone.logprobs(hidden_NH, _ids(len(hidden_NH)), temperature=0.9)
                ledger.book(ACTIVATIONS)

    return run


def sampling(
    num_rows: int, prompt_tokens: int, settings: SamplingSettings, *, role: str, on_cuda: bool = False
) -> Run:
    """A prompt pass for all slots, the last step of the longest responses, prompts beside a cache in use."""
    slots, plain = min(settings.batch_size, num_rows), settings.model_copy(update={"stop": []})
    refills, longest = num_rows > slots, prompt_tokens + settings.max_response_tokens
    device = torch.device("cpu")

    def run(backbone: Backbone, ledger: Ledger) -> None:
        if not backbone.has_plain_cache:
            _decode_in_batches(backbone, ledger, slots, longest, role)
            return
        columns = _Columns(slots, longest + (max(16, longest // 2) if refills else 0), device)
        if fixed_shapes_pay(torch.device("cuda" if on_cuda else "cpu"), settings):
            columns.current = torch.zeros(1, dtype=torch.long)
        columns.end = prompt_tokens
        layers = [_SlotLayer(columns) for _ in backbone.layers]
        uniforms = torch.zeros(slots, settings.max_response_tokens).double()
        drawn = _Drawn(backbone, [[0] * prompt_tokens] * slots, uniforms, plain)
        with backbone.role(role), torch.inference_mode():
            prompts = _ids(slots, prompt_tokens)
            _admit(backbone, ledger, layers, drawn, prompts, "prompts")
            columns.begin, columns.end = columns.capacity - longest, columns.capacity
            captured = _decode(backbone, ledger, layers, drawn)
            if refills:
                _admit(backbone, ledger, layers, drawn, prompts, "refill")
            del captured

    return run


def fine_tuning(batch: Batch, *, bf16: bool, checkpointing: bool, again: bool, on_cuda: bool) -> Run:
    """A micro-batch as TRL's `SFTTrainer` runs it: log-probabilities of every position, in tiles."""

    def run(model: Any, ledger: Ledger) -> None:
        model.train()
        if checkpointing:
            _checkpoint(model)
        ledger.watch_gradients(p for p in model.parameters() if p.requires_grad)
        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        sections = contextlib.ExitStack()

        def head_follows(decoder: Any, args: Any, output: Any) -> None:
            sections.enter_context(ledger.section("head"))
            ledger.head_follows(output.last_hidden_state)

        plain.get_decoder().register_forward_hook(head_follows)
        vocab_size = plain.get_output_embeddings().weight.shape[0]
        ids_BL, mask_BL = _ids(batch.rows, batch.tokens), _mask(batch.rows, batch.tokens)
        for _ in range(2 if again else 1):
            ledger.book(ACTIVATIONS)
            with _tiles(vocab_size, on_cuda):
                with ledger.section("forward"), torch.autocast("cpu", torch.bfloat16, enabled=bf16), sections:
                    outputs = model(
                        input_ids=ids_BL,
                        attention_mask=mask_BL,
                        labels=ids_BL,
                        use_cache=False,
                        fused_lm_head=True,
                    )
                loss = -outputs.log_probs.sum()
                del outputs
                with ledger.section("backward"):
                    loss.backward()

    return run


def _checkpoint(model: Any) -> None:
    """Switch gradient checkpointing on as the trainer does."""
    with warnings.catch_warnings():
        # Its name changes from transformers 5 to 6.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "peft_config"):
        model.enable_input_require_grads()


def fine_tuned(lora: LoraSettings | None) -> Callable[[Any], Any]:
    """What makes of a network the model that `SFTTrainer` trains: TRL's head, and LoRA if there is any."""

    def wrap(network: Any) -> Any:
        if lora is None:
            model = network
        else:
            options: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "task_type": "CAUSAL_LM"}
            with warnings.catch_warnings():
                # PEFT 0.21 asks transformers 5.23 under the old name.
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                model = get_peft_model(network, LoraConfig(target_modules=lora.target_modules, **options))
        plain: Any = network
        trl_utils.add_fused_lm_head(plain, outputs=("log_probs", "entropy", "is_top1"))
        return model

    return wrap


def held_out(batch: Batch) -> Run:
    """The loss of held-out examples: full logits of a batch, and those of its completions in fp32."""

    def run(model: Any, ledger: Ledger) -> None:
        model.eval()
        chosen = _ids(batch.rows * (batch.tokens - 1))
        with torch.no_grad():
            ids_BL, mask_BL = _ids(batch.rows, batch.tokens), _mask(batch.rows, batch.tokens)
            for _ in range(2):  # a batch's logits go only when the next one's are there
                ledger.book(ACTIVATIONS)
                output = model.get_decoder()(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False)
                ledger.book(LOGITS)
                logits_BLV = model.get_output_embeddings()(output.last_hidden_state)[:, :-1]
                del output
                logits_NV = logits_BLV.flatten(0, 1).index_select(0, chosen).float()
                cross_entropy(logits_NV, chosen, reduction="none")

    return run


def _forward_backward(
    backbone: Backbone, ledger: Ledger, batch: Batch, role: str, with_logits: bool, states: Tensor | None
) -> None:
    ids_BL = _ids(batch.rows, batch.tokens)
    with ledger.section("forward"), backbone.role(role):
        hidden_NH = _response_states(backbone, batch, ids_BL, states)
    if with_logits:
        ledger.head_follows(hidden_NH)
    with ledger.section("head"), backbone.role(role):
        if with_logits:
            values_N = backbone.logprobs(hidden_NH, _ids(len(hidden_NH)), temperature=0.9)
        else:
            values_N = backbone.scalar(role, hidden_NH)
        loss = values_N.exp().sum()
    with ledger.section("backward"):
        loss.backward()
    ledger.book(ACTIVATIONS)


def _response_states(backbone: Backbone, batch: Batch, ids_BL: Tensor, states: Tensor | None) -> Tensor:
    wanted_M = _ids(batch.rows * batch.response_tokens)
    return backbone.hidden(ids_BL, trunk_BLH=states, wanted_M=wanted_M)


def _states(backbone: Backbone, batch: Batch) -> Tensor:
    """Trunk states of a micro-batch: taken from those of the iteration, as one copy."""
    network: Any = backbone.model
    return torch.zeros(batch.rows, batch.tokens, backbone.hidden_size, dtype=network.dtype)


def _admit(
    backbone: Backbone, ledger: Ledger, layers: list[_SlotLayer], drawn: _Drawn, prompts_SP: Tensor, name: str
) -> None:
    """Run prompts in a cache of their own, lay it into the slots and draw: two sections."""
    cache = Cache(layers=[_BookedLayer(ledger) for _ in layers])
    with ledger.section(name):
        hidden_SPH = backbone.next_hidden(prompts_SP, _mask(*prompts_SP.shape).bool(), cache)
    slots = torch.arange(len(prompts_SP))
    ledger.book(KV_CACHE)
    with ledger.section(f"{name}, laid in"):
        for layer, given in zip(layers, cache.layers, strict=True):
            assert isinstance(given, DynamicLayer)
            assert given.keys is not None
            assert given.values is not None
            layer.put(slots, given.keys, given.values)
        ledger.book(LOGITS)
        drawn.draw(slots, backbone.logits(hidden_SPH[:, -1]))
    ledger.book(ACTIVATIONS)


def _decode(backbone: Backbone, ledger: Ledger, layers: list[_SlotLayer], drawn: _Drawn) -> Tensor | None:
    """One step of all slots; what a captured graph keeps of it for the steps to come."""
    columns, slots = layers[0].columns, torch.arange(len(drawn.lengths_R))
    before, captured = ledger.alive.total(), None
    with ledger.section("decoding"):
        hidden = backbone.next_hidden(_ids(len(slots), 1), columns.window_SC, Cache(layers=list(layers)))
        ledger.book(LOGITS)
        if columns.current is None:
            logits = backbone.logits(hidden[slots, -1])
        else:
            shape = backbone.logits(hidden[:, -1]).shape
            del hidden
            captured = torch.empty(ledger.peaks["decoding"].total() - before, dtype=torch.uint8)
            logits = torch.zeros(shape)
        drawn.draw(slots, logits)
    ledger.book(ACTIVATIONS)
    return captured


def _decode_in_batches(backbone: Backbone, ledger: Ledger, slots: int, longest: int, role: str) -> None:
    """The sampler's way with caches that are not plain: here as one pass over whole sequences."""
    cache = DynamicCache(config=backbone.model.config)
    mask = _mask(slots, longest).bool()
    with backbone.role(role), torch.inference_mode(), ledger.section("decoding"):
        hidden = backbone.next_hidden(_ids(slots, longest), mask, cache)
        ledger.book(LOGITS)
        backbone.logits(hidden[:, -1])


def _ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


def _mask(rows: int, tokens: int) -> Tensor:
    """Not all tokens are real: then attention needs a mask, and the mask memory."""
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, 0] = 0
    return mask


@contextlib.contextmanager
def _tiles(vocab_size: int, on_cuda: bool) -> Iterator[None]:
    """TRL's tiles of logits as they weigh on the device.

    On CUDA one Triton kernel works on a tile in place, where elsewhere torch makes copies of it. On the CPU
    the part of a tile beyond the vocabulary is never touched, and takes no memory.
    """

    def in_place(*args: Any, **kwargs: Any) -> None:
        del args, kwargs

    with contextlib.ExitStack() as stack:
        if on_cuda:
            for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                stack.enter_context(mock.patch.object(chunked_logprob, name, in_place))
        else:
            width = min(vocab_size, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE)
            stack.enter_context(mock.patch.object(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", width))
        yield


class _BookedLayer(DynamicLayer):
    """A layer of the KV cache whose keys and values are booked as such from the start."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(*args, **kwargs)
        self._ledger.rebook(keys, KV_CACHE)
        self._ledger.rebook(values, KV_CACHE)
        return keys, values
