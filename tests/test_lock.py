"""One training at a time in a folder; a killed one keeps nobody out."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tiny_data import tiny_config, write_data

from gmix.runs.checkpoint import list_checkpoints
from gmix.runs.results import Report
from gmix.runtime.lock import NAME, check_unlocked, locked
from gmix.training.state import build_state
from gmix.training.train import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the other processes are forks")


def in_another(work: Callable[[], object]) -> int:
    """The id of a new process that does this and ends with 0, or with 1 at a ValueError."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            work()
            code = 0
        except ValueError as error:
            code = 1 if str(error).startswith("another process is training in ") else 3
        finally:
            os._exit(code)
    return child


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def locked_by_another(folder: Path, before: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Another process holds the folder; at the end it is killed, without a chance to clean up."""
    reader, writer = os.pipe()

    def hold() -> None:
        with locked(folder):
            before()
            os.write(writer, b".")
            time.sleep(600)

    child = in_another(hold)
    try:
        os.read(reader, 1)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_a_second_training_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    config = tiny_config(
        write_data(tmp_path / "data"), tmp_path / "out", method="supervised", steps=2
    )
    codes = []

    def try_another(report: Report) -> None:
        if report.step == 1:
            assert not list_checkpoints(tmp_path / "out")
        for again in (config, replace(config, resume=True)):
            codes.append(code_of(in_another(partial(train, again))))

    train(config, on_report=try_another)
    assert codes == 4 * [1]
    assert not (tmp_path / "out" / NAME).exists()
    train(replace(config, resume=True))


def test_a_run_that_began_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        write_data(tmp_path / "data"), tmp_path / "out", method="supervised", steps=1
    )

    def slowly(*args: object) -> object:
        monkeypatch.undo()
        train(config)
        return build_state(*args)

    monkeypatch.setattr("gmix.training.session.build_state", slowly)
    with pytest.raises(ValueError, match="already holds a run"):
        train(config)


def test_a_second_look_of_the_same_process_is_refused_and_lets_go_of_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "other").mkdir()
    spelled = tmp_path / "other" / ".."
    with locked(tmp_path):
        for again in (check_unlocked, lambda folder: locked(folder).__enter__()):
            for folder in (tmp_path, spelled):
                with pytest.raises(ValueError, match="this process is training in"):
                    again(folder)
        assert code_of(in_another(lambda: check_unlocked(tmp_path))) == 1
        with locked(tmp_path / "other"):
            pass
    check_unlocked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_killed_process_keeps_nobody_out(tmp_path: Path) -> None:
    loaders: list[int] = []
    reader, writer = os.pipe()

    def start_loader() -> None:
        """It lives on for a while, and has all files of its parent open."""
        os.write(writer, f"{in_another(lambda: time.sleep(600))}\n".encode())

    with locked_by_another(tmp_path, start_loader):
        loaders.append(int(os.read(reader, 100)))
        for refused in (check_unlocked, lambda folder: locked(folder).__enter__()):
            with pytest.raises(ValueError, match="another process is training in"):
                refused(tmp_path)
    try:
        assert (tmp_path / NAME).exists()
        check_unlocked(tmp_path)
        with locked(tmp_path):
            pass
    finally:
        os.kill(loaders[0], signal.SIGKILL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_file_removed_in_between_is_no_lock(tmp_path: Path, made_anew: bool) -> None:
    """Whoever waited for it with the old file open would share the folder with who makes a new one."""
    import fcntl

    original = fcntl.lockf

    def late(file: object, how: int) -> None:
        (tmp_path / NAME).unlink()
        if made_anew:
            (tmp_path / NAME).touch()
        original(file, how)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "lockf", late)
        with pytest.raises(ValueError, match="another process"), locked(tmp_path):
            pass


def test_a_drive_without_locks_can_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    check_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())  # who only looks makes nothing
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
