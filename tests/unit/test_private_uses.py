"""Every use of a library's inside, in one table: an update of the library may take it away without a word."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.private_uses import Project, Use

ROOT = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """One name in one file."""

    file: str
    name: str
    library: str
    why: str
    """What is needed that nothing public gives."""
    breaks: str
    """What no longer works if the name goes."""


TABLE = [
    Row(
        "labeling/browser/process.py",
        "_build_environment",
        "textual-serve",
        "the environment of an application's process is made nowhere else",
        "labeling in a browser does not start",
    ),
    Row(
        "labeling/browser/process.py",
        "_open_app_process",
        "textual-serve",
        "it would start a shell with a command line; we start a program with arguments",
        "labeling in a browser starts a shell, or nothing",
    ),
    Row(
        "labeling/browser/process.py",
        "_process",
        "textual-serve",
        "whoever starts the process has to tell the service",
        "the service neither talks to the application nor ends it",
    ),
    Row(
        "labeling/browser/process.py",
        "_stdin",
        "textual-serve",
        "as `_process`",
        "keys pressed in the browser do not arrive",
    ),
    Row(
        "labeling/terminal/app.py",
        "_running",
        "textual",
        "messages to an application that has ended are lost with an error",
        "a ranking that ends with the program may show an error",
    ),
    Row(
        "labeling/terminal/bars.py",
        "_on_paste",
        "textual",
        "pasted text is to be made harmless before the input field takes it",
        "control characters can be pasted into an answer",
    ),
    Row(
        "plan/ledger.py",
        "_cdata",
        "torch",
        "a storage has no other identity that outlives its Python object",
        "memory is counted twice",
    ),
    Row(
        "plan/ledger.py",
        "torch.utils._python_dispatch.TorchDispatchMode",
        "torch",
        "the only way to see every tensor that an operation makes, in backward passes too",
        "memory cannot be planned",
    ),
    Row(
        "plan/model.py",
        "torch._subclasses.fake_tensor.FakeTensorMode",
        "torch",
        "tensors that have shapes and no memory, and say that they are on any device",
        "memory cannot be planned",
    ),
    Row(
        "plan/stand_ins.py",
        "torch._subclasses.fake_tensor.FakeTensorMode",
        "torch",
        "as in plan/model.py: the mode's type",
        "memory cannot be planned",
    ),
    Row(
        "rlhf/model/cached.py",
        "_attn_implementation",
        "transformers",
        "nothing public says which attention a model has",
        "packed rows do not get the mask that they need",
    ),
    Row(
        "rlhf/model/layers/llama.py",
        "_active_adapter",
        "peft",
        "the fused layer reads the adapter that the backbone has set",
        "a role computes with another role's adapter",
    ),
    Row(
        "rlhf/model/layers/llama.py",
        "_disable_adapters",
        "peft",
        "as `_active_adapter`",
        "the reference computes with an adapter",
    ),
    Row(
        "rlhf/model/layers/llama.py",
        "_forward_hooks",
        "torch",
        "a fused layer calls none of its modules, so that somebody's hooks would not run",
        "hooks are passed over in silence",
    ),
    Row(
        "rlhf/model/layers/llama.py",
        "_forward_pre_hooks",
        "torch",
        "as `_forward_hooks`",
        "hooks are passed over in silence",
    ),
    Row(
        "rlhf/model/layers/lora.py",
        "_active_adapter",
        "peft",
        "the layer's forward reads the adapter that the backbone has set",
        "a role computes with another role's adapter",
    ),
    Row(
        "rlhf/model/layers/lora.py",
        "_disable_adapters",
        "peft",
        "as `_active_adapter`",
        "the reference computes with an adapter",
    ),
    Row(
        "rlhf/model/layers/lora.py",
        "_forward_pre_hooks",
        "torch",
        "under ZeRO-3 a hook gathers the weight, and only when the module is called",
        "layers compute with weights that are not there",
    ),
    Row(
        "rlhf/model/layers/router.py",
        "_gradient_checkpointing_func",
        "transformers",
        "the model's own switch demands gradients of frozen embeddings, and forgets the role",
        "recomputation runs in another role: gradients are silently wrong",
    ),
    Row(
        "rlhf/model/layers/varlen.py",
        "_softmax_backward_data",
        "torch",
        "softmax's gradient in one operation, as torch's own backward pass takes it",
        "packed attention has no backward pass",
    ),
    Row(
        "rlhf/model/logits.py",
        "_forward_pre_hooks",
        "torch",
        "under ZeRO-3 a hook gathers the head's weight, and only when the module is called",
        "logits are computed with a weight that is not there",
    ),
    Row(
        "rlhf/model/roles.py",
        "_active_adapter",
        "peft",
        "`set_adapter` also changes requires_grad, which DeepSpeed's groups must not see change",
        "a role computes with another role's adapter",
    ),
    Row(
        "rlhf/model/roles.py",
        "_disable_adapters",
        "peft",
        "as `_active_adapter`: `disable_adapters` changes requires_grad",
        "the reference computes with an adapter",
    ),
    Row(
        "rlhf/parallel/deepspeed/gather.py",
        "_invalidate_trace",
        "deepspeed",
        "ZeRO-3 has recorded in which order modules run, and the hooks that recorded it are taken off",
        "passes after a gathering fetch the wrong weights ahead",
    ),
    Row(
        "rlhf/parallel/deepspeed/gather.py",
        "_register_deepspeed_module",
        "deepspeed",
        "nothing public puts ZeRO-3's hooks back",
        "training after the first sampling runs on weights that are not there",
    ),
    Row(
        "rlhf/parallel/deepspeed/sharded.py",
        "_parameters",
        "torch",
        "a parameter is put in another's place",
        "a model trained under ZeRO-3 cannot be published",
    ),
    Row(
        "rlhf/training/deepspeed/trainer.py",
        "_z3_optimizer",
        "deepspeed",
        "after its end an engine stays alive in the parameters it has trained, with all its memory",
        "SFT under ZeRO-3 needs the optimizer's memory until it has published",
    ),
]
"""Sorted by file and name. `python -m tests.support.private_uses` lists what there is."""


def test_every_private_use_is_in_the_table_and_every_row_is_in_use() -> None:
    found = {(use.file, use.name): use for use in Project.read(ROOT).uses()}
    known = {(row.file, row.name) for row in TABLE}
    missing = [found[key] for key in sorted(found.keys() - known)]
    assert not missing, "give a reason for each, or find a public way:\n" + "\n".join(map(as_row, missing))
    assert not known - found.keys(), "these are gone: delete their rows"


def as_row(use: Use) -> str:
    return f'    Row("{use.file}", "{use.name}", "{use.library or "?"}", "({use.kind}) why", "what breaks"),'


def test_the_table_is_sorted_and_complete() -> None:
    assert sorted(TABLE, key=lambda row: row[:2]) == TABLE
    assert len({row[:2] for row in TABLE}) == len(TABLE)
    assert all(all(row) for row in TABLE)


def names_of(source: str, **others: str) -> set[tuple[str, str]]:
    """(Kind, name) of each use in a file of this source; `others` are other files of the project."""
    sources = {f"sft/{name}.py": text for name, text in others.items()} | {"sft/planted.py": source}
    return {(use.kind, use.name) for use in Project(sources).uses() if use.file == "sft/planted.py"}


SUBCLASS = "from torch.utils.data import DataLoader\nclass Loader(DataLoader):\n    "


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("print(model._secret)", "attribute", "_secret"),
        ("model._secret = 1", "attribute", "_secret"),
        ("model.part._secret()", "attribute", "_secret"),
        ("import torch\ntorch._secret(1)", "attribute", "_secret"),
        ("from torch import nn\nnn.Module._secret(1)", "attribute", "_secret"),
        ("def f():\n    import torch._C", "import", "torch._C"),
        ("import torch._C as c", "import", "torch._C"),
        ("from torch import _C", "import", "torch._C"),
        ("from torch._C import Generator", "import", "torch._C.Generator"),
        (SUBCLASS + "def _get_iterator(self): ...", "override", "_get_iterator"),
        (SUBCLASS + "_iterator = None", "override", "_iterator"),
        (SUBCLASS + "def f(self): return self._get_iterator()", "attribute", "_get_iterator"),
        (SUBCLASS + "def f(self): self._iterator = None", "attribute", "_iterator"),
        (SUBCLASS + "def f(self): return super()._get_iterator()", "attribute", "_get_iterator"),
        ("setattr(model, '_secret', 1)", "literal", "_secret"),
        ("getattr(model, '_secret')", "literal", "_secret"),
        ("vars(model).pop('_secret')", "literal", "_secret"),
        ("for name in ('_secret',):\n    delattr(model, name)", "literal", "_secret"),
        ("model.save(_secret=True)", "keyword", "_secret"),
    ],
)
def test_a_planted_use_is_found(source: str, kind: str, name: str) -> None:
    assert names_of(source) == {(kind, name)}


def test_a_use_through_a_class_of_the_project_with_a_library_base_is_found() -> None:
    source = "from sft.other import Loader\nclass More(Loader):\n    def _get_iterator(self): ..."
    assert names_of(source, other=SUBCLASS + "...") == {("override", "_get_iterator")}


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def _own(self): ...\ndef f(a): return a._own()",
        "class A:\n    def __init__(self): self._own = 1\ndef f(a): return a._own",
        "_own = 1\nimport sft.planted\nsft.planted._own = 2",
        SUBCLASS + "def _own(self): return self._own()",
        "model.__class__.__dict__['__doc__']",
        "print(f'{name}_seconds')",
        "import os\nos._exit(1)",
        "def f(_own): ...\nf(_own=1)",
    ],
)
def test_what_is_the_projects_own_or_documented_is_no_use(source: str) -> None:
    assert names_of(source) == set()
