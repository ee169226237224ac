"""Batches on their way from loader processes, and what becomes of a training when one does not come."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_checkpoint import assert_same, state_of
from test_data_stream import build, same
from test_interruption import QUICK, everything
from tiny_data import tiny_config, write_data
from torch import Tensor
from torchvision.transforms import v2

from gmix.builders import loading
from gmix.builders.data import build_data, build_stream
from gmix.builders.loading import Loader, batch_bytes, pack, shortage
from gmix.config.train_config import TrainConfig
from gmix.data import TwoStream
from gmix.data.damaged import Readable, item_name, left_out
from gmix.errors import BatchError, Interrupted
from gmix.runs.checkpoint import list_checkpoints
from gmix.runs.results import Report
from gmix.runtime.distributed import DistributedProcesses
from gmix.runtime.interrupts import Interrupts
from gmix.training.train import train

CPU = torch.device("cpu")
HALF = (0.5,) * 3
SMALL: dict[str, Any] = {**QUICK, "keep_best": False, "eval_every": 0, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def data(shared: Path, tmp_path: Path) -> Path:
    """Files that a test may spoil."""
    return Path(shutil.copytree(shared, tmp_path / "data"))


@pytest.fixture(scope="module")
def straight(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a supervised training is in the end to which nothing happens."""
    out = tmp_path_factory.mktemp("straight")
    train(tiny_config(shared, out, **SMALL, method="supervised"))
    return state_of(out)


# --- on the way ------------------------------------------------------------------------------


def any_transform(image: Any, mask: Any) -> Any:
    both = v2.Compose([v2.RandomCrop((8, 8)), v2.ToDtype(torch.float32, scale=True)])
    return both(image, mask)


@pytest.mark.parametrize("free", [0, math.inf], ids=["pipe", "shared memory"])
@pytest.mark.parametrize("transform", [None, any_transform], ids=["own", "torchvision"])
def test_batches_of_loader_processes_are_the_stream_s_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, free: float, transform: Any
) -> None:
    monkeypatch.setattr(loading, "free_shared_memory", lambda: free)
    both = {"labeled_transform": transform, "unlabeled_transform": transform}
    stream = build(**(both if transform else {}))
    loader = Loader(TrainConfig(workers=2), stream, range(2, 6), CPU)
    found = list(loader)
    loader.close()
    assert len(found) == 4
    for step, batch in zip(range(2, 6), found, strict=True):
        assert batch.y_labeled.dtype == torch.uint8  # an eighth of what has to travel
        assert batch.x_labeled.is_shared() == (free > 0)
        arrived = batch.to("cpu")
        assert arrived.y_labeled.dtype == torch.int64
        assert same(arrived, stream[step])


@pytest.mark.parametrize("parts", [1, 2])
def test_the_size_of_a_batch_is_known_before_it_is_made(shared: Path, parts: int) -> None:
    for changes in ({"method": "fixmatch"}, {"method": "supervised", "channels": 1}):
        config = tiny_config(shared, shared, **changes, crop="24x40")
        stats = (0.5,) * config.channels
        stream = build_stream(config, build_data(config), stats, stats).shard(0, parts)
        packed = pack(stream[0], shared=False)
        assert batch_bytes(config, stream) == sum(t.nbytes for t in packed if t is not None)


