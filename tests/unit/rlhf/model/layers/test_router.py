"""The one router: nobody else assigns `forward`, and what a pass leaves out changes nothing that it keeps."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from rlhf.model.backbone import REFERENCE, Backbone
from rlhf.model.batching import TokenBatch
from rlhf.model.layers.router import ForwardPass, replace_forward
from rlhf.settings.groups import LoraSettings
from tests.support.imports import PACKAGES, ROOT
from tests.support.small import perturb, word_tokenizer

ROUTER = Path("rlhf/model/layers/router.py")
ROLES = ("policy", "value")
LENGTHS = [5, 9, 1, 12, 12, 7]
NUM_LAYERS, TOP_LAYERS = 4, 2


# ---- one module assigns `forward` -----------------------------------------------------------------------


def assignments_of_forward(source: str) -> list[int]:
    """Lines of `source` that set or delete an attribute `forward`, in whatever way."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if touches_forward(node)]  # type: ignore[attr-defined]


def touches_forward(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "forward" and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Subscript):  # vars(module)["forward"] = ...
        is_forward = isinstance(node.slice, ast.Constant) and node.slice.value == "forward"
        is_namespace = "__dict__" in ast.unparse(node.value) or "vars(" in ast.unparse(node.value)
        return is_forward and is_namespace and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Call):  # setattr itself, or handed to somebody who calls it
        names = {ast.unparse(part).rpartition(".")[2] for part in (node.func, *node.args)}
        setters = {"setattr", "delattr", "__setattr__", "__delattr__", "object"} & names
        return bool(setters) and "'forward'" in {ast.unparse(argument) for argument in node.args}
    return False


def project_files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_only_the_router_assigns_forward() -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for path in project_files()
        if (lines := assignments_of_forward(path.read_text(encoding="utf-8")))
    }
    assert list(found) == [str(ROUTER)]


def test_all_packages_are_read() -> None:
    packages = {path.relative_to(ROOT).parts[0] for path in project_files()}
    assert packages == {"rlhf", "sft", "reward", "ppo", "labeling", "plan", "benchmarks"}


@pytest.mark.parametrize(
    "planted",
    [
        "layer.forward = f",
        "self.model.layers[0].forward = f",
        "a, layer.forward = 1, f",
        "layer.forward: object = f",
        "for layer.forward in (f,): pass",
        "with open(x) as layer.forward: pass",
        "del layer.forward",
        "setattr(layer, 'forward', f)",
        "delattr(layer, 'forward')",
        "object.__setattr__(layer, 'forward', f)",
        "stack.callback(delattr, layer, 'forward')",
        "mock.patch.object(layer, 'forward', f)",
        "vars(layer)['forward'] = f",
        "layer.__dict__['forward'] = f",
    ],
)
def test_an_assignment_is_found_in_whatever_form(planted: str) -> None:
    assert assignments_of_forward(f"import torch\n{planted}\n") == [2]


@pytest.mark.parametrize(
    "harmless",
    ["layer.forward(x)", "run = layer.forward", "class A:\n  def forward(self): ...", "x['forward'] = 1"],
)
def test_what_only_reads_or_defines_is_allowed(harmless: str) -> None:
    assert assignments_of_forward(harmless) == []


def test_a_replaced_forward_can_be_taken_back_in_order() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    plain = layer(x)
    undo_first = replace_forward(layer, lambda x: x * 2)
    undo_second = replace_forward(layer, lambda x: x * 3)
    assert torch.equal(layer(x), x * 3)
    undo_second()
    assert torch.equal(layer(x), x * 2)
    undo_first()
    assert torch.equal(layer(x), plain)
    assert "forward" not in vars(layer)


# ---- what a pass does -----------------------------------------------------------------------------------


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=60, n_embd=32, n_layer=NUM_LAYERS, n_head=4, n_positions=64, initializer_range=0.2,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


