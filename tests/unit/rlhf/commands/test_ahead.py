"""What a later stage needs is looked at before the first one starts, without torch and without running it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.commands.ahead import check_ahead
from rlhf.errors import UserError
from rlhf.settings.recipe import load_recipe
from rlhf.settings.yaml_files import write_yaml
from tests.support.make_environment import make_environment

GOALS = "TRIPTYCH_GOALS"
SCORER = "raise SystemExit('it was run')\ndef score(prompts, responses): ...\n"


def recipe(folder: Path, *overrides: str) -> Any:
    """A recipe of which all that it names is there."""
    (folder / "demonstrations.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    (folder / "rankings.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    (folder / "prompts.jsonl").write_text('{"prompt": "p"}\n')
    (folder / "scorer.py").write_text(SCORER)
    values = {
        "run": {"name": "x", "folder": str(folder / "runs")},
        "model": {"path": "owner/name"},
        "labeling": {
            "samples": {"prompts": [{"path": str(folder / "prompts.jsonl")}]},
            "rankings": {"scorer": f"{folder}/scorer.py:score"},
        },
        "sft": {"demonstrations": [{"path": str(folder / "demonstrations.jsonl")}]},
        "reward": {
            "rankings": [{"path": str(folder / "rankings.jsonl")}],
            "gold": f"{folder}/scorer.py:score",
        },
        "ppo": {
            "prompts": [{"path": str(folder / "prompts.jsonl")}],
            "evaluation": {"gold": f"{folder}/scorer.py:score"},
        },
    }
    write_yaml(folder / "recipe.yaml", values)
    return load_recipe(folder / "recipe.yaml", overrides)


WRONG = [
    ("ppo.prompts.0.path=missing.jsonl", "ppo.prompts.0: missing.jsonl: there is no such file"),
    ("reward.rankings.0.path=missing.csv", "reward.rankings.0: missing.csv: there is no such file"),
    ("ppo.prompts.0.path={folder}/rankings.jsonl", "ppo.prompts.0: {folder}/rankings.jsonl, line 1: "),
    (
        "ppo.reward={folder}/missing.py:score",
        "ppo.reward: scorer {folder}/missing.py:score: there is no such file",
    ),
    ("ppo.reward={folder}/scorer.py:scores", "no function `scores` there"),
    ("ppo.evaluation.gold=missing.module:f", "ppo.evaluation.gold: scorer missing.module:f: No module"),
    ("reward.gold=nothing", "reward.gold: scorer: `nothing` names no function"),
    ("ppo.prompts.0.columns={{promt: q}}", "ppo.prompts.0: `promt` under `columns`"),
    ("reward.rankings.0.templates={{prompt: '{{'}}", "reward.rankings.0: `templates.prompt`"),
]


@pytest.mark.parametrize(("override", "message"), [case for case in WRONG if "line 1" not in case[1]])
def test_what_a_goal_that_follows_needs_is_missed_before_the_first_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setenv(GOALS, "sft reward ppo")
    found = recipe(tmp_path, override.format(folder=tmp_path))
    with pytest.raises(UserError) as caught:
        check_ahead(found, "sft")
    assert message.format(folder=tmp_path) in str(caught.value)
    assert caught.value.fix


def test_the_first_row_of_a_later_stage_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GOALS, "sft reward")
    found = recipe(tmp_path, f"reward.rankings.0.path={tmp_path}/demonstrations.jsonl")
    with pytest.raises(UserError, match=r"demonstrations.jsonl, line 1: the record has no `"):
        check_ahead(found, "sft")


def test_a_stage_alone_checks_scorers_and_columns_but_demands_no_data(tmp_path: Path) -> None:
    check_ahead(recipe(tmp_path, "ppo.prompts.0.path=missing.jsonl"), "sft")
    check_ahead(recipe(tmp_path, "reward.gold=nothing"), "reward")
    for wrong in ("ppo.reward=a.py:b", "ppo.prompts.0.columns={promt: q}"):
        for stage in ("sft", "reward", "samples"):
            with pytest.raises(UserError, match=r"ppo\."):
                check_ahead(recipe(tmp_path, wrong), stage)


@pytest.mark.parametrize(
    ("goals", "stage", "is_made"),
    [
        ("sft samples rankings reward", "sft", True),
        ("samples rankings reward", "samples", True),
        ("sft reward", "sft", False),
        ("sft reward samples rankings", "sft", False),
    ],
)
def test_what_goals_before_it_make_is_not_demanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goals: str, stage: str, is_made: bool
) -> None:
    monkeypatch.setenv(GOALS, goals)
    found = recipe(tmp_path, 'reward.rankings.0.path="{run}/rankings/rankings.jsonl"')
    if is_made:
        check_ahead(found, stage)
    else:
        with pytest.raises(UserError, match=r"reward.rankings.0: .*rankings.jsonl: there is no such file"):
            check_ahead(found, stage)


def test_models_files_and_packages_of_later_stages_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GOALS, "sft preferences")
    feedback = "{{local: {{path: {}}}}}"
    group = "labeling.constitution={{path: {}, feedback: {}, preferences: {{items: {}}}}}"
    there, prompts = str(tmp_path / "recipe.yaml"), str(tmp_path / "prompts.jsonl")
    for path, model, items, message in (
        ("missing.yaml", "owner/name", prompts, "labeling.constitution.path: missing.yaml"),
        (there, "./missing", prompts, "labeling.constitution.feedback.local.path: ./missing"),
        (there, "owner/name", "missing.jsonl", "labeling.constitution.preferences.items: missing.jsonl"),
        (there, "owner/name", prompts, ""),
        (there, "'{run}/sft/model'", "'{run}/sft/x'", ""),
    ):
        found = recipe(tmp_path, group.format(path, feedback.format(model), items))
        if not message:
            check_ahead(found, "sft")
            continue
        with pytest.raises(UserError) as caught:
            check_ahead(found, "sft")
        assert message in str(caught.value)
    monkeypatch.setenv(GOALS, "sft ppo")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="a later stage needs bitsandbytes"):
        check_ahead(recipe(tmp_path, "model.precision=nf4"), "sft")


def test_a_goal_without_settings_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GOALS, "sft demonstrations chat")
    with pytest.raises(UserError, match=r"the recipe has no `labeling.demonstrations`"):
        check_ahead(recipe(tmp_path), "sft")


@pytest.mark.parametrize("override", ["ppo.reward=a.py:b", "ppo.prompts.0.path=missing.jsonl"])
def test_make_fails_before_the_first_stage_starts(root: Path, tmp_path: Path, override: str) -> None:
    config = "tests/integration/micro.yaml"
    goals = ("sft", "reward", "ppo")
    made = subprocess.run(
        [
            *("make", "VENV=none", f"PYTHON={sys.executable} -X importtime", f"CONFIG={config}", *goals),
            f"SET=run.folder={tmp_path} {override}",
        ],
        cwd=root,
        env=make_environment(),
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert "\nppo." in made.stderr
    assert not list(tmp_path.iterdir())
    assert " torch\n" not in made.stderr
