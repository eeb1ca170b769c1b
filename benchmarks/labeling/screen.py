"""The labeler's screen in a pseudo-terminal: start to first item, and each key to the last byte drawn.

Next to the time on the clock stands the processor time of the program, which other work leaves alone.

python -m benchmarks.labeling.screen [--items 100000] [--keys 200] [--size 80x24 --size 160x50]
"""

import argparse
import fcntl
import os
import pty
import random
import select
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.statistics import quantile
from labeling.store.items import Item
from labeling.store.project import NewItem, Project
from labeling.store.rules import LabelingRules
from rlhf.commands.process import run_command

Taken = tuple[float, float]
"""Milliseconds by the clock, and of the processor."""
NUM_LONG = 150
NUM_COMPLETIONS = 9
NUM_CHARACTERS = 4000
KEYS_AN_ITEM = 5
"""After so many keys all answers are ranked and the item is submitted."""
SIZES = ("80x24", "160x50")
QUIET_SECONDS = 0.06
"""A frame is over when nothing has come for so long; the time that counts is that of its last byte."""
KEYS = {
    "rank": (b"1", b"2", b"3", b"f", b"9"),
    "scroll": (b"j", b" ", b"k", b"b"),
    "move": (b"\x1b[C", b"\x1b[D", b"\t"),
    "undo": (b"u", b"0"),
}


def main(argv: Sequence[str]) -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labeling.screen", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--items", type=int, default=100_000, help="of the project [%(default)s]")
    parser.add_argument("--keys", type=int, default=200, help="to press [%(default)s]")
    parser.add_argument(
        "--size", action="append", help=f"of the terminal, again for more [{' '.join(SIZES)}]"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        with Project.create(folder, LabelingRules(gold_share=0.0)) as project:
            project.add(NewItem(item) for item in _items(arguments.items))
        print(f"{arguments.items:,} items, {NUM_COMPLETIONS} completions of {NUM_CHARACTERS:,} characters")
        for size in arguments.size or SIZES:
            _report(folder, size, num_keys=arguments.keys)
    return 0


def _report(folder: str, size: str, *, num_keys: int) -> None:
    """Measure at one size, and print."""
    starts = [_session(folder, size, num_keys=0)[0] for _ in range(3)]
    _, taken = _session(folder, size, num_keys=num_keys)
    print(f"{size}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores:")
    print(f"  start to first item: {', '.join(f'{s:.2f}' for s in starts)} s")
    every = [key for keys in taken.values() for key in keys]
    for name, keys in {**taken, "all": every}.items():
        clock = [key[0] for key in keys]
        processor = [key[1] for key in keys]
        print(
            f"  {name:7} {len(keys):4} keys: median {quantile(clock, 0.5):5.1f} ms, "
            f"p95 {quantile(clock, 0.95):5.1f} ms; processor: median {quantile(processor, 0.5):4.1f} ms, "
            f"p95 {quantile(processor, 0.95):4.1f} ms"
        )


def _items(number: int) -> Iterator[Item]:
    """The first are long, as are those that the session sees; the others make the project large."""
    rng = random.Random(0)
    for n in range(number):
        size = NUM_CHARACTERS if n < NUM_LONG else 20
        letters = ["".join(rng.choices("aeiou nrst  ", k=size)) for _ in range(NUM_COMPLETIONS)]
        yield Item(prompt=f"question {n}", completions=tuple(letters))


def _session(folder: str, size: str, *, num_keys: int) -> tuple[float, dict[str, list[Taken]]]:
    """Seconds to the first item, and what each key took."""
    columns, rows = (int(number) for number in size.split("x"))
    started = time.perf_counter()
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(PYTHONPATH=str(ROOT), TERM="xterm-256color")
        command = [sys.executable, "-m", "labeling", "rank", "--project", folder, "--labeler", "ann"]
        os.execv(sys.executable, command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    try:
        _until(terminal, b"Answer 1")
        seconds = time.perf_counter() - started
        _frame(terminal)
        found = _press(process, terminal, num_keys)
    finally:
        os.write(terminal, b"q")
        _until(terminal, b"\x1b[?1049l")
        os.waitpid(process, 0)
        os.close(terminal)
    return seconds, found


def _press(process: int, terminal: int, number: int) -> dict[str, list[Taken]]:
    rng = random.Random(1)
    found: dict[str, list[Taken]] = {name: [] for name in (*KEYS, "submit")}

    def press(name: str, key: bytes) -> None:
        before = _processor_milliseconds(process)
        pressed = time.perf_counter()
        os.write(terminal, key)
        last = _frame(terminal)
        if last is not None:  # otherwise the key changed nothing
            found[name].append((1000 * (last - pressed), _processor_milliseconds(process) - before))

    for n in range(number):
        name = rng.choice(list(KEYS))
        press(name, rng.choice(KEYS[name]))
        if n % KEYS_AN_ITEM == KEYS_AN_ITEM - 1:
            for _ in range(NUM_COMPLETIONS):
                os.write(terminal, b"1")
                _frame(terminal)
            press("submit", b"\r")
    return {name: taken for name, taken in found.items() if taken}


def _processor_milliseconds(process: int) -> float:
    """Processor time of all threads so far."""
    threads = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e6


def _frame(terminal: int) -> float | None:
    """When the last byte came of all that comes without a pause."""
    last = None
    while select.select([terminal], [], [], QUIET_SECONDS if last else 0.5)[0]:
        os.read(terminal, 65536)
        last = time.perf_counter()
    return last


def _until(terminal: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        if not select.select([terminal], [], [], 60)[0]:
            raise TimeoutError(f"{text!r} never came")
        seen = seen[-200:] + os.read(terminal, 65536)


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=False))
