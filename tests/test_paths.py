"""Paths in little memory are the paths of a list, and are found as the plain functions find them."""

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import tiny_config, write_data
from torchvision import tv_tensors

from gmix.builders.data import build_data
from gmix.config.files import training_files
from gmix.data import (
    LAYOUTS,
    ImageDataset,
    Paths,
    Sample,
    TwoStream,
    find_images,
    folder_images,
    images_of,
    train_transform,
)
from gmix.data.stream import hashed

names = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1)
some_paths = st.lists(st.lists(names, min_size=1, max_size=3).map(lambda parts: Path(*parts)))


@given(some_paths, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3))
def test_paths_are_a_list_of_paths(plain: list[Path], start: int, end: int, step: int) -> None:
    paths = Paths(plain)
    assert list(paths) == plain and len(paths) == len(plain)
    assert list(paths[start:end:step]) == plain[start:end:step]
    assert list(pickle.loads(pickle.dumps(paths))) == plain
    assert [Path(text) for text in paths.texts()] == plain
    for i in range(-len(plain), len(plain)):
        assert paths[i] == plain[i]
    for outside in (len(plain), -len(plain) - 1):
        with pytest.raises(IndexError):
            paths[outside]


@given(some_paths, some_paths, some_paths)
def test_union_and_without_are_those_of_sets(a: list[Path], b: list[Path], c: list[Path]) -> None:
    """Order and all: a run of an earlier version sees the same batches."""
    assert list(Paths.union(a, Paths(b)).without(c)) == sorted({*a, *b} - {*c})


def test_a_folder_and_a_link_to_it_are_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    real, link = ([tmp_path / name / file for file in "ab"] for name in ("real", "link"))
    assert list(Paths(real).without(link[:1])) == real[1:]
    assert list(Paths.union(link[1:], real)) == link


def test_names_that_are_no_unicode_survive() -> None:
    path = Path("folder") / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert list(Paths.union([path])) == [path]


def test_a_data_set_keeps_no_object_for_each_path(tmp_path: Path) -> None:
    gc.collect()
    before = len(gc.get_objects())
    dataset = ImageDataset(Paths(f"{i}.png" for i in range(5000)))
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    kept = list(vars(dataset.images).values())
    assert all(isinstance(value, torch.Tensor) for value in kept)
    assert sum(tensor.nbytes for tensor in kept) == 8 * 5001 + sum(
        len(f"{i}.png") for i in range(5000)
    )


# --- finding them ----------------------------------------------------------------------------