def test_what_is_short_is_said_before_the_start(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(shared, shared, method="fixmatch", crop="256x256", workers=2)
    stream = build_stream(config, build_data(config), HALF, HALF)
    needed = 6 * 4 * 256 * 256 * 13  # 2 ahead for each process, one in use, one to come
    monkeypatch.setattr(loading, "free_shared_memory", lambda: needed)
    assert shortage(config, stream) is None
    monkeypatch.setattr(loading, "free_shared_memory", lambda: needed - 1)
    said = shortage(config, stream)
    assert said is not None
    assert "has 20 MB free, batches of 2 loader processes need 20 MB" in said
    assert "docker run --shm-size 1g" in said
    assert shortage(replace(config, workers=0), stream) is None


SMALL_MEMORY = """
import torch
from gmix.builders import loading
from gmix.config.train_config import TrainConfig
from test_data_stream import build, same
from gmix.data import train_transform

crop = train_transform(crop=(64, 64))
stream = build(labeled_transform=crop, unlabeled_transform=crop)
config = TrainConfig(workers=2, crop="64x64")
for shortage in (loading.shortage, lambda config, stream: None):
    loading.shortage = shortage
    kept = list(loading.Loader(config, stream, range(8), torch.device("cpu")))
    for step, batch in enumerate(kept):
        assert same(batch.to("cpu"), stream[step])
    print(sum(batch.x_labeled.is_shared() for batch in kept))
"""


def test_a_small_shared_memory_stops_nothing() -> None:
    """A MB of it, as a container has 64, once looked at before and once filled up by others meanwhile."""
    inside = 'mount -t tmpfs -o size=1m tmpfs /dev/shm 2>/dev/null || exit 77; exec "$@"'
    tests = Path(__file__).parent
    argv = ["unshare", "-m", "sh", "-c", inside, "sh", sys.executable, "-c", SMALL_MEMORY]
    if shutil.which("unshare") is None:
        pytest.skip("no namespaces")
    found = subprocess.run(
        argv,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if found.returncode in (1, 77) and "Error" not in found.stderr:
        pytest.skip("nothing may be mounted here")
    assert (found.returncode, found.stderr) == (0, "")
    foreseen, unforeseen = map(int, found.stdout.split())
    assert foreseen == 0 < unforeseen < 8  # as many as there was room for


# --- what does not come ----------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def shrink(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def after(step: int, act: Callable[[], Any]) -> Callable[[Report], None]:
    def on_report(report: Report) -> None:
        if report.step == step:
            act()

    return on_report


@pytest.mark.parametrize(
    ("folder", "spoil", "reason"),
    [
        ("images", remove, r"cannot read image \S+0\d.png: .*No such file"),
        ("masks", shrink, r"image \S+ is 64x64 \(HxW\) but its mask \S+ is 8x8"),
        ("masks", cut, r"cannot read mask \S+0\d.png: "),
    ],
    ids=["deleted", "another size", "cut"],
)
def test_a_file_that_is_spoiled_while_training_costs_no_step(
    data: Path,
    tmp_path: Path,
    folder: str,
    spoil: Callable[[Path], None],
    reason: str,
    straight: Any,
) -> None:
    paths = sorted((data / folder).iterdir())[:4]
    config = tiny_config(data, tmp_path / "out", **SMALL, method="supervised")
    reports: list[Report] = []

    def act() -> None:
        for path in paths:
            spoil(path)

    def on_report(report: Report) -> None:
        reports.append(report)
        after(3, act)(report)

    before = {path: path.read_bytes() for path in paths}
    with pytest.raises(ValueError, match=reason) as caught:
        train(config, on_report=on_report)
    assert str(caught.value).endswith(
        "; stopped after step 4 of 8, everything is saved: mend the file, or leave it out with --skip-damaged N, "
        "and repeat the command with --resume"
    )
    assert [c.step for c in list_checkpoints(tmp_path / "out")] == [4]
    assert [report.step for report in reports] == [1, 2, 3, 4]
    for path, content in before.items():
        path.write_bytes(content)
    train(replace(config, resume=True))
    assert_same(state_of(tmp_path / "out"), straight)


def test_a_killed_loader_process_costs_no_step(shared: Path, tmp_path: Path, straight: Any) -> None:
    config = tiny_config(shared, tmp_path / "out", **SMALL, method="supervised", workers=1)

    def kill() -> None:
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()

    with pytest.raises(ValueError, match="a loader process was killed") as caught:
        train(config, on_report=after(2, kill))
    (saved,) = list_checkpoints(tmp_path / "out")
    assert 2 <= saved.step < 8  # what it had made before is used
    assert f"stopped after step {saved.step} of 8, everything is saved: " in str(caught.value)
    train(replace(config, resume=True, workers=0))
    assert_same(state_of(tmp_path / "out"), straight)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="Windows")
def test_torch_raises_nothing_in_the_middle_of_a_step() -> None:
    """Its handler of SIGCHLD would, wherever the process is."""
    before = signal.getsignal(signal.SIGCHLD)
    loader = Loader(TrainConfig(workers=1), build(), range(50), CPU)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    time.sleep(0.1)  # a handler would have raised by now
    with pytest.raises(BatchError, match="a loader process was killed"):
        list(batches)
    loader.close()
    assert not loading._is_torchs(signal.getsignal(signal.SIGCHLD))
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="what is patched here is not patched there"
)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_wait_for_a_loader_that_hangs(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, straight: Any
) -> None:
    original = TwoStream.__getitem__

    def hang(stream: TwoStream, step: int) -> Any:
        if step == 3:
            time.sleep(60)
        return original(stream, step)

    config = tiny_config(shared, tmp_path / "out", **SMALL, method="supervised")
    with monkeypatch.context() as patch:
        patch.setattr(TwoStream, "__getitem__", hang)
        # torch waits this long for a process to end by itself.
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
        send = threading.Timer(0.5, os.kill, (os.getpid(), getattr(signal, name)))
        with pytest.raises(Interrupted, match=r"stopped after step 3 of 8, everything is saved"):
            train(replace(config, workers=1), on_report=after(2, send.start))
    train(replace(config, resume=True))
    assert_same(state_of(tmp_path / "out"), straight)


