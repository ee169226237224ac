"""Shared fixtures: where the real data is, and one hypothesis profile for all."""

import gc
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny_data import write_data

settings.register_profile("gmix", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("gmix-long", deadline=None, max_examples=5000)
settings.load_profile("gmix")


if threading.current_thread() is threading.main_thread():
    # Whoever starts the tests in the background, or under nohup, ignores signals, and so would every training
    # that they start.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, default)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side, one process a core: more threads would only wait for each other.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


os.fsync = lambda descriptor: (
    None
)  # no test cuts the power, and a training waits for the disk twenty times


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny scenes with masks, four without, three to validate on: no test changes them."""
    return write_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: `GMIX_DATA`, or `../shared/data` beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("GMIX_DATA", default))
    if not (path / "voc_animals").is_dir():
        pytest.skip(f"real data not found at {path}: set GMIX_DATA to run this test")
    return path


def pytest_collection_finish() -> None:
    """What is there stays: to look through it for garbage again and again costs a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)
