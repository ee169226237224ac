"""Kill a training again and again, each time going on with `--resume`: `test_interruption.py` calls this.

In a process of its own, because every training is a fork of it, and changes what it forks.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from tiny_data import tiny_config

from gmix.config.train_config import TrainConfig
from gmix.runs import checkpoint, saved
from gmix.runtime import atomic
from gmix.training import state
from gmix.training import train as run

KINDS = {"call": 3, "write": 3, "save": 3, "clock": 1}


@dataclass
class Moment:
    """When to kill: at that many calls of any function, at that many writes, at that many of them for
    a checkpoint, or after some seconds."""

    kind: str
    at: float
    phase: str = ""  # of a write: before, half, after


@dataclass
class Length:
    """How much there is of each in a training that nobody kills."""

    call: int = 0
    write: int = 0
    save: int = 0
    clock: float = 0.0


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit


class Calls:
    """Counts calls of any function, Python's or C's, and may die at one."""

    def __init__(self, at: float) -> None:
        self.count = 0
        self.at = at
        sys.setprofile(self.notice)

    def notice(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.count += 1
            if self.count == self.at:
                die()


class Writes:
    """Counts whatever changes the disk, and may die before, within or after one of them."""

    def __init__(self, kind: str, at: float, phase: str) -> None:
        self.counts = {"write": 0, "save": 0}
        self.kind = kind
        self.at = at
        self.phase = phase
        self.saving = False
        state.save_checkpoint = self.during(state.save_checkpoint)
        for owner, name, half in (
            (checkpoint, "save_file", lambda tensors, path, **rest: cut(path)),
            (saved, "save_file", lambda tensors, path, **rest: cut(path)),
            (torch, "save", lambda state, file: (file.flush(), cut(file.name))),
            (Path, "write_text", lambda path, text, **rest: cut(path)),
            (shutil, "rmtree", None),
            (atomic, "_flush", None),
            (Path, "rename", None),
            (Path, "replace", None),
        ):
            setattr(owner, name, self.counted(getattr(owner, name), half))

    def during(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **rest: Any) -> Any:
            self.saving = True
            found = original(*args, **rest)
            self.saving = False
            return found

        return call

    def counted(self, original: Callable[..., Any], half: Any) -> Callable[..., Any]:
        def call(*args: Any, **rest: Any) -> Any:
            self.counts["write"] += 1
            self.counts["save"] += self.saving
            if self.counts.get(self.kind) != self.at or self.saving < (self.kind == "save"):
                return original(*args, **rest)
            if self.phase == "half" and original.__name__ == "rmtree":
                for path in [p for p in Path(args[0]).rglob("*") if p.is_file()][:1]:
                    path.unlink()
            elif self.phase != "before":
                original(*args, **rest)
                if self.phase == "half" and half is not None:
                    half(*args, **rest)
            die()

        return call


def cut(path: str | Path) -> None:
    """As if only half of a file had been written so far."""
    os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202


def attempt(config: TrainConfig, log: Path, moment: Moment | None) -> tuple[bool, Length]:
    """Train in a child process: whether it was killed, and how long it was."""
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            kind, at, phase = (moment.kind, moment.at, moment.phase) if moment else ("", 0, "")
            writes = Writes(kind, at, phase)
            calls = Calls(at if kind == "call" else 0)
            if kind not in ("", "call"):  # it costs time
                sys.setprofile(None)
            run.train(config)
            sys.setprofile(None)
            os.write(writer, json.dumps([calls.count, *writes.counts.values()]).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    os.close(writer)
    if moment is not None and moment.kind == "clock":
        time.sleep(moment.at)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    text = os.read(reader, 1000).decode()
    os.close(reader)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True, Length()
    if status != 0:
        raise SystemExit(f"the training failed at {moment}:\n{log.read_text()[-3000:]}")
    return False, Length(*json.loads(text), clock=time.monotonic() - began)


def choose(rng: random.Random, length: Length) -> Moment:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    end = getattr(length, kind)
    if kind == "clock":
        return Moment(kind, rng.uniform(0, end))
    return Moment(kind, rng.randint(1, end), rng.choice(["before", "half", "after"]))


def main(root: Path, data: Path, kills: int, seed: int, changes: dict[str, Any]) -> None:
    """Trainings `0`, `1`, ... in `root`, killed so many times together, beside `straight`."""
    rng, done, number = random.Random(seed), [], 0
    straight = tiny_config(data, root / "straight", **changes)
    killed, length = attempt(straight, root / "log.txt", None)
    assert not killed
    while len(done) < kills:
        config = replace(straight, out=str(root / str(number)), resume=True)
        moment: Moment | None = choose(rng, length)
        if sum(kill["run"] == number for kill in done) == 8:
            moment = None  # let it end
        if attempt(config, root / "log.txt", moment)[0]:
            assert moment is not None
            done.append({"run": number, **asdict(moment)})
        else:
            number += 1
    config = replace(straight, out=str(root / str(number)), resume=True)
    assert not attempt(config, root / "log.txt", None)[0]
    (root / "kills.json").write_text(json.dumps(done, indent=1))
