"""The Makefile, run for real on a stand-in for Python that writes down how it was called."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.settings.recipe import load_recipe
from tests.support.make_environment import make_environment

STAND_IN = """\
import json, os, pathlib, sys, time
here, arguments = pathlib.Path(__file__).parent, sys.argv[1:]
with open(here / "calls.jsonl", "a") as calls:
    print(json.dumps(arguments), file=calls, flush=True)
    time.sleep(0.02)
    print(json.dumps("end"), file=calls)
if arguments[:2] == ["-m", "venv"]:
    python = pathlib.Path(arguments[2], "bin", "python")
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\\nexec "{sys.executable}" "{__file__}" "$@"\\n')
    python.chmod(0o755)
sys.exit(2 if os.environ.get("FAILS", "nothing") in arguments else 0)
"""
STAGES = ["sft", "reward", "ppo"]
LABELING = ["demonstrations", "samples", "rankings", "constitution", "revisions", "preferences"]


class Checkout:
    """A folder with the project's Makefile and nothing else of it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        shutil.copy(root / "Makefile", folder)
        for name in ("pyproject.toml", "constraints.txt"):
            (folder / name).touch()
        (folder / "python.py").write_text(STAND_IN)

    def make(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["make", f"PYTHON={sys.executable} python.py", *arguments],
            cwd=self.folder,
            env={**make_environment(), **environment},
            capture_output=True,
            text=True,
        )

    def calls(self, *arguments: str, **environment: str) -> list[list[str]]:
        """The arguments of every call of Python, none of which began before the last had ended."""
        log = self.folder / "calls.jsonl"
        log.unlink(missing_ok=True)
        done = self.make(*arguments, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        return self.logged()

    def logged(self) -> list[list[str]]:
        log = self.folder / "calls.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        assert all(line == "end" for line in lines[1::2])
        return [line for line in lines if line != "end"]

    def installs(self, *arguments: str) -> bool:
        return any(call[:3] == ["-m", "pip", "install"] for call in self.calls("install", *arguments))


@pytest.fixture
def checkout(tmp_path: Path, root: Path) -> Checkout:
    return Checkout(tmp_path, root)


def phony_targets(root: Path) -> set[str]:
    lines = re.findall(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), flags=re.MULTILINE)
    return set(" ".join(lines).split())


# Help


def test_help_lists_every_target(root: Path, checkout: Checkout) -> None:
    targets, _, _ = checkout.make("help").stdout.partition("Variables")
    assert set(re.findall(r"^  ([a-z-]+) ", targets, flags=re.MULTILINE)) == phony_targets(root)


def test_every_target_is_phony(root: Path) -> None:
    rules = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(rules) == phony_targets(root)


def test_help_lists_every_variable_that_may_be_set(root: Path, checkout: Checkout) -> None:
    _, _, variables = checkout.make("help").stdout.partition("Variables")
    listed = set(re.findall(r"^ +([A-Z_]+)", variables, flags=re.MULTILINE))
    assert listed == set(re.findall(r"^([A-Z_]+) \??=", (root / "Makefile").read_text(), flags=re.MULTILINE))


def test_make_alone_is_help(checkout: Checkout) -> None:
    assert checkout.make().stdout == checkout.make("help").stdout != ""


# Stages


@pytest.mark.parametrize("jobs", [[], ["-j4"]], ids=["", "-j4"])
@pytest.mark.parametrize("venv", ["VENV=none", "VENV="])
def test_stages_run_one_after_the_other_in_the_order_given(
    checkout: Checkout, jobs: list[str], venv: str
) -> None:
    assert checkout.calls(*jobs, *STAGES, venv) == [
        ["-m", stage, "--config", "configs/tiny/recipe.yaml"] for stage in STAGES
    ]


def test_a_stage_runs_although_its_folder_exists(checkout: Checkout) -> None:
    (checkout.folder / "sft").mkdir()
    assert len(checkout.calls("sft", "VENV=none")) == 1


