"""A stage on many processes, by `accelerate launch`: `python -m rlhf.launch --gpus 8 --zero 2 ppo ...`.

What this adds to accelerate's own command is the end: signals are passed on to the ranks, which save; it says
in one line which rank ended, and how; and it gives the stage's exit status instead of a traceback.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from rlhf import optional, preemption
from rlhf.commands.process import exit_now, run_command
from rlhf.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_RANK_FAILURE, EXIT_USER_ERROR, UserError
from rlhf.preemption import Preempted

CONFIGS = Path(__file__).parent / "accelerate_configs"
"""A part of the package, also where that was installed from a wheel: the same files as configs/accelerate."""
_FOLLOWED = (EXIT_RANK_FAILURE, -15)
"""How ranks end that only follow another: they lost it, or were told to end."""
_EXPLAINED = (EXIT_USER_ERROR, EXIT_PREEMPTED, EXIT_INTERRUPTED)
"""How ranks end that have printed why."""
_RELAYED = (signal.SIGINT, signal.SIGHUP, *preemption.SIGNALS)
_SHUTDOWN_SECONDS = 45
"""How long ranks that are told to end may take to save; then they are killed."""
_REPORT_SECONDS = 10.0
"""How long the main thread may take to report when the last rank has ended."""


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    command = launch_arguments(arguments)
    if arguments.accelerate is None:  # all of ours are of type DEEPSPEED
        where = f"ZERO={arguments.zero}"
        optional.check_installed("deepspeed", where=where, otherwise="run the stage in one process")
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGQUIT")  # the others are `Relay`'s
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // arguments.gpus)))
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    optional.load("deepspeed")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # `report` says it in one line
    with relaying() as relay, preemption.last_resort(relay.wait):
        try:
            launch_command(launch_command_parser().parse_args(command))
        except ChildFailedError as error:
            exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return report(exit_codes, arguments.stage, told=relay.told)
        except SignalException as error:
            return 128 + error.sigval
        except ConnectionError as error:
            raise UserError(
                f"the launcher cannot open its port ({str(error).splitlines()[0]})",
                where=f"MASTER={arguments.master}",
                fix="Choose another port, the same on all nodes.",
            ) from None
    return 0


class Relay:
    """Passes the first signal on to the ranks, and kills what is left of them when their time is over.

    torch's agent would raise an exception at every signal, wherever it is; and make, a terminal and SLURM may
    send the same one several times.
    """

    def __init__(self) -> None:
        self.told: signal.Signals | None = None
        """The signal that the ranks were told to end by."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGALRM:
            _send(signal.SIGKILL)
        elif self.told is None and _send(number):
            self.told = signal.Signals(number)
            signal.alarm(_SHUTDOWN_SECONDS)
        elif self.told is None:  # no rank has been started yet
            raise KeyboardInterrupt if number == signal.SIGINT else Preempted(signal.Signals(number).name)

    def wait(self) -> None:
        """After a signal, in another thread: wait for the ranks, and for the main thread to report their end.

        The main one may never receive the signal, deep in C, where it waits for another node's launcher.
        """
        had_ranks = bool(_ranks())
        while _ranks():
            time.sleep(0.2)
        if had_ranks:
            time.sleep(_REPORT_SECONDS)


