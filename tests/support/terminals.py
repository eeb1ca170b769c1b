"""Programs in a real terminal of 80×24, run by tmux."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.postgres import missing

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 10.0


class Terminal:
    """One tmux server with one program in it."""

    def __init__(
        self, socket: Path, command: list[str], *, size: tuple[int, int], env: dict[str, str]
    ) -> None:
        self._socket = socket
        words = ["env", *(f"{name}={value}" for name, value in env.items()), *command]
        # A shell stays behind, so that what is left on the terminal can be looked at.
        line = f"{shlex.join(words)}; echo status=$?; exec sleep 1000"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), line)

    @property
    def text(self) -> str:
        """What stands on the terminal."""
        return self._tmux("capture-pane", "-p")

    @property
    def raw(self) -> str:
        """The same with colours, as escape sequences."""
        return self._tmux("capture-pane", "-p", "-e")

    def press(self, *keys: str) -> None:
        for key in keys:
            self._tmux("send-keys", "--", key)

    def until(self, condition: Callable[[str], bool]) -> str:
        """Wait until what stands there fulfils the condition, and return it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition(text := self.text):
            assert time.monotonic() < deadline, f"it never came to that:\n{text}"
            time.sleep(0.05)
        return text

    def until_shown(self, text: str) -> str:
        return self.until(lambda shown: text in shown)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the terminal itself, as a lost connection does."""
        os.kill(int(self._tmux("display-message", "-p", "#{pid}")), number)

    def program(self) -> int:
        """The process id of the labeler's program."""
        shell = int(self._tmux("display-message", "-p", "#{pane_pid}"))
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[0])

    def close(self) -> None:
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], capture_output=True, check=False)

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-S", str(self._socket), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def terminal(
    *arguments: str, size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None
) -> Iterator[Terminal]:
    """`python -m labeling` with these arguments."""
    if shutil.which("tmux") is None:
        missing("tmux", "apt-get install tmux")
    socket = Path(f"/tmp/triptych-tmux-{uuid.uuid4().hex[:8]}")
    command = [sys.executable, "-m", "labeling", *arguments]
    running = Terminal(
        socket, command, size=size, env={"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **(env or {})}
    )
    try:
        yield running
    finally:
        running.close()
        socket.unlink(missing_ok=True)
