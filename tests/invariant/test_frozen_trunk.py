"""Adapters on the top layers only: the layers below run once for a sequence, and nothing else changes."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ppo.models import POLICY, VALUE
from rlhf.errors import UserError
from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.parallel.world import World, world
from rlhf.sampling.rollouts import Rollouts, TrunkStates
from rlhf.settings.groups import LoraSettings
from tests.invariant.test_ppo_properties import PROMPTS, Game, close, ppo_settings
from tests.support.small import perturb, word_tokenizer

TOP_ONE = LoraSettings(rank=4, alpha=8.0, top_layers=1)
IDS = torch.tensor([[5, 9, 13, 7, 21], [30, 31, 8, 6, 40]])


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1,
            eos_token_id=2,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=32, n_layer=4, n_head=4, n_positions=64, initializer_range=0.2,
                   bos_token_id=1, eos_token_id=2)
    )  # fmt: skip


def deep_backbone(folder: Path, make: Callable[[], nn.Module], top_layers: int | None) -> Backbone:
    torch.manual_seed(0)
    make().save_pretrained(folder)  # type: ignore[operator]
    word_tokenizer().save_pretrained(folder)
    backbone = Backbone.load(folder)
    settings = LoraSettings(rank=4, alpha=8.0, top_layers=top_layers)
    for index, name in enumerate((POLICY, VALUE)):
        backbone.add_adapter(name, settings, seed=index)
        perturb(backbone, name, seed=5 + index)
    return backbone


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("top_layers", [1, 2, 3])
def test_from_the_trunk_on_states_and_gradients_are_those_of_the_whole_model(
    tmp_path: Path, make: Callable[[], nn.Module], top_layers: int, checkpointing: bool
) -> None:
    backbone = deep_backbone(tmp_path, make, top_layers)
    assert backbone.trunk_depth == 4 - top_layers
    if checkpointing:
        backbone.enable_gradient_checkpointing()
    trunk = backbone.run_trunk(IDS)
    assert trunk is not None
    backbone.set_trainable([POLICY, VALUE])
    for role in (REFERENCE, POLICY, VALUE):
        grads: list[dict[str, Tensor]] = []
        hidden: list[Tensor] = []
        for states in (None, trunk):
            backbone.zero_grad(set_to_none=True)
            with backbone.role(role):
                hidden.append(backbone.hidden(IDS, trunk_BLH=states))
            if role != REFERENCE:
                hidden[-1].square().sum().backward()
            grads.append({k: p.grad.clone() for k, p in backbone.named_parameters() if p.grad is not None})
        assert torch.equal(hidden[0], hidden[1])
        assert grads[0].keys() == grads[1].keys()
        assert bool(grads[0]) == (role != REFERENCE)
        for key, grad in grads[0].items():
            torch.testing.assert_close(grads[1][key], grad, atol=1e-6, rtol=1e-5)


def test_with_adapters_on_all_layers_there_is_no_trunk(tmp_path: Path) -> None:
    backbone = deep_backbone(tmp_path, llama, None)
    assert backbone.trunk_depth == 0
    assert backbone.run_trunk(IDS) is None


def test_the_layers_below_run_once_for_a_rollout_and_never_in_the_epochs() -> None:
    game = Game(ppo_settings(lora=TOP_ONE), noisy=True)
    scored = game.rollouts()
    tokens: dict[str, int] = {"below": 0, "above": 0}
    below, above = game.backbone.layers
    q = {"below": below.self_attn.q_proj, "above": above.self_attn.q_proj}  # type: ignore[union-attr]
    for name, module in q.items():
        module.register_forward_hook(  # type: ignore[union-attr]
            lambda _module, inputs, _output, name=name: tokens.update(
                {name: tokens[name] + inputs[0].shape[0] * inputs[0].shape[1]}
            )
        )
    game.updater.update(game.experience(scored), iteration=0)
    assert tokens["below"] == 0
    assert tokens["above"] > 0
    rows = 0
    for batch in scored.rollouts.micro_batches(game.settings.micro_batch_tokens):
        rows += len(batch.rows)
        game.backbone.run_trunk(batch.tokens)
    assert rows == len(scored.rollouts)
    assert tokens["below"] > 0


def test_three_iterations_end_with_the_weights_of_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with_trunk = Game(ppo_settings(lora=TOP_ONE))
    start = with_trunk.weights()
    with_trunk.play(3)
    monkeypatch.setattr(Backbone, "run_trunk", lambda self, batch: None)
    plain = Game(ppo_settings(lora=TOP_ONE))
    plain.play(3)
    ours, theirs = with_trunk.weights(), plain.weights()
    moved = sum(float((theirs[k] - start[k]).square().sum()) for k in start) ** 0.5
    apart = sum(float((theirs[k] - ours[k]).square().sum()) for k in start) ** 0.5
    assert moved > 0
    assert apart <= 1e-3 * moved
    close(ours, theirs, tolerance=1e-4)


def test_samples_are_equal_with_and_without_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Game(ppo_settings(lora=TOP_ONE), noisy=True).rollouts()
    monkeypatch.setattr(Backbone, "run_trunk", lambda self, batch: None)
    plain = Game(ppo_settings(lora=TOP_ONE), noisy=True).rollouts()
    assert ours.rollouts.response_lists() == plain.rollouts.response_lists()
    assert ours.rollouts.trunk is not None
    assert plain.rollouts.trunk is None
    assert len(ours.prompts) <= len(PROMPTS)
    torch.testing.assert_close(ours.logprobs_BT, plain.logprobs_BT, atol=1e-5, rtol=0)


class SometimesNoReward:
    """A reward without a score for every third response."""

    def score(self, rollouts: Rollouts, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        del prompts, responses
        scores = [float(sum(ids)) for ids in rollouts.response_lists()]
        return torch.tensor([math.nan if row % 3 == 0 else score for row, score in enumerate(scores)])


def test_rollouts_that_are_left_out_take_their_states_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for with_trunk in (True, False):
        if not with_trunk:
            monkeypatch.setattr(Backbone, "run_trunk", lambda self, batch: None)
        game = Game(ppo_settings(lora=TOP_ONE), noisy=True)
        game.reward = SometimesNoReward()
        usable = game.rollouts().usable()
        assert usable is not None
        assert len(usable.rollouts) == 10
        assert (usable.rollouts.trunk is not None) == with_trunk
        gradients.append(game.gradients(game.experience(usable), [7, 2, 9, 0]))
    close(gradients[0], gradients[1])


@pytest.mark.parametrize("lora", [TOP_ONE, LoraSettings(rank=4, alpha=8.0)])
def test_a_spare_micro_batch_changes_no_gradient_and_no_metric(
    monkeypatch: pytest.MonkeyPatch, lora: LoraSettings
) -> None:
    game = Game(ppo_settings(lora=lora), noisy=True)
    experience = game.experience(game.rollouts())
    plain = game.gradients(experience, range(9))
    sums = game.updater.accumulate(experience, range(9)).sums
    monkeypatch.setattr(World, "pad_to_equal", lambda self, parts, spare: [spare(), *parts, spare()])
    padded = game.gradients(experience, range(9))
    assert plain.keys() == padded.keys()
    assert all(torch.equal(plain[key], padded[key]) for key in plain)
    assert game.updater.accumulate(experience, range(9)).sums == sums


def test_each_rank_trains_on_the_rollouts_whose_states_it_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    states = tuple(torch.zeros(2, 3) for _ in range(4))
    monkeypatch.setattr(world(), "size", 3)
    trained: list[int] = []
    for rank in range(3):
        monkeypatch.setattr(world(), "rank", rank)
        own = world().shard(8)
        seen = TrunkStates(states[: len(own)], tuple(range(len(own)))).of_all_ranks(8)
        here = [row for row, place in enumerate(seen.places) if place is not None]
        assert here == own
        assert [seen.places[row] for row in own] == list(range(len(own)))
        trained += here
    assert sorted(trained) == list(range(8))


def test_an_adapter_on_the_top_layers_leaves_and_enters_as_it_is(tmp_path: Path) -> None:
    backbone = deep_backbone(tmp_path / "base", llama, 2)
    backbone.export_adapter(
        POLICY, tmp_path / "policy", task_type="CAUSAL_LM", base_path=str(tmp_path / "base")
    )
    config = json.loads((tmp_path / "policy" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [2, 3]
    with backbone.role(POLICY), torch.no_grad():
        ours = backbone.logits(backbone.hidden(IDS))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "policy"))(IDS).logits
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    again = Backbone.load(tmp_path / "base")
    again.load_adapter(POLICY, tmp_path / "policy")
    assert again.trunk_depth == 2
    with again.role(POLICY), torch.no_grad():
        assert torch.equal(again.logits(again.hidden(IDS)), ours)


def test_more_layers_than_there_are_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 4 layers, so adapters cannot be on the top 5"):
        deep_backbone(tmp_path, llama, 5)
