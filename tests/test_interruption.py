"""Whatever ends a training, at whatever moment, `--resume` ends where nothing had happened."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import kill_often
import pytest
import torch
from full_disk import largest_file
from safetensors.torch import load_file
from test_checkpoint import assert_same, state_of
from test_data_stream import same
from test_training import Regression, regression_batches
from tiny_data import tiny_config, words, write_data
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Tensor
from torch.utils.data import ConcatDataset

from gmix.builders.data import build_data, build_stream
from gmix.cli.main import main
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import write_yaml
from gmix.data import Batch, Cached, ImageDataset, ShardedImages, find_shards
from gmix.data.damaged import item_name
from gmix.errors import NonFinite
from gmix.methods import GuidedMix, Supervised
from gmix.methods.method import Step
from gmix.runs.checkpoint import list_checkpoints
from gmix.runs.reproduction import batch_names
from gmix.runs.results import Report
from gmix.runtime import atomic
from gmix.runtime.interrupts import Interrupts, leave_to_parent
from gmix.runtime.own import RECORD
from gmix.training import validation
from gmix.training.fit import fit
from gmix.training.nonfinite import Guard
from gmix.training.optim import poly
from gmix.training.replay import replay
from gmix.training.state import find_checkpoint
from gmix.training.train import train

Capture = pytest.CaptureFixture[str]


# Something to write nearly all the time.
QUICK: dict[str, Any] = {
    "steps": 8,
    "checkpoint_every": 2,
    "eval_every": 4,
    "keep_best": True,
}


# --- killed ----------------------------------------------------------------------------------


def everything(out: Path) -> dict[str, Any]:
    """All that a finished run leaves behind but for what takes time."""
    found: dict[str, Any] = {}
    last = list_checkpoints(out)[-1].path
    for folder in (last, out / "model", out / "best"):
        for file in folder.glob("*.safetensors"):
            found[f"{folder.name}/{file.name}"] = load_file(file)
    found["checkpoints"] = [checkpoint.step for checkpoint in list_checkpoints(out)]
    state = torch.load(last / "state.pt", weights_only=True)
    found["optimizer"] = state["optimizer"]
    found["tally"] = {name: state["tally"][name] for name in ("best", "image_passes", "skipped")}
    results = json.loads((out / "results.json").read_text())
    found["results"] = {name: results[name] for name in ("last", "best", "images", "split")}
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds_per_step", None)
        row.pop("images_per_second", None)
    found["metrics"] = rows
    found["remains"] = [path.name for path in out.glob(".*") if path.name != RECORD]
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks")
@pytest.mark.parametrize(
    ("kills", "changes", "holds"),
    [
        (
            8,
            {"method": "guidedmix", "method_args": {"adjustment": {}}, "decide_for": "miou"},
            ["teacher.net", "reference.keys", "reference.trust", "adjustment.pixels"],
        ),
        (6, {"method": "cps", "optimizer": "sgd"}, ["other.model"]),
        (6, {"method": "mean_teacher", "ema": 0.9, "accumulate": 2}, ["teacher.net"]),
    ],
    ids=["guidedmix", "cps", "ema"],
)
def test_a_run_killed_at_any_moment_ends_bit_equal(
    data: Path, tmp_path: Path, kills: int, changes: dict[str, Any], holds: list[str]
) -> None:
    often = {**QUICK, "steps": 4, "checkpoint_every": 1, "eval_every": 2, **changes}
    ended = forked.run(kill_often.main, tmp_path, data, kills, kills, often)
    assert ended.codes == [0], ended.err
    done = json.loads((tmp_path / "kills.json").read_text())
    assert len(done) == kills
    kinds = [kill["kind"] for kill in done]
    assert min(kinds.count(kind) for kind in ("call", "write", "save")) > 0
    expected = everything(tmp_path / "straight")
    names = [*expected["checkpoint-00000004/method.safetensors"]]
    assert all(any(part in name for name in names) for part in holds)
    assert ("checkpoint-00000004/average.safetensors" in expected) == ("ema" in changes)
    assert expected["metrics"][-1]["step"] == 4 and expected["remains"] == []
    runs = {kill["run"] for kill in done}
    for run in runs:
        assert_same(everything(tmp_path / str(run)), expected)


# --- asked to stop ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_exits_with_0_and_says_how_to_go_on(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    signals = [number]  # a second one would end the process

    def due(step: int, every: int) -> bool:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return False

    config = tiny_config(data, tmp_path / "out", **QUICK, method="supervised")
    with monkeypatch.context() as patch:
        patch.setattr("gmix.training.train.due", due)
        assert main(["train", *words(config)]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    line = (
        "stopped after step 2 of 8, everything is saved: repeat the command with --resume to go on"
    )
    assert said == line
    assert main(["train", *words(config), "--resume"]) == 0
    assert main(["train", *words(replace(config, out=str(tmp_path / "straight")))]) == 0
    assert_same(state_of(tmp_path / "out"), state_of(tmp_path / "straight"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_is_for_whoever_was_there_before(number: int) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts() as interrupts:
        assert not interrupts.asked
        signal.raise_signal(number)
        assert interrupts.asked
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_can_train_but_hears_no_signal() -> None:
    def asked() -> bool:
        with Interrupts() as interrupts:
            return interrupts.asked

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asked).result() is False


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="nothing tells who sent a signal")
def test_loader_processes_outlive_the_signal_of_a_scheduler(data: Path, tmp_path: Path) -> None:
    """Schedulers and terminals send it to every process of a job."""
    config = tiny_config(
        data, tmp_path / "out", **{**QUICK, "steps": 100000, "eval_every": 0}, workers=1
    )
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    process = forked.start(main, ["train", *words(config)], out=out, err=err)
    try:
        metrics = tmp_path / "out" / "metrics.jsonl"
        while process.is_alive() and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.05)
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGTERM)
        process.join()
    finally:
        process.kill()
    said, complaint = (path.read_text(encoding="utf-8") for path in (out, err))
    assert (process.exitcode, complaint) == (0, "")
    assert said.splitlines()[-1].endswith("repeat the command with --resume to go on")
    step = list_checkpoints(tmp_path / "out")[-1].step
    assert f"stopped after step {step} of 100000" in said


def test_loader_processes_do_not_heed_ctrl_c() -> None:
    numbers = [*{signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}]  # Windows has no SIGHUP
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        leave_to_parent(0)
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_loader_processes_end_with_a_parent_that_forgot_them() -> None:
    """At its end it sends them a SIGTERM and waits."""
    program = """
