from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from labeling.constitution.constitution import load_constitution
from rlhf.errors import UserError

PRINCIPLE = {"id": "kind", "critique_request": "c?", "revision_request": "r.", "comparison_question": "q?"}


def write(folder: Path, text: str | None = None, **changes: object) -> Path:
    values = {"name": "Mine", "version": "1", "principles": [PRINCIPLE], **changes}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values) if text is None else text)
    return path


def error_of(path: Path, **options: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        load_constitution(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(("name", "least"), [("general", 12), ("tiny", 3)])
def test_a_shipped_constitution_has_its_principles_and_worked_examples(
    root: Path, name: str, least: int
) -> None:
    constitution = load_constitution(root / "configs" / "constitutions" / f"{name}.yaml")
    assert len(constitution.principles) >= least
    assert constitution.examples.critiques
    assert {each.better for each in constitution.examples.comparisons} == {1, 2}
    wordings = [each.comparison_question for each in constitution.principles]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"principles": []}, "`principles` is [], and must be of 1 item or more"),
        ({"principles": [PRINCIPLE, PRINCIPLE]}, "two principles have the id `kind`"),
        ({"principles": [{**PRINCIPLE, "weight": 0}]}, "`principles.0.weight` is 0, and must be more than 0"),
        ({"principles": [{**PRINCIPLE, "critique": "x"}]}, "unknown key `principles.0.critique`"),
        ({"principles": [{"id": "kind"}]}, "`principles.0.critique_request` is missing"),
        ({"examples": "nowhere.yaml"}, "cannot read the file of examples"),
    ],
)
def test_a_mistake_in_a_constitution_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in error_of(write(tmp_path, **changes))


def test_what_is_no_constitution_at_all_is_said(tmp_path: Path) -> None:
    assert "mine.yaml: a constitution is a YAML mapping" in error_of(write(tmp_path, "- a\n"))
    assert "mine.yaml, line 1: not valid YAML" in error_of(write(tmp_path, "name: ]\n"))
    assert "cannot read the constitution" in error_of(tmp_path / "absent.yaml")


def test_an_example_must_name_a_principle_that_there_is(tmp_path: Path) -> None:
    example = {"prompt": "p", "response": "r", "principle": "cruel", "critique": "c", "revision": "v"}
    (tmp_path / "examples.yaml").write_text(yaml.safe_dump({"critiques": [example]}))
    found = error_of(write(tmp_path, examples="examples.yaml"))
    assert "examples.yaml: an example names the principle `cruel`" in found
    assert "kind" in found


def test_the_hash_follows_what_it_says_and_not_how_the_file_looks(tmp_path: Path) -> None:
    path = write(tmp_path)
    first = load_constitution(path)
    path.write_text("# a comment\n" + path.read_text().replace("name: Mine\n", "") + "name: 'Mine'\n")
    assert load_constitution(path).annotator == first.annotator == f"constitution@{first.sha256[:12]}"
    changed = write(tmp_path, principles=[{**PRINCIPLE, "critique_request": "C?"}])
    assert load_constitution(changed).sha256 != first.sha256


def test_tags_narrow_what_is_drawn_and_weights_steer_it(tmp_path: Path) -> None:
    others = [
        {**PRINCIPLE, "id": "often", "weight": 9, "tags": ["a"]},
        {**PRINCIPLE, "id": "rare", "tags": ["a"]},
    ]
    path = write(tmp_path, principles=[PRINCIPLE, *others])
    constitution = load_constitution(path, tags=["a"])
    rng = Random(0)
    drawn = [constitution.draw(1, rng)[0].id for _ in range(500)]
    assert set(drawn) == {"often", "rare"}
    assert 400 < drawn.count("often") < 480
    assert {each.id for each in constitution.draw(5, rng)} == {"often", "rare"}
    assert "Its tags are: a." in error_of(path, tags=["b"])
    assert load_constitution(path).sha256 != constitution.sha256