def test_nothing_runs_after_a_stage_that_fails(checkout: Checkout) -> None:
    done = checkout.make(*STAGES, "VENV=none", FAILS="reward")
    assert done.returncode == 2
    assert [call[1] for call in checkout.logged()] == ["sft", "reward"]


def test_a_stage_speaks_and_make_does_not(checkout: Checkout) -> None:
    done = checkout.make(*STAGES, "constitution", "VENV=none")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_signal_to_make_reaches_the_stage_and_make_waits_for_it(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.folder / "python.py").write_text(
        "import pathlib, signal, sys, time\n"
        "if sys.argv[2:3] == ['ppo']:\n"
        "    def save(*_):\n"
        "        time.sleep(0.3)\n"
        "        print('saved', flush=True)\n"
        "        sys.exit(75)\n"
        "    signal.signal(signal.SIGTERM, save)\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(60)\n"
    )
    # An unquoted bracket in a setting lets make put a shell in between.
    command = [
        "make",
        "ppo",
        "VENV=none",
        f"PYTHON={sys.executable} python.py",
        "SET=ppo.evaluation.best_of=[2,4]",
    ]
    environment = make_environment()
    with subprocess.Popen(
        command, cwd=checkout.folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as make:
        assert make.stdout is not None
        assert any(line == "at work\n" for line in make.stdout)
        make.terminate()
        rest = make.stdout.read()
    assert "saved" in rest
    assert make.returncode != 0


def test_variables_arrive_as_settings_whatever_is_in_them(checkout: Checkout, tmp_path: Path) -> None:
    model = """my  models/it's "new" \\ #1: {a}; echo"""
    config = tmp_path / "my recipe.yaml"
    config.write_text("model: {scratch: {}}\n")
    calls = checkout.calls(
        "ppo",
        "VENV=none",
        f"CONFIG={config}",
        "RUN=7",
        "SEED=3",
        f"MODEL={model}",
        "SET=tracking.wandb=off 'tracking.project=two words'",
        "CLEAN=1",
    )
    [[_, stage, flag, path, *overrides, clean]] = calls
    assert (stage, flag, path, clean) == ("ppo", "--config", str(config), "--clean")
    recipe = load_recipe(path, overrides)
    assert (recipe.run.name, recipe.run.seed) == ("7", 3)
    assert (recipe.model.path, recipe.model.scratch) == (model, None)
    assert (recipe.tracking.wandb, recipe.tracking.project) == ("off", "two words")


def test_what_is_set_by_hand_comes_last(checkout: Checkout) -> None:
    [call] = checkout.calls("sft", "VENV=none", "RUN=a", "SET=run.name=b")
    assert call[-2:] == ['run.name="a"', "run.name=b"]


def test_clean_is_for_what_a_run_makes_and_can_be_switched_off(checkout: Checkout) -> None:
    makers = checkout.calls(*STAGES, *LABELING, "VENV=none", "CLEAN=1")
    assert [call[-1] for call in makers] == ["--clean"] * len(STAGES + LABELING)
    assert "--clean" not in checkout.calls("sft", "VENV=none", "CLEAN=0")[0]
    assert "--clean" not in checkout.calls("chat", "VENV=none", "CLEAN=1")[0]


def test_variables_of_the_environment_change_nothing_by_accident(checkout: Checkout) -> None:
    plain = checkout.calls("sft", "VENV=none")
    assert (
        checkout.calls("sft", "VENV=none", MODEL="m", RUN="r", SEED="1", SET="a=b", CLEAN="1", CONFIG="c")
        == plain
    )


def test_the_virtual_environment_can_be_switched_off_in_the_environment(checkout: Checkout) -> None:
    assert checkout.calls("sft", VENV="none") == checkout.calls("sft", "VENV=none")


@pytest.mark.parametrize(
    ("goal", "modules"),
    [
        ("stories", ["demonstrations", "sft", "samples", "rankings", "reward", "ppo"]),
        ("hh", ["sft", "reward", "ppo"]),
    ],
)
def test_a_recipe_goal_runs_its_stages_in_order_on_its_recipe(
    checkout: Checkout, goal: str, modules: list[str]
) -> None:
    def commands(config: str) -> list[list[str]]:
        names = [["labeling", name] if name in LABELING else [name] for name in modules]
        return [["-m", *name, "--config", config] for name in names]

    assert checkout.calls(goal, "-j4", "VENV=none") == commands(f"configs/{goal}/recipe.yaml")
    assert checkout.calls(goal, "VENV=none", "CONFIG=mine.yaml") == commands("mine.yaml")


def test_a_plan_is_told_of_the_devices_and_the_recipe(checkout: Checkout) -> None:
    assert checkout.calls("plan", "VENV=none") == [["-m", "plan", "--config", "configs/tiny/recipe.yaml"]]
    devices = ["GPUS=8", "ZERO=2", "MEMORY=80", "TOKENS=1024"]
    [call] = checkout.calls("plan", "VENV=none", "CONFIG=mine.yaml", "SET=model.precision=bf16", *devices)
    assert call[2:5] == ["--config", "mine.yaml", "model.precision=bf16"]
    assert call[5:] == ["--gpus", "8", "--zero", "2", "--memory", "80", "--tokens", "1024"]


@pytest.mark.parametrize(("labels", "file"), [("constitution", "rankings"), ("both", "mixed")])
def test_labels_says_whose_labels_the_stages_read(
    checkout: Checkout, tmp_path: Path, labels: str, file: str
) -> None:
    config = tmp_path / "recipe.yaml"
    sources = "demonstrations: [{path: a}, {path: b}]"
    config.write_text(f"model: {{scratch: {{}}}}\nsft: {{{sources}}}\nreward: {{rankings: [{{path: c}}]}}\n")
    calls = checkout.calls(
        "constitution", "sft", "reward", "VENV=none", f"CONFIG={config}", f"LABELS={labels}"
    )
    for call in calls:
        [path, *overrides] = call[call.index("--config") + 1 :]
        recipe = load_recipe(path, overrides).resolved
        assert [source["path"] for source in recipe["sft"]["demonstrations"]] == [
            "{run}/revisions/demonstrations.jsonl"
        ]
        assert [source["path"] for source in recipe["reward"]["rankings"]] == [
            f"{{run}}/preferences/{file}.jsonl"
        ]


def test_labels_are_peoples_unless_it_is_said_otherwise(checkout: Checkout) -> None:
    assert checkout.calls("sft", "VENV=none", "LABELS=people") == checkout.calls("sft", "VENV=none")
    done = checkout.make("sft", "VENV=none", "LABELS=robots")
    assert done.returncode == 2
    assert "LABELS is people, constitution or both, not robots" in done.stderr


def test_label_says_which_project_and_who(checkout: Checkout) -> None:
    [call] = checkout.calls("label", "VENV=none", "PROJECT=it's here", "LABELER=Ann B.")
    assert call == ["-m", "labeling", "rank", "--project", "it's here", "--labeler", "Ann B."]
    [call] = checkout.calls("label", "VENV=none")
    assert call[:4] == ["-m", "labeling", "rank", "--project"]
    assert call[5] == "--labeler"
    assert call[6]


def test_check_lints_before_it_tests(checkout: Checkout) -> None:
    assert [call[1] for call in checkout.calls("check", "VENV=none")] == ["ruff", "ruff", "mypy", "pytest"]


def test_pytest_gets_what_tests_says(checkout: Checkout) -> None:
    [call] = checkout.calls("test", "VENV=none", "TESTS=tests/unit -k 'a or b'")
    assert call[:2] == ["-m", "pytest"]
    assert call[-3:] == ["tests/unit", "-k", "a or b"]


def test_tests_run_in_as_many_processes_as_jobs_says(checkout: Checkout) -> None:
    [call] = checkout.calls("test", "VENV=none", "JOBS=3")
    assert call[call.index("-n") + 1] == "3"


# The virtual environment


def test_the_first_goal_installs_the_pinned_versions_and_then_runs_in_them(checkout: Checkout) -> None:
    _, venv, install, stage = checkout.calls("sft")
    assert venv == ["-m", "venv", ".venv"]
    assert install[:3] == ["-m", "pip", "install"]
    assert ("-c", "constraints.txt") in itertools.pairwise(install)
    assert stage == ["-m", "sft", "--config", "configs/tiny/recipe.yaml"]
    assert checkout.calls("reward", "ppo") == [
        ["-m", stage, "--config", "configs/tiny/recipe.yaml"] for stage in ("reward", "ppo")
    ]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_new_requirements_are_installed(checkout: Checkout, name: str) -> None:
    assert checkout.installs()
    stamp = (checkout.folder / ".venv" / ".triptych-installed").stat()
    os.utime(checkout.folder / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1_000_000))
    assert checkout.installs()
    (checkout.folder / ".venv" / ".triptych-installed").touch()
    assert not checkout.installs()