def test_a_signal_before_the_first_batch_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoStream, "__getitem__", lambda stream, step: time.sleep(60))
    send = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    with Interrupts() as interrupts:
        loader = Loader(TrainConfig(workers=0), build(), range(9), CPU, waiting=interrupts.waiting)
        send.start()
        with pytest.raises(Interrupted, match="stopped after step 0 of 9: repeat the command"):
            next(iter(loader))
    assert loader.error is None


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows")
def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupts.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_bug_in_a_transform_is_told_with_the_step_saved(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TwoStream.__getitem__

    def fail(stream: TwoStream, step: int) -> Any:
        return original(stream, step) if step != 2 else {}["colour"]

    monkeypatch.setattr(TwoStream, "__getitem__", fail)
    config = tiny_config(shared, tmp_path / "out", **SMALL, method="supervised")
    with pytest.raises(
        ValueError, match=r"^KeyError: 'colour'.*; stopped after step 2 of 8, every"
    ):
        train(config)
    assert [c.step for c in list_checkpoints(tmp_path / "out")] == [2]


# --- between two steps -----------------------------------------------------------------------


def test_a_validation_that_fails_is_made_up_for(data: Path, tmp_path: Path) -> None:
    """Whatever it would have written is there after `--resume`, the best model included."""
    settings = {**SMALL, "eval_every": 2, "keep_best": True, "lr": 0.05, "keep_last": 1}
    config = tiny_config(data, tmp_path / "out", **settings, method="supervised", skip_damaged=1)
    path = data / "val_images" / "v1.png"
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"cannot read image \S+v1.png") as caught:
        train(config, on_report=after(3, path.unlink))
    assert str(caught.value).endswith(
        "; stopped after step 4 of 8, everything is saved: mend that, and repeat the command with --resume"
    )
    path.write_bytes(content)
    train(replace(config, resume=True))
    train(replace(config, out=str(tmp_path / "straight")))
    found, expected = everything(tmp_path / "out"), everything(tmp_path / "straight")
    assert [row["step"] for row in expected["metrics"] if "validation" in row] == [2, 4, 6, 8]
    assert_same(found, expected)
    train(replace(config, resume=True))  # a finished run says nothing twice
    assert_same(everything(tmp_path / "out"), expected)


