"""docs/labeling.md names every command and every option."""

import re
from pathlib import Path

import pytest

from labeling.__main__ import main
from labeling.commands.run import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_docs_name_a_commands_options(
    command: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    docs = (root / "docs" / "labeling.md").read_text()
    assert command in docs
    assert {option for option in options if not re.search(rf"{option}(?![a-z-])", docs)} == set()
