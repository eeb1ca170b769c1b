"""Who may import whom, read from the source itself, and what a command may load before it has work to do."""

import subprocess
import sys
from collections.abc import Iterator

import networkx
import pytest

from tests import architecture
from tests.support.imports import PACKAGES, ROOT, Import, imports_of, is_within, module_graph, read_modules

ALLOWED = {
    "rlhf": (),
    "sft": ("rlhf",),
    "reward": ("rlhf",),
    "labeling": ("rlhf",),
    "ppo": ("rlhf", "reward.model"),
    "plan": ("rlhf", "sft.config", "sft.scratch", "reward.config", "ppo.config"),
    "benchmarks": ("rlhf", "reward", "ppo", "labeling", "plan"),
}
"""Package → what it may import of the project beside itself."""
MATHEMATICS = ("rlhf.statistics.masked", "ppo.advantages", "ppo.kl", "ppo.losses", "reward.loss")
"""They import torch and one another, and nothing else that must be installed."""
LIGHT = ("rlhf.errors", "rlhf.settings.recipe", "rlhf.runs.stage", "rlhf.data.records", "rlhf.data.sources")
"""Like every `config` and `__main__`, these load no heavy library until a function needs it."""
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "wandb")
OPTIONAL = ("deepspeed", "bitsandbytes", "flash_attn", "vaderSentiment", "wandb")
"""Imported where they are used, so that everything else runs without them."""
DISTRIBUTED = ("accelerate", "deepspeed", "torch.distributed")
KNOW_DISTRIBUTED = ("rlhf.parallel", "rlhf.training.deepspeed", "rlhf.launch")
"""What ranks are made of is known in these rooms and nowhere else."""


MODULES = read_modules()


def imports(*when: str) -> Iterator[Import]:
    for found in MODULES.values():
        yield from (each for each in found if not when or each.when in when)


def listed(violations: Iterator[Import]) -> list[str]:
    return [str(each) for each in violations]


# The rules


def test_a_package_imports_only_the_packages_it_may() -> None:
    others = (*PACKAGES, "tests", "configs")

    def forbidden(each: Import) -> bool:
        package = each.importer.partition(".")[0]
        return is_within(each.target, others) and not is_within(each.target, (package, *ALLOWED[package]))

    assert listed(each for each in imports() if forbidden(each)) == []


def test_mathematics_imports_torch_alone() -> None:
    allowed = ("torch", *sys.stdlib_module_names, *MATHEMATICS)
    assert (
        listed(
            each for each in imports() if each.importer in MATHEMATICS and not is_within(each.target, allowed)
        )
        == []
    )


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or over others."""
    groups = networkx.strongly_connected_components(networkx.DiGraph(graph))
    return [sorted(group) for group in groups if len(group) > 1]


def test_no_module_imports_itself_over_others() -> None:
    assert circles(module_graph(MODULES)) == []


def test_a_circle_is_found_wherever_its_imports_stand() -> None:
    planted = {
        "rlhf.a": imports_of("rlhf.a", "def f():\n  from rlhf.b import g"),
        "rlhf.b": imports_of("rlhf.b", "if TYPE_CHECKING:\n  from rlhf import c"),
        "rlhf.c": imports_of("rlhf.c", "import rlhf.a"),
        "rlhf.d": imports_of("rlhf.d", "import rlhf.a"),
    }
    assert circles(module_graph(planted)) == [["rlhf.a", "rlhf.b", "rlhf.c"]]


def test_a_room_imports_only_rooms_on_lower_floors() -> None:
    upward = [
        f"{room} → {target}"
        for room, targets in architecture.room_graph().items()
        for target in sorted(targets)
        if architecture.floor_of(target) >= architecture.floor_of(room)
    ]
    assert upward == []


def test_every_module_is_in_a_room() -> None:
    outside = {name for name in MODULES if architecture.room_of(name) is None}
    assert outside == {"rlhf"}


def test_the_picture_in_the_docs_is_that_of_the_imports() -> None:
    page = architecture.PAGE.read_text(encoding="utf-8")
    assert architecture.drawing() in page, "run: python -m tests.architecture"


def test_few_modules_know_of_processes() -> None:
    assert (
        listed(
            each
            for each in imports()
            if is_within(each.target, DISTRIBUTED) and not is_within(each.importer, KNOW_DISTRIBUTED)
        )
        == []
    )


def test_one_module_knows_of_wandb() -> None:
    assert (
        listed(
            each
            for each in imports()
            if is_within(each.target, ("wandb",)) and each.importer != "rlhf.runs.wandb_run"
        )
        == []
    )


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    assert listed(each for each in imports("load") if is_within(each.target, OPTIONAL)) == []


def heavy_chain(module: str, seen: set[str]) -> list[str] | None:
    """The imports that lead from loading `module` to a heavy library, if any do."""
    seen.add(module)
    for each in MODULES.get(module, []):
        if each.when != "load":
            continue
        if is_within(each.target, HEAVY):
            return [str(each)]
        parts = each.target.split(".")
        for length in range(1, len(parts) + 1):
            loaded = ".".join(parts[:length])
            if loaded in MODULES and loaded not in seen and (rest := heavy_chain(loaded, seen)):
                return [str(each), *rest]
    return None


def test_light_modules_load_nothing_heavy() -> None:
    light = [name for name in MODULES if name in LIGHT or name.endswith((".config", ".__main__"))]
    assert {name: chain for name in light if (chain := heavy_chain(name, set()))} == {}


@pytest.mark.parametrize("command", ["sft", "reward", "ppo", "ppo.chat", "labeling", "plan"])
def test_help_answers_without_loading_anything_heavy(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    assert (done.returncode, [line for line in lines if line not in times]) == (0, [])
    assert "--config" in done.stdout
    assert "argparse" in loaded
    assert loaded.isdisjoint(HEAVY)


# The reader of imports itself


def test_the_modules_that_the_rules_name_exist() -> None:
    named = {*MATHEMATICS, *LIGHT, *KNOW_DISTRIBUTED, "rlhf.runs.wandb_run", "reward.model"}
    assert named <= set(MODULES)


@pytest.mark.parametrize(
    ("source", "target", "when"),
    [
        ("import torch.distributed as dist", "torch.distributed", "load"),
        ("from torch import distributed", "torch.distributed", "load"),
        ("import torch\ntorch.distributed.barrier()", "torch.distributed", "load"),
        ("try:\n  import wandb\nexcept ImportError: ...", "wandb", "load"),
        ("class A:\n  import wandb", "wandb", "load"),
        ("def f():\n  import wandb", "wandb", "call"),
        ("async def f():\n  if True:\n    import wandb", "wandb", "call"),
        ("if TYPE_CHECKING:\n  import wandb", "wandb", "typing"),
        ("if typing.TYPE_CHECKING: ...\nelse:\n  import wandb", "wandb", "load"),
        ("from reward import model", "reward.model", "load"),
        ("from .model import load", "ppo.model.load", "load"),
        ("from . import model", "ppo.model", "load"),
        ("from ..reward import model", "reward.model", "load"),
    ],
)
def test_an_import_is_found_wherever_it_stands(source: str, target: str, when: str) -> None:
    assert (target, when) in {(each.target, each.when) for each in imports_of("ppo.train", source)}


def test_a_package_counts_dots_from_itself() -> None:
    source = "from .model import load\nfrom .. import top"
    assert [each.target for each in imports_of("ppo.inner", source, is_package=True)] == [
        "ppo.inner.model.load",
        "ppo.top",
    ]