Make = Callable[[], PreTrainedModel]
both_kinds = pytest.mark.parametrize("make", [llama, gpt2])
"""Llama layers, which take packed rows, and others, which do not."""


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Backbone]:
    def make_backbone(make: Make, *, top_layers: int | None = TOP_LAYERS) -> Backbone:
        torch.manual_seed(0)
        make().save_pretrained(tmp_path)
        word_tokenizer().save_pretrained(tmp_path)
        backbone = Backbone.load(tmp_path)
        for index, name in enumerate(ROLES):
            backbone.add_adapter(name, LoraSettings(rank=3, alpha=6.0, top_layers=top_layers), seed=index)
            perturb(backbone, name, seed=5 + index)
        backbone.set_trainable(ROLES)
        return backbone

    return make_backbone


def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(3)
    ids_BL = torch.randint(4, 60, (len(LENGTHS), max(LENGTHS)), generator=generator)
    return TokenBatch(ids_BL, torch.tensor(LENGTHS))


def real(hidden_BLH: Tensor) -> Tensor:
    """The states of real tokens; over padding they mean nothing."""
    return hidden_BLH[torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]]


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    """The gradients that there are, which are then forgotten."""
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad(set_to_none=True)
    return found


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-4, rtol=1e-4)


@both_kinds
@pytest.mark.parametrize("role", [REFERENCE, *ROLES])
def test_the_layers_below_and_those_above_are_the_whole(
    make: Make, role: str, build: Callable[..., Backbone]
) -> None:
    backbone = build(make)
    assert backbone.trunk_depth == NUM_LAYERS - TOP_LAYERS
    with backbone.role(role):
        whole_BLH = backbone.hidden(batch().ids_BL)
        trunk_BLH = backbone.run_trunk(batch().ids_BL)
        above_BLH = backbone.hidden(batch().ids_BL, trunk_BLH=trunk_BLH)
    assert torch.equal(above_BLH, whole_BLH)


@both_kinds
def test_no_layer_runs_twice_for_a_sequence(make: Make, build: Callable[..., Backbone]) -> None:
    backbone = build(make)
    ran: list[int] = []
    for number, layer in enumerate(backbone.layers):
        # On a module inside the layer: those that are skipped are called as well, and return at once.
        module = next(layer.children())
        module.register_forward_hook(lambda *_, number=number: ran.append(number))
    trunk_BLH = backbone.run_trunk(batch())
    assert ran == [0, 1]
    backbone.hidden(batch(), trunk_BLH=trunk_BLH)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("inside", [False, True])
def test_layers_with_hooks_run_in_their_own_form(inside: bool, build: Callable[..., Backbone]) -> None:
    backbone = build(llama)
    assert backbone.fused.can_run()
    whole_BLH = backbone.hidden(batch())
    calls: list[int] = []
    layer = backbone.layers[1]
    module = layer.get_submodule("self_attn.q_proj") if inside else layer
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(real(backbone.hidden(batch())), real(whole_BLH), atol=2e-5, rtol=1e-4)
    assert calls == [1]
    assert not backbone.fused.can_run()
    handle.remove()
    assert backbone.fused.can_run()


def test_a_trunk_is_the_same_in_every_role(build: Callable[..., Backbone]) -> None:
    backbone = build(llama)
    trunks = []
    for role in (REFERENCE, *ROLES):
        with backbone.role(role):
            trunk_BLH = backbone.run_trunk(batch())
        assert trunk_BLH is not None
        trunks.append(trunk_BLH)
    assert all(torch.equal(trunk_BLH, trunks[0]) for trunk_BLH in trunks)