def _ranks() -> list[int]:
    """The ranks' process ids; they lead groups of their own, as torch's agent starts them."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(child.pid) == child.pid:
                found.append(child.pid)
    return found


def _send(number: int) -> int:
    """Send a signal to the ranks, and to what they have started; returns how many ranks there are."""
    ranks = _ranks()
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank, number)
    return len(ranks)


@contextlib.contextmanager
def relaying() -> Iterator[Relay]:
    """Inside the block signals are passed on to the ranks, unless they are ignored (`nohup`, `&`)."""
    relay = Relay()
    handled = [number for number in _RELAYED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, relay.receive) for number in (*handled, signal.SIGALRM)}
    try:
        yield relay
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def launch_arguments(arguments: argparse.Namespace) -> list[str]:
    """The arguments of `accelerate launch`.

    Raises:
        UserError: there is no configuration for this, or several nodes and no address of node 0.
    """
    name = f"zero{arguments.zero}{'-offload' if arguments.offload else ''}.yaml"
    config = arguments.accelerate or CONFIGS / name
    if not config.is_file():
        raise UserError(
            "there is no such accelerate config",
            where=str(config),
            fix="ZERO is 1, 2 or 3, and OFFLOAD=1 goes with 2 and 3.",
        )
    host, _, port = arguments.master.rpartition(":")
    command = [f"--config_file={config}", f"--num_processes={arguments.gpus * arguments.nodes}"]
    command += [f"--num_machines={arguments.nodes}", f"--machine_rank={arguments.node_rank or 0}"]
    if arguments.nodes > 1:
        if not host or not port.isdigit() or arguments.node_rank is None:
            raise UserError(
                f"{arguments.nodes} nodes need one launcher each, and an address where they find each other",
                where="launch",
                fix="On every node: make ... NODES=2 NODE_RANK=0 MASTER=host-of-node-0:29500 (NODE_RANK=1 on "
                "the next). Under SLURM: configs/slurm/run.sbatch.",
            )
        if not 0 <= arguments.node_rank < arguments.nodes or not 0 < int(port) < 2**16:
            raise UserError(
                f"NODE_RANK={arguments.node_rank} of {arguments.nodes} nodes, port {port}",
                where="launch",
                fix=f"NODE_RANK counts from 0 to {arguments.nodes - 1}, and ports end at 65535.",
            )
        command += [f"--main_process_ip={host}", f"--main_process_port={port}"]
    else:
        command += [f"--main_process_port={port or 0}"]
    return [*command, "-m", arguments.stage, *arguments.rest]


def report(exit_codes: Mapping[int, int], stage: str, *, told: signal.Signals | None = None) -> int:
    """Say which ranks ended by themselves, and how; returns the exit status of the whole.

    `told` is the signal that all were told to end by, if they were: unless one ran into a mistake, the status
    is then what that signal asks for, also where a rank had to be killed.
    """
    followed = _FOLLOWED if told is None else (*_FOLLOWED, -told)
    own = {rank: code for rank, code in exit_codes.items() if code not in followed}
    for rank, code in sorted(own.items()):
        if code not in _EXPLAINED:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            print(f"{stage}: rank {rank} {how}; the other ranks were ended", file=sys.stderr)
    if told is not None:
        mistakes = [code for _, code in sorted(own.items()) if code > 0 and code != EXIT_PREEMPTED]
        return mistakes[0] if mistakes else _status(told)
    if not own:
        ranks = ", ".join(map(str, sorted(exit_codes)))
        print(f"{stage}: rank {ranks} lost another; on several nodes its launcher says more", file=sys.stderr)
        return EXIT_RANK_FAILURE
    # Ranks that were told to end because another failed may have saved, or had to be killed: neither is why.
    first = min(own, key=lambda rank: (own[rank] == EXIT_PREEMPTED, own[rank] == -signal.SIGKILL, rank))
    return own[first] if own[first] > 0 else 128 - own[first]


def _status(told: signal.Signals) -> int:
    """The exit status of a stage that has obeyed a signal."""
    if told in preemption.SIGNALS:
        return EXIT_PREEMPTED
    return EXIT_INTERRUPTED if told == signal.SIGINT else 128 + told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpus", type=_count, default=1, help="processes on each node, one a GPU")
    parser.add_argument("--zero", type=int, default=2, help="ZeRO stage: 1, 2 or 3")
    parser.add_argument("--offload", action="store_true", help="optimizer state (and weights) in CPU memory")
    parser.add_argument("--accelerate", type=Path, help="an accelerate config instead of those two")
    parser.add_argument("--nodes", type=_count, default=1)
    parser.add_argument("--node-rank", type=int, help="0 on the node that the others connect to")
    parser.add_argument("--master", default="", help="host:port of node 0; on one node: a free port")
    parser.add_argument("stage", choices=["sft", "reward", "ppo"])
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="the stage's own arguments")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


if __name__ == "__main__":
    exit_now(run_command(main))
