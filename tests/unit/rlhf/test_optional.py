import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf import optional
from rlhf.data.scorers import load_scorer
from rlhf.errors import UserError

ROOT = Path(__file__).resolve().parents[3]

STAGES = """
import sys
from rlhf.commands.process import run_command
from rlhf.optional import silent

def work(argv):
    with silent():
        import labeling.constitution.local, labeling.generation.sample, ppo.chat, ppo.train
        import reward.train, sft.train
    from rlhf.model.loading import quiet_transformers
    from tests.support.small import small_backbone
    quiet_transformers()
    small_backbone("policy", "value", precision=argv[0])
    loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    return int(argv[1] == "absent" and not loaded.isdisjoint({"bitsandbytes", "deepspeed", "kernels"}))

sys.exit(run_command(work, sys.argv[1:]))
"""
"""Imports what the stages import, and makes the adapters of PPO."""


def run(program: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    known = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**known, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


def test_stages_that_quantize_nothing_load_nothing_optional_and_print_nothing() -> None:
    done = run(STAGES, "fp32", "absent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_quantized_base_prints_nothing_either() -> None:
    pytest.importorskip("bitsandbytes")
    done = run(STAGES, "nf4", "present")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LOUD = """
import logging, sys, warnings
print("printed")
print("printed as an error", file=sys.stderr)
warnings.warn("warned")
logging.getLogger("bitsandbytes").error("logged")
handler = logging.StreamHandler(sys.stdout)
"""

LOADS = """
import sys
from rlhf import optional
print("before")
with optional.only_needed():
    optional.load("bitsandbytes")
import bitsandbytes, logging
logging.getLogger("later").addHandler(bitsandbytes.handler)
logging.getLogger("later").error("an error afterwards")
logging.getLogger("other").error("a message of ours")
"""


def package(folder: Path, source: str) -> str:
    """A folder in which a package of the name bitsandbytes is found."""
    (folder / "bitsandbytes.py").write_text(source)
    return f"{folder}{os.pathsep}{ROOT}"


def test_what_a_package_prints_while_it_is_imported_is_dropped_and_nothing_later(tmp_path: Path) -> None:
    done = run(LOADS, PYTHONPATH=package(tmp_path, LOUD))
    assert (done.stdout, done.stderr) == ("before\nan error afterwards\n", "a message of ours\n")


def test_an_error_of_the_import_is_seen(tmp_path: Path) -> None:
    broken = f"{LOUD}\nraise OSError('libcuda.so is damaged')"
    done = run(LOADS, PYTHONPATH=package(tmp_path, broken))
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: libcuda.so is damaged\n")
    assert "printed" not in done.stdout + done.stderr.replace(broken, "")


def test_a_package_looks_absent_until_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("bitsandbytes")
    import peft.import_utils

    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    with optional.only_needed():
        assert not peft.import_utils.is_bnb_available()
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("bitsandbytes")
        optional.check_installed("bitsandbytes", where="here", otherwise="stop")
        assert peft.import_utils.is_bnb_available()
    assert importlib.util.find_spec("bitsandbytes") is not None


def test_a_process_under_deepspeed_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with optional.only_needed():
        assert importlib.util.find_spec("deepspeed") is not None


def test_a_package_that_is_needed_and_absent_is_an_error_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    with pytest.raises(UserError, match=r"ZERO=2: this needs deepspeed[\s\S]*pip install[\s\S]*leave it out"):
        optional.check_installed("deepspeed", where="ZERO=2", otherwise="leave it out")


def test_a_scorer_of_the_users_finds_every_package_that_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    (tmp_path / "scorer.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec('bitsandbytes') is not None\n"
        "def score(prompts, responses):\n"
        "    again = importlib.util.find_spec('bitsandbytes') is not None\n"
        "    return [float(found), float(again)]\n"
    )
    with optional.only_needed():
        assert load_scorer(f"{tmp_path / 'scorer.py'}:score")(["a", "b"], ["c", "d"]) == [1.0, 1.0]