from torch.utils.data import DataLoader
from gmix.runtime.interrupts import leave_to_parent

kept = iter(DataLoader(range(8), num_workers=1, worker_init_fn=leave_to_parent))
next(kept)
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=300)


# --- nothing can be written ------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["safetensors", "torch"])
def test_a_disk_that_is_full_leaves_the_last_checkpoint(
    data: Path, tmp_path: Path, share: float
) -> None:
    out = tmp_path / "out"
    config = tiny_config(
        data, out, **{**QUICK, "eval_every": 0, "keep_best": False}, method="supervised"
    )
    full: list[Any] = []

    def fill(report: Report) -> None:
        if report.step == 2:
            size = (out / "checkpoint-00000002" / "method.safetensors").stat().st_size
            full.append(largest_file(int(share * size)))
            full[0].__enter__()

    try:
        with pytest.raises(ValueError, match=r"cannot write .*File too large") as caught:
            train(config, on_report=fill)
    finally:
        full[0].__exit__(None, None, None)
    message = str(caught.value)
    assert message.startswith(f"cannot write {out / 'checkpoint-00000004'}: ")
    assert message.endswith("; checkpoint-00000002 stays, to go on from with --resume")
    assert "\n" not in message
    assert sorted(path.name for path in out.iterdir()) == [
        RECORD,
        "checkpoint-00000002",
        "config.yaml",
        "metrics.jsonl",
    ]
    train(replace(config, resume=True))
    train(replace(config, out=str(tmp_path / "straight")))
    assert_same(state_of(out), state_of(tmp_path / "straight"))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "results.json", "model", "best"])
