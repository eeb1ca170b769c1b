"""`python -m ppo.chat`: its command line."""

import pytest

from ppo.chat import main


def test_the_help_is_about_this_command_and_what_it_reads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m ppo.chat [-h] --config FILE")
    assert "--temperature" in shown
    assert "--clean" not in shown
    assert "ppo.sampling.max_response_tokens" in shown
    assert "ppo.num_iterations" not in shown
