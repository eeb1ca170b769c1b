"""What we make of a model against what its own forward pass in plain transformers makes."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rlhf.errors import UserError
from rlhf.model.agreement import check_agreement
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.batching import TokenBatch
from rlhf.model.logits import OutputHead
from rlhf.settings.groups import LoraSettings
from tests.support.architectures import ARCHITECTURES, SIZES, tiny_model
from tests.support.small import perturb, word_tokenizer

ADAPTED = ["bert", "cohere", "gemma2", "gpt2", "granite", "hyperclovax", "lfm2", "llama", "phi"]
LENGTHS = [11, 3, 7]
IDS_BL = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(4))


def checked(model: PreTrainedModel) -> Backbone:
    """A backbone on `model` as `Backbone.load` would give it."""
    backbone = Backbone(model, word_tokenizer(), "")
    check_agreement(model, backbone._output_head, hidden=backbone.hidden)
    return backbone


@torch.no_grad()
def own_logprobs(backbone: Backbone) -> list[Tensor]:
    """Each row's log-probabilities by the model's own forward pass, alone and without a cache."""
    own: Any = backbone.model
    return [
        own(input_ids=IDS_BL[row : row + 1, :length], use_cache=False).logits[0].float().log_softmax(-1)
        for row, length in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_our_logits_are_those_of_the_models_own_forward_pass(model_type: str) -> None:
    backbone = checked(tiny_model(model_type))
    if model_type in ADAPTED:
        backbone.add_adapter("policy", LoraSettings(rank=2, alpha=4.0), seed=1)
        perturb(backbone, "policy", seed=2)
    with backbone.role("policy" if model_type in ADAPTED else REFERENCE), torch.no_grad():
        hidden_BLH = backbone.hidden(TokenBatch(IDS_BL, torch.tensor(LENGTHS)))
        for row, own_LV in enumerate(own_logprobs(backbone)):
            states_LH = hidden_BLH[row, : LENGTHS[row]]
            torch.testing.assert_close(
                backbone.logits(states_LH).log_softmax(-1), own_LV, atol=1e-4, rtol=1e-4
            )
            targets_L = IDS_BL[row, : LENGTHS[row]]
            ours_L = backbone.logprobs(states_LH, targets_L, temperature=1.0)
            own_L = own_LV.gather(1, targets_L[:, None]).squeeze(1)
            torch.testing.assert_close(ours_L, own_L, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "gemma2", "granite", "lfm2", "hyperclovax"])
def test_in_bf16_too(model_type: str) -> None:
    backbone = checked(tiny_model(model_type, dtype=torch.bfloat16))
    with torch.no_grad():
        hidden_BLH = backbone.hidden(TokenBatch(IDS_BL, torch.tensor(LENGTHS)))
        for row, own_LV in enumerate(own_logprobs(backbone)):
            ours_LV = backbone.logits(hidden_BLH[row, : LENGTHS[row]]).log_softmax(-1)
            assert float((ours_LV - own_LV).abs().mean()) < 0.05


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "bert", "hyperclovax"])
def test_gradients_in_chunks_are_those_of_the_models_own_logits(
    monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """Also those of an adapter on the head's transform, when the role's block has been left."""
    backbone = checked(tiny_model(model_type))
    for name in ("policy", "other"):
        backbone.add_adapter(name, LoraSettings(rank=2, alpha=4.0), seed=1)
        perturb(backbone, name, seed=len(name))
    backbone.set_trainable(["policy"])
    gradients: list[dict[str, Tensor]] = []
    for limit in (2**26, 60 * 3):
        for name in ("_LOGIT_ELEMENTS_PER_CHUNK", "_LOGIT_ELEMENTS_KEPT"):
            monkeypatch.setattr(f"rlhf.model.logits.{name}", limit)
        backbone.zero_grad()
        with backbone.role("policy"):
            hidden_NH = backbone.hidden(IDS_BL)[:, :-1].flatten(0, 1)
            total = backbone.logprobs(hidden_NH, IDS_BL[:, 1:].flatten(), temperature=0.7).sum()
        with backbone.role("other"):
            total.backward()
        parameters = backbone.adapter_parameters("policy")
        gradients.append({k: p.grad.clone() for k, p in parameters.items() if p.grad is not None})
    assert gradients[0].keys() == backbone.adapter_parameters("policy").keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("bert", {"is_decoder": False}, "as in an encoder"),
        ("roberta", {"is_decoder": True, "max_position_embeddings": 140}, "with a cache"),
        ("rwkv", {"attention_hidden_size": 32, "context_length": 128}, "no cache"),
        ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}, "no cache"),
        ("minimax", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}, "cannot be run"),
    ],
)
def test_what_cannot_be_made_equal_is_refused_by_the_models_type(
    model_type: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=f"`{model_type}`.*{reason}") as raised:
        checked(tiny_model(model_type, **changes))
    assert raised.value.fix is not None
    assert "model.path" in raised.value.fix


class LogitsOfTokens(LlamaForCausalLM):
    """A model whose logits are more than a function of its decoder's states."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        output: Any = super().forward(input_ids=cast(Any, input_ids), **kwargs)
        output.logits = output.logits.scatter_add(
            2, input_ids[..., None], torch.full_like(output.logits[..., :1], 5.0)
        )
        return output


class ScaledStates(LlamaForCausalLM):
    """A model that scales, before its head, by a number that no setting names."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        states = self.model(input_ids=input_ids, **kwargs)
        return type("Output", (), {"logits": self.lm_head(states.last_hidden_state * 1.7)})()


def llama_like(kind: type[LlamaForCausalLM]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = kind(LlamaConfig(**SIZES)).eval()
    return model


def test_a_forward_pass_that_reads_the_tokens_again_is_refused() -> None:
    with pytest.raises(UserError, match=r"`llama` \(LogitsOfTokens\) cannot be trained here"):
        checked(llama_like(LogitsOfTokens))


def test_a_scale_that_no_setting_names_is_kept() -> None:
    backbone = checked(llama_like(ScaledStates))
    assert not backbone._output_head.is_alone
    with torch.no_grad():
        ours_LV = backbone.logits(backbone.hidden(IDS_BL)[0]).log_softmax(-1)
    torch.testing.assert_close(ours_LV, own_logprobs(backbone)[0], atol=1e-5, rtol=1e-5)


def test_logits_that_are_not_finite_are_no_reason_to_refuse() -> None:
    """Weights of a broken run, which other places count and name."""
    model = tiny_model("llama")
    with torch.no_grad():
        cast(Any, model).lm_head.weight[7] = float("nan")
    checked(model)


def test_the_check_draws_no_random_number_and_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2").train()
    head = OutputHead(model, same_role=lambda: pytest.fail("no role"))
    before = torch.get_rng_state()
    forwards = {name: vars(module).get("forward") for name, module in model.named_modules()}
    check_agreement(model, head)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert forwards == {name: vars(module).get("forward") for name, module in model.named_modules()}
    assert not any(parameter.grad is not None for parameter in model.parameters())
