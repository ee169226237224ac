"""Scoring a data set: shares, centres, the picture, and `gmix evaluate`."""

import json
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_data import NAMES, tiny_config, write_data
from torch import Tensor, nn
from torchvision import tv_tensors

from gmix.cli.main import main
from gmix.config.commands import EvaluateConfig
from gmix.data import Classes, Sample, eval_transform
from gmix.deploy.evaluate import build_predict, score_model
from gmix.evaluation import (
    CenterCrop,
    ConfusionMatrix,
    add_other_processes,
    count_pixels,
    draw_confusion,
    evaluate,
)
from gmix.runtime.console import print_scores
from gmix.training.train import train

CLASSES = Classes.of(3)


def items(count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        size = (6 + i % 3, 9)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        mask = torch.randint(0, 3, size, generator=generator)
        mask[0, :i] = 255
        found.append(Sample(tv_tensors.Image(image), tv_tensors.Mask(mask)))
    return found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1)


count = partial(count_pixels, classes=CLASSES, transform=eval_transform())


@given(order=st.permutations(range(7)), parts=st.integers(1, 9), batch=st.integers(1, 4))
def test_neither_order_nor_shares_change_the_counts(
    order: list[int], parts: int, batch: int
) -> None:
    net, data = network(), items(7)
    # One by one: a batch may round otherwise, and a pixel that is level change sides.
    whole = count(net, data, batch_size=1)
    assert whole.counts.sum() == sum(int((mask != 255).sum()) for _, mask in data)
    total = ConfusionMatrix(3)
    for part in range(parts):  # some are empty
        share = count(net, data, batch_size=1, indices=order[part::parts])
        total.counts += share.counts
    assert torch.equal(total.counts, whole.counts)
    shuffled = count(net, [data[i] for i in order], batch_size=batch)
    assert (shuffled.counts - whole.counts).abs().sum() <= 2
    assert evaluate(net, data, CLASSES, transform=eval_transform(), batch_size=1) == whole.scores()


class Watched(list[Sample]):
    """Notes what it is asked for and by whom, and refuses to be asked for two items at once."""

    def __init__(self, data: list[Sample], bad: int = -1) -> None:
        super().__init__(data)
        self.bad = bad
        self.asked: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.free = threading.Lock()

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        assert self.free.acquire(blocking=False)
        if index == self.bad:
            raise ValueError("no such item")
        self.threads.add(threading.current_thread())
        self.asked.append(index)
        time.sleep(0.001)
        self.free.release()
        return super().__getitem__(index)


@given(indices=st.lists(st.integers(0, 6)), batch=st.integers(1, 9))
def test_items_are_read_ahead_one_at_a_time_and_in_order(indices: list[int], batch: int) -> None:
    data, net = items(7), network()
    seen: list[int] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    watched, ahead = Watched(data), []
    net.register_forward_pre_hook(lambda *_: ahead.append(len(watched.asked) - sum(seen)))
    before = set(threading.enumerate())
    found = count(net, watched, batch_size=batch, indices=iter(indices))
    assert set(threading.enumerate()) == before
    assert watched.asked == indices and len(watched.threads) <= 1
    assert threading.current_thread() not in watched.threads
    assert all(more <= 3 * batch for more in ahead)  # in a chunk, in the next and in a batch
    parts = torch.zeros_like(found.counts)
    for index in indices:
        parts += count(net, [data[index]]).counts
    assert (found.counts - parts).abs().sum() <= 2 * (batch > 1)


def test_large_items_are_read_one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmix.evaluation.scoring.BATCH_PIXELS", 10)
    watched, net, seen = Watched(items(7)), network(), []

    def note(*_: object) -> None:
        time.sleep(0.02)  # in which all could be read
        seen.append(len(watched.asked))

    net.register_forward_pre_hook(note)
    count(net, watched)
    assert all(asked <= number + 2 for number, asked in enumerate(seen)) and len(seen) == 7


@pytest.mark.parametrize("size", [None, (8, 8)])
def test_pairs_of_plain_tensors_count_the_same(size: tuple[int, int] | None) -> None:
    net, data = network(), items(3)
    plain = [(image.as_subclass(Tensor), mask.as_subclass(Tensor)) for image, mask in data]
    found, expected = (count(net, some, size=size).counts for some in (plain, data))
    assert torch.equal(found, expected)


def test_an_item_that_cannot_be_read_ends_the_scoring() -> None:
    net, before = network(), set(threading.enumerate())
    with pytest.raises(ValueError, match="no such item"):
        count(net, Watched(items(7), bad=3), batch_size=2)
    assert net.training and set(threading.enumerate()) == before


