import json
from typing import Any

from benchmarks.gpu import case as case_process
from benchmarks.gpu.plan import Outcome
from benchmarks.gpu.report import markdown
from tests.unit.benchmarks.gpu.toys import toy_cases


def test_real_results_make_a_table_of_every_part() -> None:
    outcomes: dict[str, list[dict[str, Any]]] = {}
    for part in ("correctness", "decode", "largest"):
        case = toy_cases(part)[0]
        answer = case_process.answer(case)
        outcome = Outcome(part=part, name=case.name, seconds=1.0, **answer.model_dump())
        outcomes[part] = [json.loads(outcome.to_json())]
    report = {
        "toy": True,
        "machine": {"processor": "p", "cores": 2, "memory_gib": 1.0, "system": "s"},
        "code": {"commit": None, "dirty": None},
        "device": case_process.describe_device(toy_cases("decode")[0]),
        "seed": 0,
        "parts": outcomes,
    }
    text = markdown(report)
    assert "no figure here says anything of a GPU" in text
    assert "| toy | policy | 4 |" in text
    assert "| toy, bf16 | training |" in text
    assert "Largest that completes an iteration: toy, bf16." in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(widths) == {3, 6, 9}
