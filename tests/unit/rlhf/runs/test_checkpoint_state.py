import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.runs import checkpoints
from tests.unit.rlhf.runs.saved_checkpoints import folder_of


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist() if tensor.numel() else []


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert bits(found[name]) == bits(tensor), name


def test_every_kind_of_tensor_comes_back_bitwise(tmp_path: Path) -> None:
    floats = torch.randn(3, 4)
    tensors = {
        "plain": floats,
        "bf16": floats.to(torch.bfloat16),
        "fp16": floats.half(),
        "fp64": floats.double() / 3,
        "fp8": floats.to(torch.float8_e4m3fn),
        "int": torch.tensor([2**62, -1]),
        "byte": torch.tensor([255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(1 / 3),
        "empty": torch.zeros(0, 3),
        "transposed": floats.t(),
        "row": floats[1],
        "every_other": floats[:, ::2],
        "expanded": torch.tensor(2.0).expand(2, 3),
        "strange": torch.tensor([0x7F7FFFFF, -0x80000000, 0x00800000, 1], dtype=torch.int32).view(
            torch.float32
        ),
        "parameter": nn.Parameter(floats.clone()),
    }
    checkpoints.save(tmp_path, 12, tensors, {})
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 12
    assert_same_bits(found.tensors, tensors)
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_tied_tensors_are_stored_once_and_come_back_under_every_name(tmp_path: Path) -> None:
    embedding, head = nn.Embedding(1000, 16), nn.Linear(16, 1000, bias=False)
    head.weight = embedding.weight
    tied = {"embedding": embedding.weight, "head": head.weight}
    checkpoints.save(tmp_path, 1, tied, {})
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert_same_bits(found.tensors, tied)
    assert found.tensors["head"] is found.tensors["embedding"]
    assert (folder_of(tmp_path, 1) / "tensors.safetensors").stat().st_size < 1000 * 16 * 4 + 1000


def test_the_rest_of_the_state_comes_back(tmp_path: Path) -> None:
    state = {"coefficient": 0.1 + 0.2, "best": -2.5, "names": ["é", None], "nested": {"on": True}}
    checkpoints.save(tmp_path, 0, {}, state)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.state == state
    assert found.tensors == {}


def small_model(*, seed: int, reverse: bool = False) -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.ModuleDict({"policy": nn.Linear(4, 3), "value": nn.Linear(4, 1), "frozen": nn.Linear(4, 4)})
    policy, value = list(model["policy"].parameters()), list(model["value"].parameters())
    groups: Any = [
        {"params": policy[::-1] if reverse else policy, "lr": 1e-2},
        {"params": value, "betas": (0.8, 0.9)},
    ]
    return model, torch.optim.AdamW(groups, lr=3e-3, eps=1e-5)


def train(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        loss = (model["policy"](x) ** 2).mean() + (model["value"](x) - 1).abs().mean() * (seed % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9


def named(model: nn.ModuleDict) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def test_training_continues_bitwise_whatever_the_order_of_the_parameters(tmp_path: Path) -> None:
    model, optimizer = small_model(seed=0)
    train(model, optimizer, range(3))
    tensors: dict[str, Tensor] = {f"weights.{name}": value for name, value in named(model).items()}
    tensors |= checkpoints.optimizer_tensors(optimizer, named(model))
    checkpoints.save(tmp_path, 3, tensors, {})
    train(model, optimizer, range(3, 6))

    again, optimizer_again = small_model(seed=1, reverse=True)
    train(again, optimizer_again, range(1))  # a state of its own, to be replaced
    found = checkpoints.latest(tmp_path)
    assert found is not None
    with torch.no_grad():
        for name, parameter in named(again).items():
            parameter.copy_(found.tensors[f"weights.{name}"])
    checkpoints.restore_optimizer(optimizer_again, named(again), found.tensors)
    train(again, optimizer_again, range(3, 6))
    assert_same_bits(named(again), named(model))
    states = [
        {
            name: value
            for name, value in checkpoints.optimizer_tensors(each, named(of)).items()
            if name.startswith("optimizer.")
        }
        for each, of in ((optimizer_again, again), (optimizer, model))
    ]
    assert "optimizer.value.bias.exp_avg_sq" in states[0]
    assert_same_bits(*states)
    assert [g["lr"] for g in optimizer_again.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_the_state_of_a_bf16_parameter_stays_bf16() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.tensor([0.1, 0.2, 0.3], dtype=torch.bfloat16)
    optimizer.step()
    stored = checkpoints.optimizer_tensors(optimizer, {"p": parameter})
    other = torch.optim.AdamW([parameter])
    checkpoints.restore_optimizer(other, {"p": parameter}, stored)
    assert other.state[parameter]["exp_avg"].dtype == torch.bfloat16
    assert_same_bits(other.state[parameter], optimizer.state[parameter])


def test_a_fresh_optimizer_is_restored_as_fresh() -> None:
    model, optimizer = small_model(seed=0)
    fresh = checkpoints.optimizer_tensors(optimizer, named(model))
    train(model, optimizer, range(2))
    checkpoints.restore_optimizer(optimizer, named(model), fresh)
    assert not optimizer.state
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 3e-3]
    assert optimizer.param_groups[1]["betas"] == (0.8, 0.9)


def test_a_learning_rate_that_is_a_tensor_comes_back_as_one() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=torch.tensor(0.1))
    stored = checkpoints.optimizer_tensors(optimizer, {"p": parameter})
    other = torch.optim.AdamW([parameter], lr=torch.tensor(0.5))
    checkpoints.restore_optimizer(other, {"p": parameter}, stored)
    assert torch.equal(other.param_groups[0]["lr"], torch.tensor(0.1))


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model, optimizer = small_model(seed=0)
    stored = checkpoints.optimizer_tensors(optimizer, named(model))
    frozen = torch.optim.AdamW(model["frozen"].parameters())
    with pytest.raises(AssertionError, match="other parameters"):
        checkpoints.restore_optimizer(frozen, named(model), stored)


def draw() -> list[float]:
    return [
        *torch.randn(3).tolist(),
        *np.random.randn(3).tolist(),
        random.random(),
        random.gauss(0, 1),
        *torch.randperm(5).tolist(),
    ]


def test_random_numbers_continue_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    np.random.randn()  # leaves the second of a pair in store
    random.gauss(0, 1)
    checkpoints.save(tmp_path, 1, checkpoints.rng_tensors(), {})
    expected = draw()
    assert draw() != expected
    found = checkpoints.latest(tmp_path)
    assert found is not None
    checkpoints.restore_rng(found.tensors)
    assert draw() == expected


def test_no_pickle_is_written(tmp_path: Path) -> None:
    model, optimizer = small_model(seed=0)
    train(model, optimizer, range(1))
    checkpoints.save(tmp_path, 1, checkpoints.optimizer_tensors(optimizer, named(model)), {})
    names = sorted(path.name for path in folder_of(tmp_path, 1).iterdir())
    assert names == ["checksums.json", "state.json", "tensors.safetensors"]
    assert json.loads((folder_of(tmp_path, 1) / "state.json").read_text())["step"] == 1