def test_one_process_alone_adds_nothing() -> None:
    matrix = count(network(), items(3))
    total = add_other_processes(matrix)
    assert torch.equal(total.counts, matrix.counts)
    total.counts += 1
    assert not torch.equal(total.counts, matrix.counts)


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (20, 3), (20, 20)])
def test_the_centre_is_cut_as_the_fields_code_does(size: tuple[int, int]) -> None:
    data = items(3)
    centers = CenterCrop(data, size)
    assert len(centers) == 3
    for (image, mask), (seen, counted) in zip(data, centers, strict=True):  # type: ignore[call-overload]
        top, left = max(0, (mask.shape[0] - size[0]) // 2), max(0, (mask.shape[1] - size[1]) // 2)
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        assert torch.equal(seen, image[:, rows, columns])
        assert torch.equal(counted, mask[rows, columns])
        assert isinstance(seen, tv_tensors.Image) and isinstance(counted, tv_tensors.Mask)


@pytest.mark.parametrize("classes", [2, 30, 60])
def test_the_picture_shows_rows_that_add_up(tmp_path: Path, classes: int) -> None:
    counts = torch.eye(classes, dtype=torch.int64) * 50
    counts[0, 1], counts[1] = 50, 0
    names = [f"class {i}" for i in range(classes)]
    written = draw_confusion(counts, names, tmp_path / "confusion.svg").read_text("utf-8")
    assert written.count("<!-- 100 -->") == (classes - 2 if classes <= 30 else 0)
    assert written.count("<!-- 50 -->") == (2 if classes <= 30 else 0)  # half of class 0 is wrong
    assert all(written.count(f"<!-- {name} -->") == 2 for name in names)
    assert "grey: no true pixels" in written
    draw_confusion(counts, names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert 400 < picture.width < 3000 and 400 < picture.height < 3000
    with pytest.raises(ValueError, match="one row for each of the 1 names"):
        draw_confusion(counts, ["one"], tmp_path / "no.png")


@pytest.mark.parametrize("way", ["whole", "64x64"])
def test_the_memory_benchmark_measures(way: str) -> None:
    pytest.importorskip("resource", reason="this system does not tell a process's memory")
    from evaluate_memory import measure

    memory, seconds = measure((64, 96), 2, way)
    assert memory >= 0 and seconds > 0


# --- gmix evaluate ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    config = tiny_config(write_data(root / "data"), root / "run", steps=2, method="supervised")
    return train(config).out


def config(run: Path, **changes: object) -> EvaluateConfig:
    return EvaluateConfig(model=str(run), device="cpu", threads=1, **changes)  # type: ignore[arg-type]


def test_flags_change_how_images_are_tested(run: Path) -> None:
    whole = score_model(config(run))
    assert build_predict(config(run)) is None
    huge = score_model(config(run, window="100x100", edge="truncate"))
    assert huge == whole
    windows = score_model(config(run, window="48x40", stride="20x30"))
    truncated = score_model(config(run, window="48x40", stride="20x30", edge="truncate"))
    several = score_model(config(run, window="48x40", scales="0.5,0.75,1,1.25,1.5,1.75", flip=True))
    results = [whole, windows, truncated, several]
    assert len({result["pixel_accuracy"] for result in results}) == 4
    for result in results:
        assert list(result["iou"]) == list(result["dice"]) == list(NAMES)
        assert "incomparable_center" not in result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": "8"}, "--window must be written HxW"),
        ({"incomparable_center": "0x4"}, "--incomparable-center must be written HxW"),
        ({"picture": "nowhere/confusion.png"}, "folder does not exist"),
        ({"out": "nowhere/scores.json"}, "folder does not exist"),
        ({"val_masks": "masks"}, "--val-masks needs --val-images"),
        ({"val_images": "images"}, "--val-images needs --val-masks"),
        ({"val_images": "images", "val_masks": "masks", "voc": "voc"}, "give either"),
        ({"dataset": "voc"}, "--dataset voc needs --data ROOT"),
        ({"val_list": "test"}, "--val-list test: the images of .* have no lists"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_scored(
    run: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_model(config(run, **changes))


def test_a_centre_is_scored_under_a_warning_and_drawn(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, picture = tmp_path / "scores.json", tmp_path / "confusion.png"
    argv = ["evaluate", "--model", str(run), "--device", "cpu", "--threads", "1"]
    argv += ["--out", str(out), "--picture", str(picture)]
    assert main(argv) == 0
    whole = json.loads(out.read_text("utf-8"))
    assert "warning" not in capsys.readouterr().err and picture.stat().st_size > 0
    assert main([*argv, "--incomparable-center", "32x32"]) == 0
    text = capsys.readouterr()
    assert "only the centre 32x32" in text.err and "compare with no others" in text.err
    center = json.loads(out.read_text("utf-8"))
    assert center["incomparable_center"] == [32, 32]
    assert center["pixel_accuracy"] != whole["pixel_accuracy"]


def test_a_centre_of_resized_images_is_refused(tmp_path: Path) -> None:
    changes = {"steps": 1, "method": "supervised", "size": "32x32"}
    out = train(tiny_config(write_data(tmp_path / "data"), tmp_path / "run", **changes)).out
    with pytest.raises(ValueError, match="trained with --size"):
        score_model(config(out, incomparable_center="16x16"))
    whole = score_model(config(out))
    for edge in ("shift", "truncate"):  # windows are those of the images, 64x64
        assert score_model(config(out, window="64x64", edge=edge)) == whole
        assert score_model(config(out, window="99x64", stride="7x50", edge=edge)) == whole
    assert score_model(config(out, window="32x32"))["pixel_accuracy"] != whole["pixel_accuracy"]
    both = score_model(config(out, window="64x64", scales="0.5,1", flip=True))
    assert both == score_model(config(out, scales="0.5,1", flip=True))


def test_the_table_has_iou_and_dice_of_each_class(capsys: pytest.CaptureFixture[str]) -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 1]]]))
    print_scores(matrix.scores().to_dict(("sky", "a name longer than most", "cow")))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["IoU", "Dice"]
    assert lines[1] == ["sky", "50.0", "66.7"]
    assert lines[2] == ["a", "name", "longer", "than", "most", "66.7", "80.0"]
    assert lines[3] == ["cow", "does", "not", "occur"]
    assert lines[4:] == [["mIoU", "58.3"], ["mean", "Dice", "73.3"], ["pixel", "accuracy", "75.0"]]
    empty = ConfusionMatrix(2)
    empty.update(torch.zeros(1, 1, 1, dtype=torch.int64), torch.full((1, 1, 1), 255))
    print_scores(empty.scores().to_dict(("a", "b")))
    assert "no pixels" in capsys.readouterr().out