def test_whatever_cannot_be_written_is_named(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(path: Path, *args: Any, **rest: Any) -> Any:
        if path.name == name or path.match(aside):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *args, **rest)

    aside = f".*.gmix-part{Path(name).suffix}" if "." in name else f".{name}.gmix-part"
    out = tmp_path / "out"
    attribute = {"metrics.jsonl": "open", "model": "mkdir", "best": "mkdir"}.get(name, "write_text")
    original = getattr(Path, attribute)
    config = tiny_config(data, out, **{**QUICK, "steps": 2}, method="supervised")
    with monkeypatch.context() as patch:
        patch.setattr(Path, attribute, refuse)
        assert main(["train", *words(config)]) == 1
    reason = os.strerror(errno.ENOSPC)
    more = "; stopped after step 2 of 2, everything is saved: mend that, and repeat the command with --resume"
    said = f"cannot write {out / name}: {reason}{more if name == 'best' else ''}"
    assert capsys.readouterr().err == f"gmix: {said}\n"
    assert {path.name for path in out.glob(".*")} <= {RECORD}


def test_a_folder_that_is_read_only_is_found_out_before_any_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(ValueError, match=r"cannot write into .*file is a file; choose another"):
            train(tiny_config(data / "missing", tmp_path / name))
    wanted = os.W_OK | os.X_OK  # asked of a stand-in, as tests may run as root
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, wanted))
    with pytest.raises(ValueError, match=r"cannot write into \S+new/run: \S+ is read-only; choose"):
        train(tiny_config(data / "missing", tmp_path / "new" / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyError("bug"), KeyboardInterrupt()]
)
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a.txt").write_text("before")
    expected = ValueError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, atomic.atomic_write(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise error
    if expected is ValueError:
        assert str(caught.value) == f"cannot write {tmp_path / 'a.txt'}: full"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "before")]
    atomic.atomic_write_text(tmp_path / "a.txt", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "after")]


