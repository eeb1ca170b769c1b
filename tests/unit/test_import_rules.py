"""Who may import whom, read from the source itself, and what a command may load before it has work to do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rlhf", "sft", "reward", "ppo", "labeling", "plan")
ALLOWED = {
    "rlhf": (),
    "sft": ("rlhf",),
    "reward": ("rlhf",),
    "labeling": ("rlhf",),
    "ppo": ("rlhf", "reward.model"),
    "plan": ("rlhf", "sft.config", "sft.scratch", "reward.config", "ppo.config"),
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
KNOW_DEEPSPEED = (
    "rlhf.training.deepspeed.engine",
    "rlhf.parallel.deepspeed.setup",
    "rlhf.training.deepspeed.state",
    "rlhf.parallel.deepspeed.gather",
)
KNOW_DISTRIBUTED = ("rlhf.parallel.world", "rlhf.parallel.start", "rlhf.launch", *KNOW_DEEPSPEED)


@dataclass(frozen=True)
class Import:
    """One import statement's module, and when it happens."""

    importer: str
    line: int
    target: str
    when: Literal["load", "call", "typing"]

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.target}"


def is_within(module: str, groups: tuple[str, ...]) -> bool:
    return any(module == group or module.startswith(f"{group}.") for group in groups)


def imports_of(importer: str, source: str, *, is_package: bool = False) -> list[Import]:
    """Every module that the source names in an import, or as `torch.distributed`.

    `from a import b` counts as `a.b`, whether `b` is a module or not: it lies within `a` either way.
    """
    found: list[Import] = []

    def visit(node: ast.AST, when: Literal["load", "call", "typing"]) -> None:
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = importer.split(".")
            parents = parts[: len(parts) + is_package - node.level] if node.level else []
            base = [*parents, node.module] if node.module else parents
            targets = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            targets = [name] if name == "torch.distributed" else []
        found.extend(Import(importer, getattr(node, "lineno", 0), target, when) for target in targets)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            when = "call"
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                visit(statement, "typing")
            for statement in node.orelse:
                visit(statement, when)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, when)

    visit(ast.parse(source), "load")
    return found


def read_modules() -> dict[str, list[Import]]:
    modules = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = imports_of(name, path.read_text(), is_package=parts[-1] == "__init__")
    return modules


MODULES = read_modules()


def imports(*when: str) -> Iterator[Import]:
    for found in MODULES.values():
        yield from (each for each in found if not when or each.when in when)


def listed(violations: Iterator[Import]) -> list[str]:
    return [str(each) for each in violations]


# The rules


def test_a_package_imports_only_the_packages_it_may() -> None:
    others = (*PACKAGES, "tests", "benchmarks", "configs")

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


def test_few_modules_know_of_processes() -> None:
    assert (
        listed(
            each
            for each in imports()
            if is_within(each.target, DISTRIBUTED) and each.importer not in KNOW_DISTRIBUTED
        )
        == []
    )


def test_only_tracking_knows_of_wandb() -> None:
    assert (
        listed(
            each
            for each in imports()
            if is_within(each.target, ("wandb",)) and each.importer != "rlhf.runs.tracking"
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
    named = {*MATHEMATICS, *LIGHT, *KNOW_DISTRIBUTED, "rlhf.runs.tracking", "reward.model"}
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
