"""The bytes that the ledger counts: by hand, and against real tensors."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from plan import decoding, passes, supervised
from plan.inputs import Batch, Run
from plan.ledger import ACTIVATIONS, GRADIENTS, LOGITS, Ledger, Profile, extrapolated
from plan.model import Sketch
from rlhf.model.backbone import Backbone
from rlhf.model.layers.llama import FusedLayers
from rlhf.settings.groups import LoraSettings, ModelSettings, Precision, SamplingSettings
from tests.support.small import LORA, small_backbone, write_small_model

KIB = 1024
BATCH = Batch(rows=3, tokens=20, response_tokens=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_small_model(folder)
    return folder


def sketch_of(folder: Path, precision: Precision = "fp32") -> Sketch:
    return Sketch.of(ModelSettings(path=str(folder), precision=precision), on_cuda=False)


def block(kib: int) -> Tensor:
    return torch.zeros(kib * KIB, dtype=torch.uint8)


def test_the_peak_is_of_what_is_alive_at_once() -> None:
    owned = block(100)
    with Ledger([owned]) as ledger:
        first = block(4)
        view = first[: 2 * KIB]
        del first
        second = block(1)
        del view
        third = block(2)
        owned.add_(1)
    assert ledger.peaks[""].total() == 5 * KIB
    assert ledger.alive.total() == 3 * KIB
    del second, third
    assert ledger.alive.total() == 0


def test_sections_and_rows_are_kept_apart() -> None:
    with Ledger([]) as ledger:
        with ledger.section("one"):
            kept = block(3)
        ledger.book(LOGITS)
        with ledger.section("two"):
            logits = block(2)
            ledger.rebook(logits, GRADIENTS)
            more = block(1)
    del kept, more
    assert ledger.peaks["one"] == {ACTIVATIONS: 3 * KIB}
    assert +ledger.peaks["two"] == {ACTIVATIONS: 3 * KIB, GRADIENTS: 2 * KIB, LOGITS: KIB}


def test_gradients_are_booked_as_such() -> None:
    weight = torch.nn.Parameter(torch.ones(256))
    with Ledger([weight]) as ledger:
        ledger.watch_gradients([weight])
        (weight * 2).sum().backward()
    assert +ledger.alive == {GRADIENTS: KIB}


def assert_alike(one: Profile, other: Profile) -> None:
    """The same bytes in every row at every peak, but for a few numbers that only real tensors make."""
    assert one.keys() == other.keys()
    for section, rows in one.items():
        assert set(+rows) == set(+other[section])
        assert all(abs(rows[row] - other[section][row]) <= 16 for row in rows), section


SHORT = SamplingSettings(max_response_tokens=8, batch_size=4)
TRAINING = passes.training(BATCH, with_logits=("policy",), without=("value",), again=True, below=False)
RUNS = {
    "training": TRAINING,
    "checkpointed": passes.checkpointed(TRAINING),
    "scoring": passes.scoring(BATCH, role="policy", with_logits=True, below=False),
    "sampling": decoding.sampling(8, 12, SHORT, role="policy"),
    "captured": decoding.sampling(
        8, 12, SamplingSettings(max_response_tokens=16, batch_size=4), role="policy", on_cuda=True
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_fake_tensors_need_what_real_ones_need(model: Path, run: Run) -> None:
    real = small_backbone("policy", "value")
    for name in ("policy", "value"):
        real.add_head(name, bias=True)
    with Ledger([*real.parameters(), *real.buffers()]) as ledger:
        run(real, ledger)
    assert_alike(sketch_of(model).profile({"policy": LORA, "value": LORA}, run), ledger.peaks)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_fine_tuning_needs_what_real_tensors_need(model: Path, lora: LoraSettings | None, bf16: bool) -> None:
    run = supervised.fine_tuning(BATCH, bf16=bf16, checkpointing=False, again=True, on_cuda=False)
    real: Any = supervised.fine_tuned(lora)(AutoModelForCausalLM.from_pretrained(model))
    with Ledger([*real.parameters(), *real.buffers()]) as ledger:
        run(real, ledger)
    profile = sketch_of(model).profile({}, run, wrap=supervised.fine_tuned(lora))
    assert set(profile) == {"", "forward", "head", "backward"}
    assert_alike(profile, ledger.peaks)


def test_checkpointing_saves_activations(model: Path) -> None:
    run = passes.training(BATCH, with_logits=("policy",), without=(), again=False, below=False)
    plain, less = (sketch_of(model).profile({"policy": LORA}, r) for r in (run, passes.checkpointed(run)))
    assert less["forward"].total() < 0.6 * plain["forward"].total()


def deep(folder: Path, num_layers: int) -> Sketch:
    sketch = sketch_of(folder)
    sketch.config.num_hidden_layers = num_layers
    sketch.config.layer_types = None
    return Sketch(sketch.config, "fp32", torch.float32, "sdpa")


@pytest.mark.parametrize(
    ("what", "top_layers"),
    [
        ("training", None),
        ("training", 6),
        ("checkpointed", None),
        ("sampling", None),
        ("sampling", 6),
        ("captured", None),
    ],
)
def test_a_deep_model_is_extrapolated_from_shallow_ones(
    model: Path, what: str, top_layers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraSettings(rank=4, top_layers=top_layers)
    run = passes.training(
        BATCH, with_logits=("policy",), without=(), again=True, below=top_layers is not None
    )
    if what == "sampling":
        run = decoding.sampling(4, 12, SHORT, role="policy")
    elif what == "captured":
        settings = SamplingSettings(max_response_tokens=16, batch_size=8)
        run = decoding.sampling(4, 12, settings, role="policy", on_cuda=True)
    elif what == "checkpointed":
        run = passes.checkpointed(run)

    def highest(profile: Profile) -> int:
        return max(section.total() for section in profile.values())

    sketch = deep(model, 9)
    depths: list[int] = []
    plain = Sketch._run

    def spy(self: Sketch, config: object, *rest: object) -> Profile:
        depths.append(config.num_hidden_layers)  # type: ignore[attr-defined]
        return plain(self, config, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Sketch, "_run", spy)
    quick = sketch.profile({"policy": lora}, run, per_trained_layer=what not in ("sampling", "captured"))
    monkeypatch.setattr("plan.model._SHALLOW", (98, 99))
    whole = sketch.profile({"policy": lora}, run)
    assert depths == ([2, 3, 9] if top_layers is None else [3, 4, 9])
    assert highest(quick) == pytest.approx(highest(whole), rel=0.01)
    # A section whose highest moment is another one in the deeper model would be extrapolated below nothing.
    assert all(size >= 0 for section in quick.values() for size in section.values())


def test_layers_that_differ_are_not_extrapolated(model: Path) -> None:
    sketch = deep(model, 6)
    assert sketch._layers_are_equal
    sketch.config.layer_types = ["full_attention", *["sliding_attention"] * 5]
    assert not sketch._layers_are_equal


def test_extrapolation_is_linear_in_the_depth() -> None:
    shallow: Profile = {"a": Counter(x=10, y=1)}
    deeper: Profile = {"a": Counter(x=13, y=1, z=2)}
    assert extrapolated(shallow, deeper, depths=(2, 3), depth=10) == {"a": {"x": 34, "y": 1, "z": 16}}


def test_a_quantized_layer_keeps_no_unpacked_weight(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedLayers, "can_run", lambda self: False)  # quantized layers never are
    run = passes.training(BATCH, with_logits=("policy",), without=(), again=False, below=False)
    plain, packed = (sketch_of(model, p).profile({"policy": LORA}, run) for p in ("fp32", "nf4"))
    weights = sum(p.numel() * 4 for p in Backbone.load(model).model.parameters())
    assert packed["forward"].total() - plain["forward"].total() < 0.25 * weights