@pytest.mark.parametrize("role", [REFERENCE, *ROLES])
@pytest.mark.parametrize("with_trunk", [False, True])
def test_packed_rows_give_what_padded_rows_give(
    role: str, with_trunk: bool, build: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build(llama)
    results = []
    for packs in (True, False):
        if not packs:
            monkeypatch.setattr(backbone._router, "can_pack", lambda: False)
        trunk_BLH = backbone.run_trunk(batch()) if with_trunk else None
        with backbone.role(role):
            states_NH = real(backbone.hidden(batch(), trunk_BLH=trunk_BLH))
        if role != REFERENCE:
            states_NH.square().sum().backward()
        results.append((states_NH.detach(), gradients(backbone)))
    packed, padded = results
    torch.testing.assert_close(packed[0], padded[0], atol=2e-5, rtol=1e-4)
    assert bool(packed[1]) == (role != REFERENCE)
    if role != REFERENCE:
        assert_alike(packed[1], padded[1])


@both_kinds
@pytest.mark.parametrize("with_trunk", [False, True])
def test_wanted_states_are_rows_of_all_states(
    make: Make, with_trunk: bool, build: Callable[..., Backbone]
) -> None:
    backbone = build(make)
    wanted_M = torch.tensor([0, 12 + 8, 2 * 12, 4 * 12 + 11, 12 + 3])
    trunk_BLH = backbone.run_trunk(batch()) if with_trunk else None
    results = []
    for chosen in (True, False):
        with backbone.role("policy"):
            if chosen:
                states_MH = backbone.hidden(batch(), trunk_BLH=trunk_BLH, wanted_M=wanted_M)
            else:
                states_MH = backbone.hidden(batch(), trunk_BLH=trunk_BLH).flatten(0, 1)[wanted_M]
        states_MH.square().sum().backward()
        results.append((states_MH.detach(), gradients(backbone)))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    assert_alike(results[0][1], results[1][1])


@both_kinds
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("top_layers", [None, TOP_LAYERS])
def test_recomputed_gradients_are_those_of_the_pass_whatever_runs_meanwhile(
    make: Make, role: str, top_layers: int | None, build: Callable[..., Backbone]
) -> None:
    backbone = build(make, top_layers=top_layers)
    wanted_M = torch.tensor([0, 12 + 8, 4 * 12 + 11])
    trunk_BLH = backbone.run_trunk(batch())
    found = []
    for recomputes in (False, True):
        if recomputes:
            backbone.enable_gradient_checkpointing()
        with backbone.role(role):
            loss = backbone.hidden(batch(), trunk_BLH=trunk_BLH, wanted_M=wanted_M).square().sum()
        # The role's block has ended, another role is on, and other rows have passed through since.
        with backbone.role(ROLES[0] if role == ROLES[1] else ROLES[1]):
            backbone.hidden(torch.tensor([[7, 8, 9]]))
            loss.backward()
        found.append(gradients(backbone))
    assert_alike(found[1], found[0])
    assert all(f".{role}." in name for name in found[1])


def test_a_pass_that_fails_leaves_the_decoder_as_it_was(build: Callable[..., Backbone]) -> None:
    backbone = build(gpt2)
    backbone.enable_gradient_checkpointing()
    before_BLH = backbone.hidden(batch())
    undo = replace_forward(next(backbone.layers[1].children()), lambda x: x @ x)
    with backbone.role("policy"), pytest.raises(RuntimeError):
        backbone.hidden(batch())
    undo()
    assert not any(layer.training for layer in backbone.layers)
    assert torch.equal(backbone.hidden(batch()), before_BLH)


@both_kinds
def test_decoding_after_any_pass_is_decoding_before(make: Make, build: Callable[..., Backbone]) -> None:
    backbone = build(make)
    ids_BL = batch().ids_BL
    mask_BL = torch.ones_like(ids_BL)

    def decoded() -> Tensor:
        return backbone.next_hidden(ids_BL, mask_BL, DynamicCache(config=backbone.model.config))

    before_BLH = decoded()
    trunk_BLH = backbone.run_trunk(batch())
    assert torch.equal(decoded(), before_BLH)
    backbone.hidden(batch(), trunk_BLH=trunk_BLH)
    assert torch.equal(decoded(), before_BLH)


def test_a_forward_pass_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ForwardPass("policy").stop = 1  # type: ignore[misc]