def test_numbers_that_cannot_be_written_cost_no_step(
    shared: Path, tmp_path: Path, straight: Any
) -> None:
    metrics, aside = tmp_path / "out" / "metrics.jsonl", tmp_path / "aside"

    def block() -> None:
        metrics.rename(aside)
        metrics.mkdir()

    config = tiny_config(shared, tmp_path / "out", **SMALL, method="supervised")
    with pytest.raises(
        ValueError,
        match=r"^cannot write \S+metrics.jsonl: .*; stopped after step 3 of 8",
    ):
        train(config, on_report=after(2, block))
    metrics.rmdir()
    aside.rename(metrics)
    train(replace(config, resume=True))
    assert_same(state_of(tmp_path / "out"), straight)


class Bug(Exception):
    """Somebody's, in a function that looks on."""


@pytest.mark.parametrize("error", [Bug("of mine"), BrokenPipeError(32, "Broken pipe")])
def test_whoever_looks_on_and_fails_costs_no_step(
    shared: Path, tmp_path: Path, error: Exception
) -> None:
    def fail() -> None:
        raise error

    config = tiny_config(shared, tmp_path / "out", **SMALL, method="supervised")
    expected = Bug if isinstance(error, Bug) else ValueError
    with pytest.raises(
        expected, match=r"of mine|Broken pipe; stopped after step 3 of 8, everything"
    ):
        train(config, on_report=after(3, fail))
    assert [c.step for c in list_checkpoints(tmp_path / "out")] == [3]