def touch(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_is_read_as_find_images_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "b.JPG", "a.png", "B.webp", "é.tif", "notes.txt", ".hidden.png", "deep/x.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    expected = find_images(tmp_path)
    assert len(expected) == 5
    assert list(folder_images(tmp_path)) == expected
    monkeypatch.chdir(tmp_path)
    assert list(folder_images(".").texts()) == list(map(str, find_images(".")))
    for bad in (tmp_path / "nowhere", tmp_path / "deep" / "empty"):
        (tmp_path / "deep" / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"does not exist|holds no image"):
            folder_images(bad)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    touch(root, "JPEGImages/a.jpg", "JPEGImages/b.PNG", "JPEGImages/b.jpg", "JPEGImages/v1.0.png")
    touch(root, "JPEGImages/in/c.webp", "more/d.jpg", "JPEGImages/two words.jpg", "e.bmp")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    return root


PLAIN = ["a\nb\nv1.0\n", "a.jpg\r\n\r\nb.PNG", "in/c\nmore/d.jpg masks/d.png\n/JPEGImages/a.jpg\ne"]
STRANGE = ["./a\n", "in//c.webp\n", "..a/../a\n", "../x\n", "a b c\n", "a\nzz\n", "\n", "a.txt\n"]


@pytest.mark.parametrize("text", [*PLAIN, *STRANGE])
def test_a_list_is_read_as_one_entry_after_the_other(
    voc: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain lines are told by one pattern, and give what the careful reading of each gives."""
    listing = voc / "ImageSets" / "Segmentation" / "all.txt"
    listing.write_text(text, newline="")

    def outcome() -> Any:
        try:
            return list(images_of(LAYOUTS["voc"], voc, "all"))
        except ValueError as error:
            return str(error)

    fast = outcome()
    monkeypatch.setattr("gmix.data.splits._plain", lambda line: None)
    assert outcome() == fast
    assert isinstance(fast, list) == (text in PLAIN or text.startswith(("./a", "in//")))


def test_each_folder_is_listed_once(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (voc / "ImageSets" / "Segmentation" / "all.txt").write_text("a\nb\nv1.0\nin/c\n")
    asked: list[str] = []
    listdir = os.listdir

    def count(path: str) -> list[str]:
        asked.append(str(path))
        return listdir(path)

    monkeypatch.setattr("os.listdir", count)
    assert len(images_of(LAYOUTS["voc"], voc, "all")) == 4
    assert len(asked) == len(set(asked)) <= 3


def test_training_files_are_compact_and_in_the_order_of_paths(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d")
    touch(tmp_path / "d-more", "x.png", "04.png")
    touch(tmp_path / "d" / "more", "x.png")
    config = tiny_config(data, tmp_path, labels=2, unlabeled=str(tmp_path / "d-more"))
    (images, _), rest = training_files(config)
    assert isinstance(rest, Paths)
    every = {*(data / "images").iterdir(), *(tmp_path / "d-more").iterdir()}
    assert list(rest) == sorted(every - set(images))
    unlabeled: Any = build_data(config).unlabeled
    assert list(unlabeled.images) == list(rest)


# --- the order of a long stream ----------------------------------------------------------------


class Numbers:
    """A data set that is long and costs nothing."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


@given(st.integers(1, 30), st.integers(1, 12), st.lists(st.integers(0, 40), max_size=8))
def test_the_order_is_that_of_a_whole_permutation_each_time(
    length: int, batch: int, steps: list[int]
) -> None:
    transform = train_transform(crop=(8, 8))
    labeled: Any = Numbers(7)
    unlabeled: Any = Numbers(length)
    stream = TwoStream(labeled, unlabeled, 3, batch, transform, transform, 5)

    def plain(name: str, size: int, position: int) -> int:
        generator = torch.Generator().manual_seed(hashed(5, name, "order", position // size))
        return int(torch.randperm(size, generator=generator)[position % size])

    for step in steps:  # in any order, as several workers and a resumed run ask for them
        expected = (
            [plain("labeled", 7, p) for p in range(3 * step, 3 * step + 3)],
            [plain("unlabeled", length, p) for p in range(batch * step, batch * (step + 1))],
        )
        assert stream.indices(step) == expected


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = []

    def count(length: int, **rest: Any) -> torch.Tensor:
        shuffled.append(length)
        return torch.arange(length)

    monkeypatch.setattr(torch, "randperm", count)
    image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
    sample = Sample(image, tv_tensors.Mask(torch.zeros(8, 8, dtype=torch.int64)))
    transform = train_transform(crop=(8, 8))
    unlabeled: Any = Numbers(100)
    stream = TwoStream([sample], unlabeled, 1, 3, transform, transform, 0)
    for step in range(60):
        stream.indices(step)
    assert shuffled.count(100) == 2  # of 180 images


# --- the benchmark ---------------------------------------------------------------------------


@pytest.fixture
def benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, list[str]]]:
    """First cell to the others, of the table that `data.py` prints."""
    import data as benchmarked  # benchmarks/data.py

    def run(*words: str) -> dict[str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["data.py", *words])
        monkeypatch.setattr(subprocess, "check_output", forked.check_output)
        benchmarked.main()
        lines = capsys.readouterr().out.splitlines()
        cells = [line.strip("| ").split(" | ") for line in lines if line[:2] == "| "]
        return {first: rest for first, *rest in cells[1:]}

    return run


def test_the_benchmark_compares_three_loaders(benchmark: Any) -> None:
    table = benchmark("--batches", "1", "--batch", "1", "--repeats", "1", "--crop", "32x48")
    assert list(table) == ["gmix", "torchvision.transforms.v2", "PIL"]
    for speed, ratio in table.values():
        assert float(speed) >= 0 and float(ratio) > 0
    assert table["gmix"][1] == "1.00"


def test_the_plain_loaders_of_the_benchmark_do_the_work(tmp_path: Path) -> None:
    import data as benchmarked  # benchmarks/data.py

    images = benchmarked.synthetic(tmp_path, 4)
    masks = benchmarked.mask_each(images, tmp_path)
    for kind in (benchmarked.Tensors, benchmarked.Pictures):
        dataset = kind(images, masks, (300, 320))
        for i, (x, y) in enumerate(dataset[i] for i in range(4)):
            assert x.shape == (3, 300, 320) and x.dtype == torch.float32
            assert y.shape == (300, 320) and y.dtype == torch.int64
            assert -3 < x.mean() < 3 and x.std() > 0.1
            found = set(y.unique().tolist())
            assert found <= ({*range(21), 255} if i < 2 else {0, 255}) and found != {255}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells")
def test_the_benchmark_measures_lists(benchmark: Any) -> None:
    ((count, row),) = benchmark("--list", "40").items()
    assert count == "40" and len(row) == 5
    assert all(float(cell.removesuffix(" MB")) >= 0 for cell in row)
