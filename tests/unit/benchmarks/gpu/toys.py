from typing import Any

from benchmarks.gpu.plan import Case, plan

COMMON: dict[str, Any] = {"device": "cpu", "seed": 0, "threads": 1}


def toy_cases(*parts: str) -> list[Case]:
    return plan(parts, toy=True, **COMMON)


def toy_case(part: str, name: str) -> Case:
    return next(case for case in toy_cases(part) if case.name == name)


def failures(result: dict[str, Any]) -> list[str]:
    return [check["name"] for check in result["checks"] if not check["passed"]]
