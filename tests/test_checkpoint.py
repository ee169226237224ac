"""Checkpoints are whole or absent, and a resumed run ends where an unbroken one does."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import tiny_config, write_data
from torch import nn

from gmix import whole
from gmix.training import checkpoint as module
from gmix.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from gmix.training.fit import Report
from gmix.training.interrupts import Interrupted
from gmix.training.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny"))


class Killed(BaseException):
    """As little as a real one does any handler of errors see it."""


def kill_after(step: int) -> Any:
    def on_report(report: Report) -> None:
        if report.step == step:
            raise Killed

    return on_report


def state_of(out: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """All weights and the optimizer's state in the last checkpoint."""
    last = list_checkpoints(out)[-1].path
    weights = {f.stem + k: v for f in last.glob("*.safetensors") for k, v in load_file(f).items()}
    return weights, torch.load(last / "state.pt", weights_only=True)["optimizer"]


def assert_same(first: Any, second: Any) -> None:
    """Bit-equal, however nested."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "supervised", "ema": 0.9, "optimizer": "sgd"},
        {"method": "guidedmix"},
        {"method": "guidedmix", "channels_last": True, "mitrans": True, "workers": 1},
    ],
    ids=["supervised", "guidedmix", "mitrans"],
)
def test_resumed_run_is_bit_equal(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    train(tiny_config(data, tmp_path / "straight", **changes))
    broken = tiny_config(data, tmp_path / "broken", **changes)
    with pytest.raises(Killed):
        train(broken, on_report=kill_after(5))  # the last checkpoint is at 3: two steps are lost
    broken.resume = True
    steps: list[int] = []
    train(broken, on_report=lambda report: steps.append(report.step))
    assert steps == [4, 5, 6]
    straight = state_of(tmp_path / "straight")
    assert any("teacher" in name for name in straight[0]) == (changes["method"] == "guidedmix")
    assert_same(straight, state_of(tmp_path / "broken"))
    rows = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert results(tmp_path / "straight")["last"] == results(tmp_path / "broken")["last"]


def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_and_can_go_on(data: Path, tmp_path: Path, number: int) -> None:
    def stop_at_one(report: Report) -> None:
        if report.step == 1:
            os.kill(os.getpid(), number)

    config = tiny_config(data, tmp_path / "run", method="supervised", steps=4)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"stopped after step 2 of 4.*--resume"):
        train(config, on_report=stop_at_one)
    assert signal.getsignal(number) is before
    config.resume = True
    train(config)
    train(tiny_config(data, tmp_path / "straight", method="supervised", steps=4))
    assert_same(state_of(tmp_path / "straight"), state_of(tmp_path / "run"))


def test_resume_after_the_end_only_writes_the_results_again(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", method="supervised", steps=2)
    first = train(config)
    (tmp_path / "run" / "results.json").unlink()
    config.resume = True
    again = train(config)
    assert (again.miou, again.best) == (first.miou, first.best)
    assert (tmp_path / "run" / "results.json").is_file()


def test_other_settings_are_not_resumed(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", method="supervised", steps=2)
    train(config)
    with pytest.raises(ValueError, match=r"already holds a run: add --resume"):
        train(config)
    changed = tiny_config(data, tmp_path / "run", method="supervised", steps=2, lr=0.5, resume=True)
    with pytest.raises(ValueError, match=r"started with --lr 0\.001, now --lr is 0\.5") as caught:
        train(changed)
    assert "\n" not in str(caught.value)


# --- files -----------------------------------------------------------------------------------


def tiny_modules(value: float) -> dict[str, nn.Module]:
    net = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nn.init.constant_(net.weight, value)
    return {"method": net}


def test_weights_and_state_come_back(tmp_path: Path) -> None:
    state = {"optimizer": {"moment": torch.arange(3)}, "tally": {"best": (0.5, 3)}}
    path = save_checkpoint(tmp_path, 3, tiny_modules(2.0), state)
    files = sorted(p.name for p in path.iterdir())
    assert files == ["SHA256SUMS", "method.safetensors", "state.pt"]
    modules = tiny_modules(0.0)
    assert_same(load_checkpoint(path, modules), state)
    assert_same(dict(modules["method"].state_dict())["weight"], torch.full((3, 2, 3, 3), 2.0))


def test_a_checkpoint_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, flushed = os.fsync, set()

    def noted(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    path = save_checkpoint(tmp_path, 3, tiny_modules(2.0), {})
    folders = [] if os.name == "nt" else [path, tmp_path]  # Windows cannot open folders
    assert {found.stat().st_ino for found in (*path.iterdir(), *folders)} <= flushed


def test_only_the_newest_two_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, step, tiny_modules(step), {})
    assert [c.step for c in list_checkpoints(tmp_path)] == [9, 10]


@pytest.mark.parametrize("broken", ["save_file", "flush", "rename"])
def test_a_kill_while_writing_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    save_checkpoint(tmp_path, 1, tiny_modules(1.0), {"n": 1})

    def die(*args: Any, **rest: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        target = {
            "save_file": (module, "save_file"),
            "flush": (whole, "_flush"),
            "rename": (Path, "rename"),
        }[broken]
        patch.setattr(*target, die)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 2, tiny_modules(2.0), {"n": 2})
    (last,) = list_checkpoints(tmp_path)
    modules = tiny_modules(0.0)
    assert load_checkpoint(last.path, modules) == {"n": 1}
    assert dict(modules["method"].state_dict())["weight"].eq(1).all()
    save_checkpoint(tmp_path, 2, tiny_modules(2.0), {"n": 2})  # and the next try succeeds
    assert [c.step for c in list_checkpoints(tmp_path)] == [1, 2]
    assert not list(tmp_path.glob(".*"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, tiny_modules(1.0), {})
    with pytest.raises(ValueError, match="does not fit this network") as caught:
        load_checkpoint(path, {"method": nn.Linear(2, 2)})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_may_be_damaged_more_than_once(tmp_path: Path) -> None:
    modules: dict[str, nn.Module] = {"method": nn.Linear(2, 2)}
    save_checkpoint(tmp_path, 1, modules, {})
    for spoiled in (b"first", b"second"):
        path = save_checkpoint(tmp_path, 2, modules, {})
        (path / "state.pt").write_bytes(spoiled)
        found, notes = newest_checkpoint(tmp_path)
        assert found is not None and found.step == 1 and len(notes) == 1
    kept = tmp_path / "damaged-checkpoint-00000002"
    assert (kept / "state.pt").read_bytes() == b"second"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-00000001", kept.name]