def test_a_write_protected_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming another file onto it would need no leave but that of the folder."""
    final = tmp_path / "mine.txt"
    final.write_text("mine")
    with monkeypatch.context() as patch:  # tests may run as root, who may write everything
        patch.setattr(os, "access", lambda path, mode: path != final)
        with pytest.raises(ValueError, match=r"cannot write \S+mine\.txt: Permission denied"):
            atomic.atomic_write_text(final, "theirs")
        assert final.read_text() == "mine"
        # But in a folder that takes no other file, one that may be written is.
        patch.setattr(os, "access", lambda path, mode: path != tmp_path)
        patch.setattr(Path, "replace", None)
        atomic.atomic_write_text(final, "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mine.txt", "new")]


def test_what_a_killed_process_left_of_a_file_is_written_over(tmp_path: Path) -> None:
    final = tmp_path / ("long" * 63)  # no name can be longer
    with atomic.atomic_write(final) as aside:
        aside.write_text("all")
    aside.write_text("half")  # as by a process that was killed
    atomic.atomic_write_text(final, "again")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(final.name, "again")]


def test_a_file_that_cannot_be_read_is_not_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.atomic_write(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()


@pytest.mark.parametrize("flush", [True, False])
def test_a_file_is_on_the_disk_before_and_after_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush: bool
) -> None:
    flushed: list[tuple[str, bool]] = []

    def note(path: Path) -> None:
        what = "folder" if path == tmp_path else path.read_text()
        flushed.append((what, (tmp_path / "a.txt").exists()))

    monkeypatch.setattr(atomic, "_flush", note)
    with atomic.atomic_write(tmp_path / "a.txt", flush=flush) as aside:
        aside.write_text("text")
    assert flushed == ([("text", False), ("folder", True)] if flush else [])


def test_a_folder_that_cannot_be_written_leaves_nothing_and_says_what_the_system_said(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(ValueError, match=r"cannot write \S+model: full$"),
        atomic.atomic_folder(tmp_path / "model") as aside,
    ):
        (aside / "weights").write_text("half")
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as torch does
    assert not list(tmp_path.iterdir())


def test_what_an_earlier_removal_left_is_removed_too(tmp_path: Path) -> None:
    for name in ("old", ".old.gmix-gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    atomic.remove_folder(tmp_path / "old")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    for text in ("first", "second"):
        atomic.atomic_write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == text
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic.atomic_write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    with pytest.raises(ValueError, match=r"cannot write \S+: Is a directory"):
        atomic.atomic_write_text(tmp_path, "text")


def test_a_folder_replaced_half_way_is_put_right(tmp_path: Path) -> None:
    def content() -> dict[str, str]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path.relative_to(tmp_path).as_posix(): path.read_text() for path in files}

    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    put(".bashrc.old", "mine")
    put("model/weights", "first")
    put("model/notes", "mine")
    mine = {".bashrc.old": "mine", "model/notes": "mine"}
    # Killed between two renames: the first one comes back.
    (tmp_path / "model").rename(tmp_path / ".model.gmix-old")
    put(".model.gmix-part/weights", "second")
    put(".checkpoint-00000002.gmix-gone/state.pt", "")
    put(".results.json.gmix-part", "")
    put(".0123abcd.gmix-part.json", "")
    atomic.remove_stale(tmp_path)
    assert content() == {**mine, "model/weights": "first"}
    # Killed after both: the second one stays, and what is not the library's with it.
    (tmp_path / "model").rename(tmp_path / ".model.gmix-old")
    put("model/weights", "second")
    atomic.remove_stale(tmp_path)
    assert content() == {**mine, "model/weights": "second"}
    with atomic.atomic_folder(tmp_path / "model") as aside:
        (aside / "weights").write_text("third")
    assert content() == {**mine, "model/weights": "third"}
    assert not list(tmp_path.glob(".model*"))


# --- checkpoints that are not what they were -------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FOUR: dict[str, Any] = {"method": "supervised", "steps": 4, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def two_checkpoints(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config(data, tmp_path_factory.mktemp("two") / "out", **FOUR, keep_last=2)).out


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("method.safetensors", cut, "method.safetensors is not as it was written"),
        ("method.safetensors", flip, "method.safetensors is not as it was written"),
        ("method.safetensors", Path.unlink, "method.safetensors: No such file or directory"),
        ("state.pt", blank, "state.pt is not as it was written"),
        ("SHA256SUMS", lambda path: os.truncate(path, 0), "SHA256SUMS is cut short"),
        ("SHA256SUMS", blank, "SHA256SUMS cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_aloud(
    data: Path,
    two_checkpoints: Path,
    tmp_path: Path,
    capsys: Capture,
    name: str,
    spoil: Callable[[Path], Any],
    reason: str,
) -> None:
    out = Path(shutil.copytree(two_checkpoints, tmp_path / "out"))
    spoil(out / "checkpoint-00000004" / name)
    capsys.readouterr()
    config = tiny_config(data, out, **FOUR, keep_last=1, resume=True)
    train(config)
    said = capsys.readouterr().out
    assert f"checkpoint-00000004 is damaged ({reason}) and set aside" in said
    assert "going on after step 2" in said
    assert_same(state_of(out), state_of(two_checkpoints))
    folders = sorted(path.name for path in out.glob("*checkpoint*"))
    assert folders == ["checkpoint-00000004", "damaged-checkpoint-00000004"]
    (out / "checkpoint-00000004" / "state.pt").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .*start anew") as caught:
        train(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [{"arch": "Linknet", "model_args": {"encoder_depth": 3}}, {"method": "cps"}, {"ema": 0.5}],
    ids=["architecture", "method", "average"],
)
def test_the_checkpoint_of_another_training_is_refused(
    data: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {**QUICK, "steps": 2, "eval_every": 0, "keep_best": False}
    settings = {**settings, "method": "supervised"}
    config = tiny_config(data, tmp_path / "out", **settings)
    train(config)
    train(tiny_config(data, tmp_path / "other", **{**settings, **other}))
    mine, foreign = (tmp_path / name / "checkpoint-00000002" for name in ("out", "other"))
    if "ema" in other:  # mine lacks what theirs has
        config, mine, foreign = replace(config, ema=0.5), foreign, mine
        config.out = str(tmp_path / "other")
    for path in mine.iterdir():
        path.unlink()
    for path in foreign.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"the checkpoint \S+ does not fit this \w+: ") as caught:
        train(replace(config, resume=True))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert mine.is_dir()


@pytest.mark.parametrize("name", ["results.json", "model"])
def test_what_is_left_of_a_finished_run_is_not_written_over(tmp_path: Path, name: str) -> None:
    config = TrainConfig(out=str(tmp_path), resume=True)
    path = tmp_path / name  # a name that others use, too
    path.touch() if path.suffix else path.mkdir()
    assert find_checkpoint(config, tmp_path) == (None, [])
    write_yaml(config, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="holds a finished run whose checkpoints are gone"):
        find_checkpoint(config, tmp_path)


def test_other_images_are_said_once(tmp_path: Path, capsys: Capture) -> None:
    data = write_data(tmp_path / "data")
    settings: dict[str, Any] = {**QUICK, "steps": 2, "eval_every": 0, "keep_best": False}
    config = tiny_config(data, tmp_path / "out", **settings, method="supervised")

    def go_on(steps: int) -> tuple[str, list[str]]:
        """The split of the results, and what is said of it."""
        config_file = tmp_path / "out" / "config.yaml"
        if config_file.exists():  # as if it had always been a longer one
            config_file.write_text(
                config_file.read_text().replace(f"steps: {steps - 2}", f"steps: {steps}")
            )
        train(replace(config, steps=steps, resume=True))
        said = capsys.readouterr().out.splitlines()
        split = json.loads((tmp_path / "out" / "results.json").read_text())["split"]
        return split, [line for line in said if "the images are not those" in line]

    before, said = go_on(2)
    assert said == []
    (data / "masks" / "01.png").unlink()
    now, said = go_on(4)
    (line,) = said
    assert line.startswith(
        f"the images are not those it was trained on so far (split {before}, now {now}): "
    )
    assert go_on(6) == (now, [])


# --- what is kept ----------------------------------------------------------------------------


def test_as_many_checkpoints_stay_as_asked_for(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**QUICK, "steps": 5, "checkpoint_every": 1, "eval_every": 0}
    settings = {**settings, "method": "supervised", "keep_best": False}
    config = tiny_config(data, tmp_path / "out", **settings, keep_last=3)
    train(config)
    assert [c.step for c in list_checkpoints(tmp_path / "out")] == [3, 4, 5]
    train(replace(config, resume=True, keep_last=1))
    assert [c.step for c in list_checkpoints(tmp_path / "out")] == [5]
    with pytest.raises(ValueError, match="--keep-last must be at least 1, got 0"):
        replace(config, keep_last=0)


def test_the_best_model_is_kept_and_can_be_scored(
    data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three validations is made the best: what is kept must be its weights."""
    seen: list[dict[str, Tensor]] = []
    mious: list[float] = []
    original = validation.count_pixels

    def counted(net: Any, *args: Any, **rest: Any) -> Any:
        seen.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        return original(net, *args, **rest)

    def scored(matrix: Any) -> Any:
        found = matrix.scores()
        mious.append(found.miou)
        claimed = replace(found, miou=[0.1, 0.9, 0.2][len(seen) - 1])
        return SimpleNamespace(scores=lambda: claimed)

    monkeypatch.setattr(validation, "count_pixels", counted)
    monkeypatch.setattr(validation, "add_other_processes", scored)
    out = tmp_path / "out"
    settings = {**QUICK, "steps": 3, "eval_every": 1, "lr": 0.05}
    result = train(tiny_config(data, out, **settings, method="supervised"))
    assert result.best == (0.9, 2)
    kept = load_file(out / "best" / "model.safetensors")
    assert_same(kept, {name: seen[1][f"model.{name}"] for name in kept})
    weight = next(name for name in kept if name.endswith("conv1.0.weight"))
    assert not torch.equal(kept[weight], seen[2][f"model.{weight}"])
    argv = ["evaluate", "--model", str(out / "best"), "--device", "cpu", "--threads", "1"]
    assert main([*argv, "--out", str(tmp_path / "scores.json")]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())["miou"]
    assert found == pytest.approx(mious[1], abs=1e-6)


