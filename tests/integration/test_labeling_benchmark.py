"""The labelers' benchmark, small."""

import pytest

from benchmarks.labeling.__main__ import main

pytestmark = pytest.mark.slow


def test_it_measures_and_finds_the_store_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--labelers", "3", "--items", "8", "--overlap", "2"]) == 0
    shown = capsys.readouterr().out
    assert "labels: 16 of 16" in shown
    assert "p99" in shown
    assert "the store is right" in shown
