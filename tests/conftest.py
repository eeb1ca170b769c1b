"""What every test runs under: no network, one thread, the same random numbers whatever ran before."""

import os
import shutil
import tempfile
from pathlib import Path

# Libraries read these once, when they are imported: so before any import of them.
_HF_HOME = tempfile.mkdtemp(prefix="triptych-hf-")
os.environ.update(
    DS_ACCELERATOR="cpu",  # or DeepSpeed looks for one, and says so
    HF_HOME=_HF_HOME,  # caches of data sets would otherwise pile up in the developer's own
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    NETRC=os.devnull,  # whoever is logged in to W&B: tests are not
)
os.environ.pop("WANDB_API_KEY", None)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from rlhf import preemption  # noqa: E402

# A command that a test runs in this process must not end it, however slowly it obeys a signal.
preemption.PATIENCE_SECONDS = 600.0

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("triptych", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("triptych")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's own folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of third-party models and data that may lie beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("third-party models and data are not part of the project: there is no folder ../shared")
    return folder