@pytest.mark.parametrize("broken", ["venv", "pip"])
def test_a_failed_installation_is_done_again(checkout: Checkout, broken: str) -> None:
    assert checkout.make("sft", FAILS=broken).returncode == 2
    assert "sft" not in [call[1] for call in checkout.logged()]
    assert checkout.installs()


def test_an_environment_of_ones_own_is_left_alone(checkout: Checkout) -> None:
    assert checkout.calls("install", "VENV=none") == []
    assert not (checkout.folder / ".venv").exists()


def test_the_environment_may_lie_elsewhere(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.installs(f"VENV={tmp_path / 'elsewhere'}")
    assert not checkout.installs(f"VENV={tmp_path / 'elsewhere'}")


def test_a_python_that_is_too_old_is_refused_with_the_way_out(checkout: Checkout) -> None:
    # The version check is the only call with -c; the stand-in fails it as an old Python would.
    done = checkout.make("sft", FAILS="-c")
    assert done.returncode == 2
    assert "Python 3.11 or later is needed" in done.stderr
    assert "VENV=none" in done.stderr
    assert not (checkout.folder / ".venv").exists()


# Deleting a run


def test_clean_run_deletes_a_run_and_no_other(checkout: Checkout) -> None:
    for run in ("old run", "old"):
        (checkout.folder / "runs" / run / "sft").mkdir(parents=True)
        (checkout.folder / "runs" / run / "sft" / "config.yaml").touch()
    assert checkout.make("clean-run", "RUN=old run").returncode == 0
    assert [folder.name for folder in (checkout.folder / "runs").iterdir()] == ["old"]


@pytest.mark.parametrize("run", ["", ".", "..", "../sft", "a/b", "notes", "nothing"])
def test_clean_run_deletes_nothing_that_is_not_a_run(checkout: Checkout, run: str) -> None:
    (checkout.folder / "runs" / "notes").mkdir(parents=True)
    (checkout.folder / "sft").mkdir()
    (checkout.folder / "sft" / "config.yaml").touch()
    before = sorted(checkout.folder.rglob("*"))
    done = checkout.make("clean-run", f"RUN={run}")
    assert done.returncode == 2
    assert done.stderr.startswith("clean-run: ")
    assert sorted(checkout.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "goals"),
    [
        (["sft", "reward", "ppo"], "sft reward ppo"),
        (["hh"], "sft reward ppo"),
        (["stories"], "demonstrations sft samples rankings reward ppo"),
    ],
)
def test_every_stage_is_told_what_else_is_to_be_made(
    checkout: Checkout, words: list[str], goals: str
) -> None:
    (checkout.folder / "python.py").write_text("import os\nprint(os.environ['TRIPTYCH_GOALS'])\n")
    done = checkout.make(*words, "VENV=none", "MODEL=m")
    assert done.stdout.splitlines() == [goals] * len(goals.split())
