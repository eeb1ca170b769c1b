import errno
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.errors import UserError
from rlhf.runs import checkpoints
from rlhf.runs.checkpoints import Best, Checkpoint

ROOT = Path(__file__).resolve().parents[4]


def folder_of(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}"


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def save(folder: Path, step: int, *, keep: int = 2, size: int = 4) -> None:
    checkpoints.save(folder, step, {"w": torch.full((size,), float(step))}, {"step": step}, keep=keep)


def found_step(folder: Path) -> int | None:
    """The newest whole checkpoint's step, after a look at its content."""
    found = checkpoints.latest(folder)
    if found is None:
        return None
    assert (found.tensors["w"] == found.step).all()
    assert found.state == {"step": found.step}
    return found.step


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().flatten().view(torch.uint8).tolist() if tensor.numel() else []


def assert_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert bits(found[name]) == bits(tensor), name


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, torch\nfrom rlhf.runs import checkpoints\n{code}",
            *map(str, arguments),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# To the bit


def test_every_kind_of_tensor_comes_back_to_the_bit(tmp_path: Path) -> None:
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
        "strange": torch.tensor([0x7FC00001, -0x80000000, 0x7F800000, 1], dtype=torch.int32).view(
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
    state = {"coefficient": 0.1 + 0.2, "best": float("-inf"), "names": ["é", None], "nested": {"on": True}}
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


def test_training_goes_on_to_the_bit_whatever_the_order_of_the_parameters(tmp_path: Path) -> None:
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


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
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


# What is kept


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 100):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step-000010", "step-000100"]
    assert found_step(tmp_path) == 100


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert checkpoints.latest(tmp_path) is None


