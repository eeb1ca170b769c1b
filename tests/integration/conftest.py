"""What several files of integration tests share."""

from pathlib import Path

import pytest

from tests.integration.micro import STAGES, start


@pytest.fixture(scope="session")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, `micro`; a test may put others beside it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for stage in STAGES:
            assert start(stage, folder, "ppo.export_merged=true") == 0
    return folder
