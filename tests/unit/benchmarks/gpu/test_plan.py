from typing import Any

import pytest

from benchmarks.gpu.models import random_base
from benchmarks.gpu.plan import LADDER, ONE_B, PARTS, SMALL, TOYS, plan
from tests.unit.benchmarks.gpu.toys import COMMON


@pytest.mark.parametrize("toy", [True, False])
def test_every_part_has_cases_of_names_of_their_own(toy: bool) -> None:
    cases = plan(PARTS, toy=toy, **COMMON)
    assert list(dict.fromkeys(case.part for case in cases)) == list(PARTS)
    assert len({(case.part, case.name) for case in cases}) == len(cases)
    assert {case.part for case in plan(["race"], toy=toy, **COMMON)} == {"race"}


def test_a_shape_has_as_many_parameters_as_its_name_says() -> None:
    for each in (SMALL, ONE_B, *LADDER):
        unit = {"M": 1e6, "B": 1e9}[each.name[-1]]
        assert abs(each.num_parameters / (float(each.name[:-1]) * unit) - 1) < 0.14, each.name


@pytest.mark.parametrize("toy", TOYS)
def test_the_count_of_parameters_is_the_models(toy: Any) -> None:
    model = random_base(toy, "fp32", device="cpu", seed=0).model
    assert toy.num_parameters == sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    assert toy.num_step_parameters == toy.num_parameters - embedding