def test_saving_a_step_again_replaces_it_and_those_after_it(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    checkpoints.save(tmp_path, 2, {"w": torch.tensor(7.0)}, {}, keep=3)
    assert steps(tmp_path) == ["step-000001", "step-000002"]
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.tensors["w"] == 7


def test_a_damaged_checkpoint_of_a_later_step_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    for step in (4, 8):
        save(tmp_path, step)
    (folder_of(tmp_path, 8) / "state.json").write_text("")
    save(tmp_path, 6, keep=1)
    assert found_step(tmp_path) == 6


def test_the_best_is_kept_with_the_newest(tmp_path: Path) -> None:
    best = Best()
    for step, figure in enumerate([0.1, 0.9, 0.3, float("nan"), 0.9]):
        best.offer(step, figure)
        tensors = {"w": torch.full((4,), float(step))}
        checkpoints.save(tmp_path, step, tensors, {"step": step}, keep=2, best=best.step)
    assert best == Best(step=1, figure=0.9)  # the first of equals
    assert steps(tmp_path) == ["step-000001", "step-000003", "step-000004"]
    found = checkpoints.load(tmp_path, 1)
    assert found is not None
    assert (found.tensors["w"] == 1).all()
    cut(folder_of(tmp_path, 1) / "tensors.safetensors")
    assert checkpoints.load(tmp_path, 1) is None
    assert checkpoints.load(tmp_path, 7) is None


def test_a_copy_in_memory_stays_as_it_was() -> None:
    tensor, state = torch.zeros(3), {"step": 1}
    copy = Checkpoint.of(1, {"w": tensor, "row": tensor[1:]}, state)
    tensor += 1
    state["step"] = 2
    assert copy.tensors["w"].sum() == copy.tensors["row"].sum() == 0
    assert copy.state == {"step": 1}


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(folder_of(tmp_path, 2) / name)
    assert found_step(tmp_path) == 1
    assert "step-000002" in capsys.readouterr().err


def test_where_all_are_damaged_none_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        cut(folder_of(tmp_path, step) / "tensors.safetensors")
    assert checkpoints.latest(tmp_path) is None
    assert capsys.readouterr().err.count("warning") == 2


def test_a_checkpoint_under_another_steps_name_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder_of(tmp_path, 1).rename(folder_of(tmp_path, 9))
    assert checkpoints.latest(tmp_path) is None


def test_what_is_valid_json_of_the_wrong_shape_is_damage_too(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for text in ("[]", "null", "{}", '{"tensors.safetensors": 1, "state.json": 2}'):
        (folder_of(tmp_path, 1) / "checksums.json").write_text(text)
        assert checkpoints.latest(tmp_path) is None


def test_leftovers_are_never_read_and_a_replaced_checkpoint_is_put_back(tmp_path: Path) -> None:
    save(tmp_path, 1)
    root = tmp_path / "checkpoints"
    folder_of(tmp_path, 1).rename(root / "step-000001.old.partial")  # died between the two renames
    (root / "step-000001.new.partial").mkdir()
    (root / "step-000007.partial").mkdir()  # died while deleting
    assert found_step(tmp_path) == 1
    assert steps(tmp_path) == ["step-000001"]


def test_a_process_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = """
import os, signal, time
from pathlib import Path
from tests.unit.rlhf.runs.test_checkpoints import found_step
folder, reached = Path(sys.argv[1]), 0
for kill in range(20):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for step in range(reached, 10**6):
            tensors = {"w": torch.full((100_000,), float(step))}
            checkpoints.save(folder, step, tensors, {"step": step}, keep=1)
            os.write(writing, step.to_bytes(4))
    os.close(writing)
    saved = os.read(reading, 4)  # one is on disk; the blow falls somewhere in the next
    time.sleep(0.001 * kill)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 4):
        saved = more
    found = found_step(folder)
    assert found is not None and found >= int.from_bytes(saved), (found, saved)
    reached = found
"""
    process = python(code, tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "warning" not in errors


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path) -> None:
    code = """
import resource
from pathlib import Path
from rlhf.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(Path(sys.argv[1]), 3, {"w": torch.zeros(100_000)}, {})
except UserError as error:
    print(error)
    sys.exit(2)
"""
    save(tmp_path, 1)
    save(tmp_path, 2)
    process = python(code, tmp_path)
    printed, problems = process.communicate(timeout=120)
    assert process.returncode == 2, problems
    assert "cannot store the results (File too large)" in printed
    assert steps(tmp_path) == ["step-000001", "step-000002"]
    assert found_step(tmp_path) == 2


def test_a_checkpoint_whose_replacement_fails_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "step-000001.new.partial":
            raise OSError(errno.ENOSPC, "full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="cannot store the results"):
        save(tmp_path, 1)
    assert found_step(tmp_path) == 1


def test_state_that_is_no_json_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(TypeError):
        checkpoints.save(tmp_path, 2, {}, {"tensor": torch.zeros(1)})
    assert steps(tmp_path) == ["step-000001"]
    assert found_step(tmp_path) == 1


def test_no_pickle_is_written(tmp_path: Path) -> None:
    model, optimizer = small_model(seed=0)
    train(model, optimizer, range(1))
    checkpoints.save(tmp_path, 1, checkpoints.optimizer_tensors(optimizer, named(model)), {})
    names = sorted(path.name for path in folder_of(tmp_path, 1).iterdir())
    assert names == ["checksums.json", "state.json", "tensors.safetensors"]
    assert json.loads((folder_of(tmp_path, 1) / "state.json").read_text())["step"] == 1


def test_a_folder_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    code = """
import os
from pathlib import Path
from rlhf.errors import UserError
if os.geteuid() == 0:
    os.setuid(65534)  # nothing is forbidden to root
try:
    checkpoints.save(Path(sys.argv[1]), 2, {}, {})
except UserError as error:
    print(error)
    sys.exit(2)
"""
    save(tmp_path, 1)
    (tmp_path / "checkpoints").chmod(0o500)
    process = python(code, tmp_path)
    printed, problems = process.communicate(timeout=120)
    (tmp_path / "checkpoints").chmod(0o700)
    assert process.returncode == 2, problems
    assert "cannot store the results (Permission denied)" in printed
    assert found_step(tmp_path) == 1
