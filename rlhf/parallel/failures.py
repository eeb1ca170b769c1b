"""Another rank has failed: how that looks from here, and who prints what all ranks see."""

import re
import sys
import time

from rlhf.parallel.world import Rank0EndedError, world

_CONNECTION_LOST = re.compile(
    "closed by peer|Connection reset|Broken pipe|Connection refused|remote process exited|aborted"
    "|tcp/pair|unbound_buffer|failed to recv|recvBytes failed|sendBytes failed"
)
"""What gloo, the store and NCCL say when another rank has gone. No type of error tells that from a mistake
in the set-up: an interface that does not exist, two ranks on one GPU."""
_RANK0_FIRST_SECONDS = 2.0
"""How long another rank leaves it to rank 0 to print what may have gone wrong on all of them."""


def is_rank_failure(error: Exception) -> bool:
    """Whether an error means that another rank is gone."""
    if isinstance(error, Rank0EndedError):
        return True
    return isinstance(error, RuntimeError) and _CONNECTION_LOST.search(str(error)) is not None


def print_error_once(text: str) -> None:
    """Print an error on stderr, once for all ranks, with the rank if it is not rank 0's.

    What all ranks run into alike rank 0 prints, and what follows from another rank's end nobody repeats.
    """
    ranks = world()
    if ranks.size == 1:
        print(text, file=sys.stderr)
        return
    if not ranks.is_rank0:
        time.sleep(_RANK0_FIRST_SECONDS)
    try:
        is_first = ranks.claim_once("error")
    except RuntimeError:  # the store ended with rank 0, which printed or was killed: the launcher names it
        is_first = False
    if is_first:
        print(text if ranks.is_rank0 else f"rank {ranks.rank}: {text}", file=sys.stderr, flush=True)
