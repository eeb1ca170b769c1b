import sys

import pytest
import torch

from benchmarks.memory import PeakMemory, status_bytes


def test_status_fields_are_read_in_bytes() -> None:
    status = "Name:\tpython\nVmHWM:\t    2140 kB\nVmRSS:\t     100 kB\n"
    assert status_bytes(status, "VmHWM") == 2140 * 1024
    assert status_bytes(status, "VmRSS") == 102_400
    with pytest.raises(KeyError):
        status_bytes(status, "VmSwap")


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark can be set back on Linux alone")
def test_a_block_that_is_gone_again_still_shows_in_the_peak() -> None:
    size = 128 * 2**20
    torch.ones(2 * size // 4).sum()  # before: must not count
    peak = PeakMemory()
    torch.ones(size // 4).sum()
    memory = peak.take()
    if memory.source == "ru_maxrss":
        pytest.skip("this system does not let a process set its high-water mark back")
    assert 0.9 * size < memory.increment_bytes < 1.5 * size
    assert memory.device_peak_bytes is None
