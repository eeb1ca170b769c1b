import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from rlhf import preemption
from rlhf.commands.process import run_command
from rlhf.errors import UserError


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [
        (None, 0, ""),
        (UserError("no such file", where="a.jsonl"), 2, "a.jsonl: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes from the last checkpoint\n"),
    ],
)
def test_a_command_ends_with_the_status_of_its_error_and_no_traceback(
    raised: BaseException | None, status: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str]) -> int:
        if raised:
            raise raised
        return 0

    assert run_command(main, []) == status
    assert capsys.readouterr() == ("", printed)


@pytest.mark.parametrize("resumes", [False, lambda argv: argv[:1] != ["score"]])
def test_a_command_that_starts_over_promises_no_checkpoint(
    resumes: bool | Callable[[Sequence[str]], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    def preempted(argv: Sequence[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        preemption.check()
        return 0

    assert run_command(interrupted, ["score"], resumes=resumes) == 130
    assert run_command(preempted, ["score"], resumes=resumes) == 75
    assert capsys.readouterr().err == "interrupted\nended by SIGTERM\n"


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    def main(argv: Sequence[str]) -> int:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        run_command(main, [])


def test_a_command_reads_the_command_line_unless_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sft", "--config", "my.yaml"])
    seen: list[str] = []

    def main(argv: Sequence[str]) -> int:
        seen.extend(argv)
        return 0

    run_command(main)
    assert seen == ["--config", "my.yaml"]


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    program = (
        "import sys\n"
        "from rlhf.commands.process import run_command\n"
        "sys.exit(run_command(lambda argv: [print('line', flush=True) for _ in range(100_000)] and 0))\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.readline()
    command.stdout.close()
    with command.stderr as stderr:
        assert stderr.read() == ""
    assert command.wait() == 1