def test_the_best_of_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, **QUICK, val_images=None, val_masks=None)
    with pytest.raises(ValueError, match="--keep-best needs validation images"):
        train(config)
    assert not list(tmp_path.iterdir())


# --- not finite ------------------------------------------------------------------------------


class Spoiled(Supervised):
    """Sees infinite images at some steps: statistics and weights are not numbers from then on."""

    bad: tuple[int, ...] = ()
    steps = 8
    gradient_alone = False

    def losses(self, step: Step) -> dict[str, Tensor]:
        if 1 + round(step.progress * self.steps) not in self.bad:
            return super().losses(step)
        if not self.gradient_alone:
            return super().losses(step._replace(x_labeled=step.x_labeled * math.inf))
        found = super().losses(step)
        nothing = 0 * next(self.net.model.decoder.parameters()).sum()
        return {**found, "total": found["total"] + nothing.sqrt()}  # 0, rising infinitely fast


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def at(*steps: int) -> None:
        monkeypatch.setattr(Spoiled, "bad", steps)
        monkeypatch.setattr(
            "gmix.training.state.build_method", lambda config, net, *_: Spoiled(net)
        )

    return at


def spoiled_config(data: Path, out: Path, **changes: Any) -> Any:
    settings = {**QUICK, "log_every": 4, "eval_every": 0, "keep_best": False}
    return tiny_config(data, out, **{**settings, "method": "supervised", **changes})


