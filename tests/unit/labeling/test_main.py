"""`python -m labeling`: what a user can get wrong, without loading a model."""

from pathlib import Path

import pytest
import yaml

from labeling.__main__ import main
from labeling.config import LabelingSettings
from rlhf.commands.process import run_command
from rlhf.errors import UserError
from rlhf.runs.stage import StageRun
from rlhf.settings.recipe import Recipe, load_recipe

PROMPTS = [{"path": "prompts.jsonl"}]


def write_recipe(folder: Path, **labeling: object) -> list[str]:
    recipe = folder / "recipe.yaml"
    values = {"model": {"scratch": {}}, "run": {"folder": str(folder / "runs")}, "labeling": labeling}
    recipe.write_text(yaml.safe_dump(values))
    return ["--config", str(recipe)]


@pytest.mark.parametrize(
    ("argv", "what", "fix"),
    [
        ([], "no command is given", "demonstrations, samples, rankings"),
        (["--config", "recipe.yaml"], "no command is given", "demonstrations, samples, rankings"),
        (["ranking", "--config", "recipe.yaml"], "unknown command `ranking`", "Did you mean `rankings`?"),
        (["x"], "unknown command `x`", "demonstrations, samples, rankings"),
    ],
)
def test_a_wrong_command_is_answered_with_the_right_ones(argv: list[str], what: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        main(argv)
    assert caught.value.what == what
    assert fix in str(caught.value.fix)


def test_help_names_the_commands_and_how_they_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m labeling COMMAND [-h] --config FILE")
    assert all(f"\n  {command} " in shown for command in ("demonstrations", "samples", "rankings"))


@pytest.mark.parametrize("command", ["demonstrations", "samples", "rankings"])
def test_the_help_of_a_command_lists_its_own_settings(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m labeling {command} [-h] --config FILE [--clean]")
    groups = {line.split(".")[1] for line in shown.splitlines() if line.startswith("  labeling.")}
    assert groups == {command}


def test_a_group_that_the_recipe_lacks_is_named(tmp_path: Path) -> None:
    config = write_recipe(tmp_path)
    with pytest.raises(UserError, match=r"no `labeling\.samples` group"):
        main(["samples", *config])


def test_rankings_need_samples(tmp_path: Path) -> None:
    config = write_recipe(tmp_path, rankings={"scorer": "configs/stories/gold.py:sentiment"})
    with pytest.raises(UserError, match="make samples"):
        main(["rankings", *config])
    assert not (tmp_path / "runs").exists()


def test_the_next_command_goes_on_with_every_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, scorer = tmp_path / "samples.jsonl", tmp_path / "scorer.py"
    samples.write_text('{"prompt": "p", "completions": ["a", "bb"]}\n')
    scorer.write_text("def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n")
    rankings = {"samples": str(samples), "scorer": f"{scorer}:length"}
    config = write_recipe(tmp_path, rankings=rankings, samples={"prompts": PROMPTS})
    assert main(["rankings", *config, "labeling.samples.completions_per_prompt=7"]) == 0
    resolved = tmp_path / "runs" / "run" / "rankings" / "config.yaml"
    assert capsys.readouterr().out.endswith(f"next: make reward CONFIG={resolved}\n")
    labeling = load_recipe(resolved).section("labeling")
    assert isinstance(labeling, LabelingSettings)
    assert labeling.samples is not None
    assert labeling.samples.completions_per_prompt == 7
    assert main(["rankings", "--config", str(resolved)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_samples_need_the_sft_stage(tmp_path: Path) -> None:
    config = write_recipe(tmp_path, samples={"prompts": PROMPTS})
    with pytest.raises(UserError, match="make sft"):
        main(["samples", *config])


def test_a_model_from_scratch_makes_no_demonstrations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p"}\n')
    config = write_recipe(tmp_path, demonstrations={"prompts": [{"path": str(tmp_path / "prompts.jsonl")}]})
    assert run_command(main, ["demonstrations", *config]) == 2
    assert "model.path" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.jsonl"))


@pytest.mark.parametrize(("error_rate", "ok"), [(0.5, True), (0.6, False), (-0.1, False)])
def test_an_error_rate_is_at_most_a_coins(tmp_path: Path, error_rate: float, ok: bool) -> None:
    config = write_recipe(tmp_path, rankings={"scorer": "a:b", "error_rate": error_rate})
    with pytest.raises(UserError) as caught:
        main(["rankings", *config])
    assert ("`labeling.rankings.error_rate`" in str(caught.value)) is not ok


def test_another_model_makes_demonstrations_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name with other weights, another folder, another revision; not the same folder elsewhere."""

    def write(recipe: Recipe, settings: object, stage: StageRun) -> None:
        stage.publish({"demonstrations.jsonl": Path.touch}, metrics={}, counts={})

    monkeypatch.setattr("labeling.generation.sample.make_demonstrations", write)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p"}\n')
    one, other, moved = (tmp_path / name for name in ("one", "other", "moved"))
    for folder, content in ((one, "a"), (other, "b"), (moved, "a")):
        folder.mkdir()
        (folder / "model.safetensors").write_text(content)
    config = write_recipe(tmp_path, demonstrations={"prompts": [{"path": str(tmp_path / "prompts.jsonl")}]})
    command = ["demonstrations", *config, "model.scratch=null"]
    assert main([*command, f"model.path={one}"]) == 0
    assert main([*command, f"model.path={moved}"]) == 0
    for changed in (f"model.path={other}", "model.path=owner/name"):
        with pytest.raises(UserError, match="input model has changed"):
            main([*command, changed])
    (one / "model.safetensors").write_text("c")
    with pytest.raises(UserError, match="input model has changed"):
        main([*command, f"model.path={one}"])
