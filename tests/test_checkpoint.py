"""Checkpoints are whole or absent, and a resumed run ends where an unbroken one does."""

import copy
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_data import tiny_config
from torch import nn

from gmix.runs import checkpoint as module
from gmix.runs.checkpoint import (
    Checkpoint,
    damage,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from gmix.runs.results import Report
from gmix.runtime import atomic
from gmix.runtime.tensorfile import load_plain
from gmix.training.optim import build_optimizer, fitting_state
from gmix.training.state import TrainingState, build_state, restore
from gmix.training.train import train


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
        {"method": "guidedmix", "channels_last": True, "mitrans": True, "workers": 1},
    ],
    ids=["supervised", "mitrans"],
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
            "flush": (atomic, "_flush"),
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


# --- checkpoints of others ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, to copy."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_config(data, out, method="supervised", steps=2, ema=0.9))
    return out


@pytest.fixture(scope="module")
def untouched(data: Path, finished: Path) -> TrainingState:
    """What a training starts with; no test that asks for it may change it."""
    config = tiny_config(data, finished, method="supervised", ema=0.9)
    return build_state(config, 3, torch.device("cpu"))


def assert_refused(parts: TrainingState, path: Path, why: str) -> None:
    """The last checkpoint of a copied run does not fit, and nothing has moved."""
    (checkpoint,) = list_checkpoints(path)
    before = copy.deepcopy((parts.method.state_dict(), parts.optimizer.state_dict(), parts.tally))
    with pytest.raises(ValueError, match=rf"the checkpoint .* does not fit this .*{why}") as caught:
        restore(parts, checkpoint, torch.device("cpu"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert_same(dict(before[0]), dict(parts.method.state_dict()))
    assert_same(before[1:], (parts.optimizer.state_dict(), parts.tally))


State = dict[str, Any]


def other_size(state: State) -> None:
    """More elements than the parameter has: torch's fused step would read on behind it."""
    entries = state["optimizer"]["state"][0]
    entries["exp_avg"] = torch.zeros(10_000)


def one_element_for_all(state: State) -> None:
    entries = state["optimizer"]["state"][0]
    entries["exp_avg"] = torch.zeros(1).expand(9, *entries["exp_avg"].shape[1:])


def edited(*keys: Any, value: Any) -> Any:
    """A change of one entry of the state; `...` in place of a value removes it."""

    def change(state: State) -> None:
        *way, last = keys
        for key in way:
            state = state[key]
        if value is ...:
            del state[last]
        else:
            state[last] = value

    return change


FIRST = ("optimizer", "state", 0)
BROKEN = {
    "size": (other_size, r"exp_avg of parameter 0 must have the shape .*, got .10000"),
    "expanded": (one_element_for_all, r"exp_avg of parameter 0 must have the shape"),
    "step": (
        edited(*FIRST, "step", value=torch.zeros(3)),
        r"step of .* must have the shape \(\), got \(3,\)",
    ),
    "whole": (edited(*FIRST, "exp_avg", value=torch.zeros(32, 3, 3, 3).long()), "no tensor of"),
    "sparse": (
        edited(*FIRST, "exp_avg", value=torch.zeros(32, 3, 3, 3).to_sparse()),
        "no tensor of numbers",
    ),
    "meta": (
        edited(*FIRST, "exp_avg", value=torch.zeros(32, 3, 3, 3, device="meta")),
        "no tensor of numbers",
    ),
    "number": (edited(*FIRST, "exp_avg", value=0.5), "exp_avg of parameter 0 is no tensor"),
    "names": (
        edited(*FIRST, "exp_avg", value=...),
        r"must be \['exp_avg', 'exp_avg_sq', 'step'\], got \['exp_avg_sq', 'step'\]",
    ),
    "list": (edited(*FIRST, value=[1]), r"the state of parameter 0 must be .* got \[1\]"),
    "index": (edited("optimizer", "state", 9999, value={}), "a state of parameter 9999 of"),
    "word": (edited("optimizer", "state", "a", value={}), "a state of parameter a of"),
    "optimizer": (edited("optimizer", value=...), "no state of an optimizer"),
    "text": (edited("optimizer", value="adamw"), "no state of an optimizer"),
    "states": (edited("optimizer", "state", value=[]), "no state of an optimizer"),
    "tally": (edited("tally", value=...), "expected a mapping, got None"),
    "best": (edited("tally", "best", value="good"), "best must be .*, got 'good'"),
    "skipped": (edited("tally", "skipped", value=3), r"skipped must be list\[int\], got 3"),
    "seconds": (edited("tally", "seconds", value=None), "seconds must be float, got None"),
    "later": (edited("step", value=7), "it was written after step 7: give its folder that name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_state_that_does_not_fit_moves_nothing(
    finished: Path, untouched: TrainingState, tmp_path: Path, name: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    change, why = BROKEN[name]
    (path,) = tmp_path.glob("run/*/state.pt")
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    assert_refused(untouched, tmp_path / "run", why)


def copied(data: Path, finished: Path, tmp_path: Path) -> tuple[Any, TrainingState, Checkpoint]:
    """The finished run's settings, its parts as they start, and its last checkpoint."""
    shutil.copytree(finished, tmp_path / "run")
    config = tiny_config(data, tmp_path / "run", method="supervised", steps=2, ema=0.9, resume=True)
    parts = build_state(config, 3, torch.device("cpu"))
    return config, parts, list_checkpoints(tmp_path / "run")[-1]


def test_only_tensors_are_taken_from_the_state_of_an_optimizer(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    """What a file says of rates and hooks is not followed, and elements do not overlap."""
    _, parts, checkpoint = copied(data, finished, tmp_path)
    path = checkpoint.path / "state.pt"
    state = torch.load(path, weights_only=True)
    expected = copy.deepcopy(state["optimizer"]["state"])
    for group in state["optimizer"]["param_groups"]:
        group.update(lr="much", betas=None, foreach=7)
    entries = state["optimizer"]["state"][0]
    entries["exp_avg"] = torch.nn.Parameter(entries["exp_avg"])
    entries["exp_avg_sq"] = torch.zeros(1).expand(entries["exp_avg_sq"].shape)
    expected[0]["exp_avg_sq"] = torch.zeros(entries["exp_avg_sq"].shape)
    torch.save(state, path)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in parts.optimizer.param_groups]
    restore(parts, checkpoint, torch.device("cpu"))
    assert_same(parts.optimizer.state_dict()["state"], expected)
    for before, group in zip(groups, parts.optimizer.param_groups, strict=True):
        assert {name: group[name] for name in before} == before
    assert not any(v.requires_grad for v in parts.optimizer.state_dict()["state"][0].values())
    for parameter in parts.method.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    parts.optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_state_of_each_optimizer_fits_itself(name: Literal["sgd", "adamw"]) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = build_optimizer(net.parameters(), net[0], name=name)
    net[0](torch.ones(1, 3)).sum().backward()  # the second layer has no state yet
    optimizer.step()
    saved = optimizer.state_dict()
    assert_same(fitting_state(optimizer, saved), saved)
    assert sorted(saved["state"]) == [0, 1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: {k: v for k, v in state.items() if "bias" not in k}, "are missing"),
        (lambda state: {**state, "more": torch.zeros(1)}, r"1 are unexpected \(first: more\)"),
        (
            lambda state: {k: v[None] for k, v in state.items()},
            r"must be .* of shape \(\), got I64 of shape \(1,\)",
        ),
        (lambda state: {k: v.long() for k, v in state.items()}, "must be torch.float32 .* got I64"),
    ],
    ids=["missing", "more", "shapes", "types"],
)
def test_weights_that_do_not_fit_move_nothing(
    finished: Path, untouched: TrainingState, tmp_path: Path, change: Any, why: str
) -> None:
    """The average's are the last to be loaded; the others' must not have moved by then."""
    shutil.copytree(finished, tmp_path / "run")
    (path,) = tmp_path.glob("run/*/average.safetensors")
    save_file(change(load_file(path)), path)
    assert_refused(
        untouched, tmp_path / "run", f"average.safetensors is of another network: .*{why}"
    )


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/dev/zero", "SHA256SUMS names '/dev/zero', which is not in this folder"),
        ("../other/state.pt", "SHA256SUMS names '../other/state.pt', which is not in this folder"),
        ("..", ".. is no file"),
        ("pipe", "pipe is no file"),
        ("link", "link is no file"),
        ("gone", "gone: No such file or directory"),
    ],
)
def test_sums_lead_to_files_of_the_folder_alone(tmp_path: Path, name: str, why: str) -> None:
    path = save_checkpoint(tmp_path, 1, tiny_modules(1.0), {})
    os.mkfifo(path / "pipe")
    (path / "link").symlink_to("/dev/zero")
    with (path / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match=re.escape(why)):
        newest_checkpoint(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
@pytest.mark.parametrize("name", ["SHA256SUMS", "state.pt", "method.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, 1, tiny_modules(1.0), {})
    (path / name).unlink()
    os.mkfifo(path / name)
    assert damage(path) in (f"{name} is no file", "SHA256SUMS cannot be read")
    with pytest.raises(ValueError, match="no checkpoint in"):
        newest_checkpoint(tmp_path)


def test_weights_that_no_sum_covers_are_not_trusted(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, tiny_modules(1.0), {})
    lines = (path / "SHA256SUMS").read_text().splitlines(keepends=True)
    (path / "SHA256SUMS").write_text("".join(line for line in lines if "method" not in line))
    assert damage(path) == "SHA256SUMS is cut short"


def test_a_compressed_state_is_not_unpacked(tmp_path: Path) -> None:
    """A thousandth of its size on the disk would do to fill the memory."""
    path = tmp_path / "state.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "small.pt", "w", 8) as small:
        for entry in plain.namelist():
            small.writestr(entry, plain.read(entry))
    assert load_plain(path)["a"].eq(0).all()
    with pytest.raises(ValueError, match=r"it is compressed, which torch\.save never does"):
        load_plain(tmp_path / "small.pt")


def test_a_file_called_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-00000007").write_text("notes")
    assert newest_checkpoint(tmp_path) == (None, [])