@pytest.mark.parametrize("every", [0, 2])
def test_a_step_that_is_not_finite_can_be_replayed(
    data: Path, tmp_path: Path, spoil: Callable[..., None], every: int
) -> None:
    """It is found at step 4 or 8, when the weights are spoiled; the newest checkpoint is older."""
    spoil(3, 7) if every == 0 else spoil(7)
    step, start = (3, None) if every == 0 else (7, 6)
    config = spoiled_config(data, tmp_path / "out", checkpoint_every=every)
    with pytest.raises(FloatingPointError) as caught:
        train(config)
    message = str(caught.value)
    assert message.startswith(f"the loss is not finite at step {step} (")
    assert "total = nan" in message and "\n" not in message
    stream = build_stream(config, build_data(config), (0.5,) * 3, (0.5,) * 3)
    labeled = [Path(item_name(stream.labeled, i)).name for i in stream.indices(step - 1)[0]]
    assert f"; labeled images: {', '.join(labeled)}; unlabeled: none; saved in " in message
    folder = tmp_path / "out" / f"nonfinite-{step:08d}"
    assert str(folder) in message and "--skip-nonfinite N" in message
    assert [c.step for c in list_checkpoints(folder)] == ([] if start is None else [start])
    readme = (folder / "README.md").read_text()
    for name in labeled:
        assert f"- {data / 'images' / name}\n" in readme
    batch = load_file(folder / "batch.safetensors")
    assert same(stream[step - 1], Batch(batch["x_labeled"], batch["y_labeled"]))
    with pytest.raises(NonFinite, match=rf"step {step} \(.*total = nan"):
        replay(folder)
    spoil()  # what was wrong is put right: the replay is the step of a healthy run
    healthy = spoiled_config(data, tmp_path / "healthy", log_every=1)
    reports: list[Report] = []
    train(healthy, on_report=reports.append)
    assert replay(folder) == reports[step - 1].losses


def test_steps_can_be_left_out_and_the_rest_is_untouched(
    data: Path, tmp_path: Path, spoil: Callable[..., None], capsys: Capture
) -> None:
    spoil(3, 6)
    config = spoiled_config(data, tmp_path / "out", skip_nonfinite=2, log_every=1)
    train(config)
    said = capsys.readouterr().out
    assert "left out: the loss is not finite at step 3 (" in said
    assert "left out: the loss is not finite at step 6 (" in said
    out = tmp_path / "out"
    assert json.loads((out / "results.json").read_text())["skipped_steps"] == [3, 6]
    weights, _ = state_of(out)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["losses"] == {} for row in rows if "losses" in row] == [
        s in (3, 6) for s in range(1, 9)
    ]
    # The first is saved, with the very weights it met.
    (folder,) = out.glob("nonfinite-*")
    assert folder.name == "nonfinite-00000003"
    assert list_checkpoints(folder)[-1].step == 2
    with pytest.raises(NonFinite, match="step 3"):
        replay(folder)