def test_what_fails_in_one_process_fails_in_all() -> None:
    def joined(others: bool) -> DistributedProcesses:
        processes = DistributedProcesses.__new__(DistributedProcesses)
        processes.any = lambda failed: failed or others  # type: ignore[method-assign]
        return processes

    assert joined(False).together(lambda: 3) == 3
    with pytest.raises(ValueError, match="another process failed and says why"):
        joined(True).together(lambda: 3)
    with pytest.raises(ZeroDivisionError):
        joined(False).together(lambda: 1 // 0)


# --- left out --------------------------------------------------------------------------------


def naive(stream: TwoStream, bad: dict[str, set[str]]) -> TwoStream:
    """The stream over lists in which the next good image stands where a bad one is."""
    for name in ("labeled", "unlabeled"):
        dataset = getattr(stream, name)
        items, names = [], [Path(item_name(dataset, i)).name for i in range(len(dataset))]
        for place in range(len(dataset)):
            while names[place] in bad[name]:
                place = (place + 1) % len(dataset)
            items.append(dataset[place])
        setattr(stream, name, items)
    return stream


@pytest.mark.parametrize("changes", [{}, {"workers": 2}, {"cache": True}], ids=str)
def test_the_next_image_takes_the_place_of_a_damaged_one(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    (data / "masks" / "03.png").write_bytes(b"")
    for name in ("05.png", "06.png"):
        (data / "images" / name).write_bytes(b"")
    config = tiny_config(data, tmp_path, method="fixmatch", skip_damaged=3, **changes)
    built = build_data(config)
    assert [Path(name).name for name in built.left_out][:1] == ["03.png"]
    stream = build_stream(config, built, HALF, HALF)
    known, told = list(built.left_out), list(built.notes)
    loader = Loader(config, stream, range(6), CPU, known=known, tell=told.append)
    batches = [batch.to("cpu") for batch in loader]
    loader.close()
    plain = tiny_config(data, tmp_path, method="fixmatch", skip_damaged=3)
    stream = build_stream(plain, build_data(plain), HALF, HALF)
    expected = naive(stream, {"labeled": {"03.png"}, "unlabeled": {"05.png", "06.png"}})
    assert all(same(batch, expected[step]) for step, batch in enumerate(batches))
    assert sorted(Path(name).name for name in known) == ["03.png", "05.png", "06.png"]
    assert sum("left out: cannot read" in line for line in told) == 3


def test_no_more_is_left_out_than_was_allowed(data: Path, tmp_path: Path) -> None:
    for name in ("05.png", "06.png"):
        (data / "images" / name).write_bytes(b"")
    config = tiny_config(data, tmp_path / "out", **{**SMALL, "method": "fixmatch"}, skip_damaged=1)
    with pytest.raises(ValueError, match=r"cannot read image \S+0[56].png: .*--skip-damaged"):
        train(config)
    (data / "masks" / "01.png").write_bytes(b"")
    (data / "val_masks" / "v1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="; 2 images cannot be read, --skip-damaged is 1"):
        build_data(config)
    config = replace(
        config, skip_damaged=2, images=str(data / "val_images"), masks=str(data / "val_masks")
    )
    for path in (data / "val_masks").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot read mask"):
        build_data(
            replace(config, skip_damaged=9, val_images=None, val_masks=None, method="supervised")
        )


def test_a_run_leaves_out_says_so_and_ends_bit_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spoiled at the start in one run, and in the other while it trains and before it is resumed."""
    settings = {**SMALL, "method": "fixmatch", "checkpoint_every": 2, "skip_damaged": 2}
    data = write_data(tmp_path / "data", unlabeled=12)
    config = tiny_config(data, tmp_path / "out", **settings)
    stream: Any = build_stream(config, build_data(config), HALF, HALF)
    seen = [set(stream.indices(step)[1]) for step in range(8)]
    index = next(i for i in range(12) if i not in seen[0] | seen[1] and i in seen[2] | seen[3])
    path = Path(item_name(stream.unlabeled, index))

    def on_report(report: Report) -> None:
        if report.step == 1:
            path.write_bytes(b"")
        if report.step == 5:
            raise Bug

    with pytest.raises(Bug):
        train(config, on_report=on_report)
    train(replace(config, resume=True))
    said = capsys.readouterr().out
    assert said.count(f"left out: cannot read image {path}") == 1
    train(replace(config, out=str(tmp_path / "straight"), workers=2))
    assert_same(state_of(tmp_path / "out"), state_of(tmp_path / "straight"))
    for name in ("out", "straight"):
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["left_out"] == [str(path)]


def test_a_damaged_mask_says_nothing_of_binary_masks(data: Path, tmp_path: Path) -> None:
    for path in [*(data / "masks").iterdir(), *(data / "val_masks").iterdir()]:
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8)).save(path)
    (data / "masks" / "02.png").write_bytes(b"")
    config = tiny_config(data, tmp_path, classes=1, method="supervised")
    with pytest.raises(ValueError, match=r"cannot read mask \S+02.png"):
        build_data(config)
    built = build_data(replace(config, skip_damaged=1))
    assert built.classes.label_map == {0: 0, 1: 1, 255: 1}
    assert [Path(name).name for name in built.left_out] == ["02.png"]


def test_nothing_is_judged_on_another_image_in_its_place(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, method="supervised", skip_damaged=1)
    whole = build_data(config)
    (data / "val_images" / "v1.png").write_bytes(b"")
    built = build_data(config)
    assert whole.validation is not None and built.validation is not None
    validation: Any = built.validation
    assert len(validation) == built.counts["validation"] == 2
    for found, place in zip(validation, (0, 2), strict=True):
        assert all(map(torch.equal, found, whole.validation[place]))
    assert any("left out: cannot read image" in note and "v1.png" in note for note in built.notes)
    assert (
        build_data(tiny_config(data, tmp_path, method="supervised", skip_damaged=1)).split
        == whole.split
    )


def test_all_that_is_damaged_ends_in_an_error_not_in_a_search_without_end() -> None:
    class Bad:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Tensor:
            raise ValueError(f"{index} is damaged")

    readable = Readable[Tensor](Bad(), allowed=9)
    with pytest.raises(ValueError, match="is damaged"):
        readable[1]
    assert left_out([readable]) == {"image 1": "1 is damaged", "image 2": "2 is damaged"}
