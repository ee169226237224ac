"""Processes that start in milliseconds: forks of a server that has imported torch and gmix already.

A new interpreter spends five seconds on imports. Only tests of the interpreter itself, of a launcher or of
the imports start one.
"""

import gc
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import connection, get_all_start_methods, get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PRELOADED = [
    "accelerate",
    "gmix.cli.main",
    "gmix.demo",
    "gmix.evaluation",
    "gmix.training.train",
    "huggingface_hub",
    "sklearn.datasets",
]


@cache
def server() -> Any:
    """The context whose processes are such forks; the server ends with this process."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")  # Windows cannot fork: it is slower there
    from multiprocessing import forkserver

    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        # The checkout that the tests import, whichever is installed.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")  # no test downloads
        forkserver.ensure_running()
    return context


def start(
    work: Callable[..., object],
    *args: Any,
    out: Path,
    err: Path | None = None,
    folder: Path | None = None,
    variables: dict[str, str] | None = None,
) -> BaseProcess:
    """Start a process that calls a function, and exits with what that returns.

    Args:
        work: a function that can be imported.
        args: its arguments.
        out: where all that the process prints is appended.
        err: where its errors are, if not there too.
        folder: where it works.
        variables: of its environment, besides those of the tests.
    """
    settings = out, err or out, folder or Path.cwd(), {**os.environ, **(variables or {})}
    process: BaseProcess = server().Process(target=_work, args=(work, args, *settings))
    process.start()
    return process


def _work(
    work: Callable[..., object],
    args: tuple[Any, ...],
    out: Path,
    err: Path,
    folder: Path,
    variables: dict[str, str],
) -> None:
    gc.freeze()  # what was imported is no garbage
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C at the terminal of the tests is for the tests
    set_start_method(None, force=True)  # of its loader processes: that of any process
    os.environ |= variables
    os.chdir(folder)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.exit(work(*args))  # type: ignore[arg-type]


class Ended(NamedTuple):
    """What processes came to: their exit codes, and what they printed."""

    codes: list[int | None]
    out: str
    err: str


def run(work: Callable[..., object], *args: Any, count: int = 1, **settings: Any) -> Ended:
    """Wait for a process, or for as many as `torchrun` would start, each with a number of its own."""
    own: list[dict[str, str]] = [{}]
    if count > 1:
        from torch.distributed import TCPStore  # which some builds of torch lack

        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        meet = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
        meet |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        size = {"WORLD_SIZE": str(count)}
        own = [{**meet, **size, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
    with tempfile.TemporaryDirectory() as logs:
        out, err = Path(logs, "out"), Path(logs, "err")
        processes = [start(work, *args, out=out, err=err, variables=v, **settings) for v in own]
        while alive := [process.sentinel for process in processes if process.is_alive()]:
            failed = any(process.exitcode for process in processes)
            if not connection.wait(alive, timeout=60 if failed else None):
                for process in processes:  # they wait for one that has failed
                    process.kill()
        texts = [path.read_text(encoding="utf-8") for path in (out, err)]
    return Ended([process.exitcode for process in processes], *texts)


def script(path: Path, *words: object) -> None:
    """Run a file as `python path words` does."""
    sys.argv = [str(path), *map(str, words)]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def check_output(command: list[str], **settings: Any) -> str:
    """What `subprocess.check_output` says of a script's own child processes."""
    python, path, *words = command
    assert python == sys.executable and settings == {"text": True}
    ended = run(script, Path(path), *words)
    assert ended.codes == [0], ended.err
    return ended.out
