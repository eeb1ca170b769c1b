"""The planned head against TRL's own."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from plan import supervised
from plan.fused_head import TILE_WIDTH, fused_logprobs
from plan.inputs import Batch
from plan.ledger import Ledger, Profile
from plan.stand_ins import make_fake

NUM_TOKENS, HIDDEN, VOCABULARY = 5000, 64, 70000
"""Two tiles of tokens, and three of words of which the last is narrow."""


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's function as it weighs where a kernel works on a tile in place: without torch's copies of it."""
    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
        monkeypatch.setattr(chunked_logprob, name, lambda *args, **kwargs: None)


def needs(on_cuda: bool, *, trained: bool, bf16: bool) -> Profile:
    """Peaks of the head's two passes."""
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, device="meta").requires_grad_(trained)
    mode = FakeTensorMode()
    make_fake(head, mode)
    ledger = Ledger(head.parameters())
    with mode, ledger:
        hidden = torch.zeros(NUM_TOKENS, HIDDEN, requires_grad=True)
        targets = torch.zeros(NUM_TOKENS, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), ledger.section("forward"):
            loss = fused_logprobs(hidden, head, targets, softcap=None, on_cuda=on_cuda).sum()
        with ledger.section("backward"):
            loss.backward()
    return ledger.peaks


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_the_stand_in_needs_what_trl_s_tiles_need_in_place(trained: bool, bf16: bool) -> None:
    ours, theirs = needs(True, trained=trained, bf16=bf16), needs(False, trained=trained, bf16=bf16)
    for section in ("forward", "backward"):
        few_numbers_of_each_token = 8 * NUM_TOKENS
        assert ours[section].total() == pytest.approx(theirs[section].total(), abs=few_numbers_of_each_token)
        assert theirs[section].total() > 100 * few_numbers_of_each_token


def test_torch_s_copies_of_a_tile_are_counted_on_the_cpu() -> None:
    ours, theirs = needs(True, trained=False, bf16=False), needs(False, trained=False, bf16=False)
    tile_bytes = 4 * chunked_logprob.TOKEN_CHUNK_SIZE * TILE_WIDTH
    assert theirs["backward"].total() > ours["backward"].total() + 2 * tile_bytes


def test_a_tile_is_as_wide_as_the_trainer_makes_it() -> None:
    assert trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE == TILE_WIDTH


def test_fine_tuning_needs_what_trl_s_own_model_needs_but_for_the_untouched_part_of_a_tile() -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    batch = Batch(rows=4, tokens=50, response_tokens=50)
    run = supervised.fine_tuning(batch, bf16=False, checkpointing=False, again=False, on_cuda=False)
    planned: Any = LlamaForCausalLM(config)
    with Ledger([*planned.parameters(), *planned.buffers()]) as ours:
        run(planned, ours)

    model: Any = LlamaForCausalLM(config)
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    with Ledger([*model.parameters(), *model.buffers()]) as theirs:
        ids, mask = torch.zeros(4, 50, dtype=torch.long), torch.ones(4, 50, dtype=torch.long)
        mask[0, 0] = 0
        model.train()
        outputs = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False, fused_lm_head=True)
        loss = -outputs.log_probs.sum()
        del outputs
        loss.backward()
    untouched = 4 * 49 * 4 * (TILE_WIDTH - 300)
    assert ours.peaks["backward"].total() == pytest.approx(theirs.peaks[""].total() - untouched, rel=0.01)
