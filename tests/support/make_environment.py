"""The environment of a make that a test starts: what the make around the tests was told is not for it."""

import os

_OUTER = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VENV", "PYTHON", "TRIPTYCH_GOALS")


def make_environment() -> dict[str, str]:
    """This process's environment without the variables of the make that runs the tests."""
    return {key: value for key, value in os.environ.items() if key not in _OUTER}