def test_skipped_steps_are_counted_across_restarts(
    data: Path, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil(3, 6)
    config = spoiled_config(data, tmp_path / "out", skip_nonfinite=1, log_every=1)
    for again in (False, True):  # the second time from step 4 on
        with pytest.raises(FloatingPointError, match=r"not finite at step 6 .*nonfinite-00000006"):
            train(replace(config, resume=again))
    folder = tmp_path / "out" / "nonfinite-00000006"
    assert list_checkpoints(folder)[-1].step == 5
    train(replace(config, resume=True, skip_nonfinite=2))
    train(replace(config, out=str(tmp_path / "straight"), skip_nonfinite=5))
    assert_same(state_of(tmp_path / "out"), state_of(tmp_path / "straight"))


def test_a_guard_that_has_nothing_to_do_changes_nothing(data: Path, tmp_path: Path) -> None:
    states = []
    for skip in (0, 3):
        config = spoiled_config(data, tmp_path / str(skip), method="guidedmix", steps=3)
        train(replace(config, skip_nonfinite=skip))
        states.append(state_of(tmp_path / str(skip)))
    assert_same(*states)


def test_a_skipped_step_of_guidedmix_leaves_no_trace() -> None:
    method = GuidedMix(tiny_net(), adjustment={})
    guard = Guard(1, [], lambda bad: None)
    x, y, u = tiny_batch()
    method.train()
    for spoiled in (False, True):
        with torch.no_grad():
            for p in method.net.parameters():
                p += 0.01  # so that the teacher has a way to go
        guard.remember(method)
        before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        losses = method(x * (math.inf if spoiled else 1), y, u, progress=1.0, generator=seeded())
        losses["total"].backward()
        changed = [n for n, t in method.state_dict().items() if not torch.equal(t, before[n])]
        assert any("running_mean" in name for name in changed)
        assert any(re.match(r"teacher\.net\..*conv.*weight", name) for name in changed)
        assert {"teacher.step", "adjustment.pixels"} <= set(changed)
        found = {name: loss.detach() for name, loss in losses.items()}
        assert guard.passes(1, found, method) != spoiled
    assert_same(dict(method.state_dict()), before)
    with pytest.raises(NonFinite, match=r"step 2 \(.*gradient = nan"):
        guard.passes(2, found, method)


def test_fit_with_a_guard_is_the_plain_loop_without_those_steps() -> None:
    torch.manual_seed(0)
    method = Regression(spoil_at=3)
    start = method.net.weight.item()
    optimizer = torch.optim.SGD([{"params": method.parameters(), "initial_lr": 0.1}], lr=0.1)
    told: list[NonFinite] = []
    guard = Guard(1, [], told.append)
    reports = list(
        fit(
            method,
            regression_batches(),
            optimizer,
            steps=5,
            guard=guard,
            report_when=lambda step: True,
        )
    )
    weight = start
    for t in (0, 1, 3, 4):
        weight -= 0.1 * poly(t, 5) * 2 * (weight - t)
    assert method.net.weight.item() == pytest.approx(weight, rel=1e-5)
    assert [report.losses == {} for report in reports] == [False, False, True, False, False]
    assert [bad.step for bad in told] == guard.skipped == [3]


def test_spoiled_weights_are_not_saved(
    data: Path, tmp_path: Path, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is finite may have a gradient that is not."""
    spoil(4)
    monkeypatch.setattr(Spoiled, "gradient_alone", True)
    config = spoiled_config(data, tmp_path / "out")
    with pytest.raises(FloatingPointError, match=r"weights are not finite after step 4.*no check"):
        train(config)
    assert [c.step for c in list_checkpoints(tmp_path / "out")] == [2]
    train(replace(config, resume=True, skip_nonfinite=1))
    assert all(tensor.isfinite().all() for tensor in state_of(tmp_path / "out")[0].values())
    with pytest.raises(NonFinite, match=r"step 4 \(.*gradient = (nan|inf)"):
        replay(tmp_path / "out" / "nonfinite-00000004")


def test_images_are_named_wherever_they_come_from(data: Path, tmp_path: Path) -> None:
    import tarfile

    paths = sorted((data / "images").iterdir())
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for path in paths[2:4]:
            archive.add(path, path.name)
    shards = ShardedImages(find_shards(tmp_path))
    pool: Any = ConcatDataset([ImageDataset(paths[:2]), shards])
    for dataset in (pool, Cached(pool)):
        names = [item_name(dataset, index) for index in range(4)]
        assert names[:2] == list(map(str, paths[:2]))
        assert names[2:] == [shards.name(0), shards.name(1)]
    assert f"1 at byte {shards._places[1][1]} of {tmp_path / '0.tar'}" == names[3]
    assert item_name([1, 2], 1) == "image 1"


def test_the_images_of_a_step_are_named_in_both_streams(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "out")
    stream: Any = build_stream(config, build_data(config), (0.5,) * 3, (0.5,) * 3)
    labeled, unlabeled = stream.indices(2)
    assert batch_names(stream, 3) == (
        [str(stream.labeled.images[i]) for i in labeled],
        [str(stream.unlabeled.images[i]) for i in unlabeled],
    )
