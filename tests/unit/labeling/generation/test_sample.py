"""Where sentences end, and what the texts of a prompt depend on."""

import json
from pathlib import Path

import pytest

from labeling.__main__ import main
from labeling.config import SamplesSettings
from labeling.generation.sample import Drawn, draw, first_sentences
from rlhf.data.counts import RecordCounts
from rlhf.errors import UserError
from rlhf.settings.groups import (
    ModelSettings,
    RunSettings,
    SamplingSettings,
    SourceSettings,
    TrackingSettings,
)
from rlhf.settings.recipe import Recipe
from tests.support.small import small_backbone


@pytest.mark.parametrize(
    ("text", "num", "expected"),
    [
        ("One. Two. Three. Four.", 3, "One. Two. Three."),
        ("One. Two. Three", 3, None),
        ("One. Two. Three.", 3, "One. Two. Three."),
        ('"Oh no!" he said. "Why?" She ran.', 2, '"Oh no!" he said.'),
        ("Wait... what?! Yes.", 2, "Wait... what?!"),
        ("It cost 3.50 and www.a.b did not end. Then", 1, "It cost 3.50 and www.a.b did not end."),
        ("One.\nTwo!\n\nThree", 2, "One.\nTwo!"),
        ("“Go!” Tim went.", 1, "“Go!”"),
        ("", 1, None),
    ],
)
def test_a_text_is_cut_where_its_last_sentence_ends(text: str, num: int, expected: str | None) -> None:
    assert first_sentences(text, num) == expected


def drawn(
    folder: Path, prompts: list[str], *, num_texts: int = 3, num_devices: int = 1, **settings: object
) -> list[Drawn]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    recipe = Recipe(
        run=RunSettings(folder=folder),
        tracking=TrackingSettings(),
        model=ModelSettings(path="owner/name"),
        sections={},
        path=folder / "recipe.yaml",
    )
    values = {"sampling": SamplingSettings(max_response_tokens=8, batch_size=4), **settings}
    samples = SamplesSettings.model_validate({"prompts": [SourceSettings(path=str(path))], **values})
    models = [small_backbone() for _ in range(num_devices)]
    found = draw(
        models, recipe, samples, RecordCounts(), num_texts=num_texts, noise=7, step="labeling.samples"
    )
    return list(found)


PROMPTS = [f"w{n} w{n + 1}" + " w5" * (n % 4) for n in range(9)]


def test_every_prompt_gets_its_texts_in_the_prompts_order(tmp_path: Path) -> None:
    found = drawn(tmp_path, PROMPTS)
    assert [each.prompt.prompt for each in found] == PROMPTS
    assert all(len(each.texts) == len(each.ended) == 3 for each in found)
    assert any(len(set(each.texts)) > 1 for each in found)


def test_a_prompts_texts_depend_on_no_other_prompt(tmp_path: Path) -> None:
    together = {each.prompt: each for each in drawn(tmp_path, PROMPTS)}
    for prompt in PROMPTS[3:5]:
        [alone] = drawn(tmp_path, [prompt])
        assert alone == together[alone.prompt]


def test_more_texts_of_a_prompt_begin_with_the_same_ones(tmp_path: Path) -> None:
    [few], [many] = (drawn(tmp_path, PROMPTS[:1], num_texts=num) for num in (2, 5))
    assert few.texts == many.texts[:2]


def test_several_devices_share_the_prompts_and_write_the_same_texts(tmp_path: Path) -> None:
    prompts = [f"w{n} w{n + 1}" for n in range(40)]
    assert drawn(tmp_path, prompts, num_devices=3) == drawn(tmp_path, prompts)


def test_a_prompt_without_room_is_an_error_or_is_counted(tmp_path: Path) -> None:
    prompts = ["w1", "w1 " * 30]
    with pytest.raises(UserError, match="over_length"):
        drawn(tmp_path, prompts, length={"max_tokens": 20})
    kept = drawn(tmp_path, prompts, length={"max_tokens": 20, "over_length": "drop"})
    assert [each.prompt.prompt for each in kept] == ["w1"]
    with pytest.raises(UserError, match="no prompt leaves room"):
        drawn(tmp_path, prompts[1:], length={"max_tokens": 20, "over_length": "drop"})


def test_demonstrations_come_from_the_revision_that_the_recipe_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def load(path: str, *, revision: str | None, **_: object) -> None:
        asked.append((path, revision))
        raise UserError("no hub answers")

    (tmp_path / "prompts.jsonl").write_text('{"prompt": "once"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"run: {{folder: {tmp_path}}}\nmodel: {{path: owner/name, revision: v1}}\n"
        f"labeling: {{demonstrations: {{prompts: [{{path: {tmp_path}/prompts.jsonl}}]}}}}\n"
    )
    monkeypatch.setattr("rlhf.model.backbone.Backbone.load", load)
    with pytest.raises(UserError, match="no hub answers"):
        main(["demonstrations", "--config", str(recipe)])
    assert asked == [("owner/name", "v1")]
