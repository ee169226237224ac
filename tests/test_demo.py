"""The demo: its scenes are what they claim to be, and the whole of it runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmix.config.train_config import TrainConfig
from gmix.data import Classes, SegmentationDataset, find_images, pair_masks, read_image
from gmix.demo import compose_scenes, load_sources, run_demo, write_scenes
from gmix.demo.run import demo_config
from gmix.demo.scenes import NAMES, PALETTE, Folders

SIZE = 48


@pytest.fixture(scope="module")
def scenes() -> list:
    train, _ = load_sources()
    return list(compose_scenes(train, 40, size=SIZE, rng=np.random.default_rng(0)))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_training_and_validation_share_neither_digits_nor_photograph() -> None:
    from sklearn.datasets import load_digits, load_sample_images

    train, val = load_sources()
    digits = load_digits()
    both = np.concatenate([train.digits, val.digits]) * 16
    assert np.array_equal(both, digits.images)
    assert set(np.unique(train.values)) == set(np.unique(val.values)) == set(range(10))
    for photo, left, right in zip(
        load_sample_images().images, train.photos, val.photos, strict=True
    ):
        # Side by side they are a band of the photograph, each pixel in one of the two.
        band = np.concatenate([left, right], axis=1)
        assert np.array_equal(band, photo[-len(band) :])


def test_scenes_are_images_with_class_masks(scenes: list) -> None:
    for image, mask in scenes:
        assert image.shape == (SIZE, SIZE, 3)
        assert mask.shape == (SIZE, SIZE)
        assert image.dtype == mask.dtype == np.uint8
        assert mask.max() <= 10
        assert 2 <= len(np.unique(mask)) - 1 + (0 not in mask) <= 4 or len(np.unique(mask)) == 2
        assert 0.02 < (mask > 0).mean() < 0.6


def test_each_digit_occurs_about_equally_often(scenes: list) -> None:
    counts = np.zeros(11, int)
    for _, mask in scenes:
        counts[np.unique(mask)] += 1
    assert counts[0] == len(scenes)
    assert counts[1:].min() >= 8
    assert counts[1:].max() - counts[1:].min() <= 4


def test_a_mask_lies_where_the_picture_was_painted() -> None:
    """The same scene on black paper: painted pixels and mask must coincide."""
    train, _ = load_sources()
    black = train._replace(photos=tuple(np.zeros_like(photo) for photo in train.photos))
    for image, mask in compose_scenes(black, 10, size=SIZE, rng=np.random.default_rng(1)):
        painted = image.max(axis=2) > 0.5 * 255
        assert (painted == (mask > 0)).mean() > 0.97
        assert not image[mask == 0].min(axis=0).any()


def test_a_scene_shows_the_digit_its_mask_names() -> None:
    """Nearest-centroid on the painted shape alone recognises most digits."""
    train, val = load_sources()
    centroids = np.stack([train.digits[train.values == d].mean(axis=0) for d in range(10)])
    right, total = 0, 0
    for _, mask in compose_scenes(val, 40, size=64, digits=(1, 1), rng=np.random.default_rng(0)):
        ys, xs = np.nonzero(mask)
        box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        side = max(box.shape)
        square = np.zeros((side, side), np.uint8)
        top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
        square[top : top + box.shape[0], left : left + box.shape[1]] = 255 * (box > 0)
        small = np.asarray(Image.fromarray(square).resize((8, 8), Image.Resampling.BOX)) / 255
        guess = np.square(centroids - small).sum(axis=(1, 2)).argmin()
        right, total = right + (guess == mask.max() - 1), total + 1
    assert right > 0.6 * total


def test_files_depend_on_the_seed_alone(tmp_path: Path) -> None:
    numbers = {"labeled": 3, "unlabeled": 2, "val": 2, "size": 32}
    write_scenes(Folders.inside(tmp_path / "a"), **numbers, seed=7)
    write_scenes(Folders.inside(tmp_path / "b"), **numbers, seed=7)
    write_scenes(Folders.inside(tmp_path / "c"), **numbers, seed=8)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a").keys() == files(tmp_path / "c").keys()
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_more_unlabeled_scenes_change_no_other_scene(tmp_path: Path) -> None:
    few, many = Folders.inside(tmp_path / "few"), Folders.inside(tmp_path / "many")
    write_scenes(few, labeled=3, unlabeled=1, val=2, size=32)
    write_scenes(many, labeled=3, unlabeled=5, val=2, size=32)
    for name in ("images", "masks", "val_images", "val_masks"):
        assert files(getattr(few, name)) == files(getattr(many, name))
    assert len(files(many.unlabeled)) == 5


def test_the_folders_are_ones_any_run_can_read(tmp_path: Path) -> None:
    folders = Folders.inside(tmp_path)
    write_scenes(folders, labeled=3, unlabeled=2, val=2, size=32)
    classes = Classes.of(folders.classes)
    assert classes.names == NAMES
    images = find_images(folders.images)
    dataset = SegmentationDataset(images, pair_masks(images, folders.masks), classes)
    train, _ = load_sources()
    expected = compose_scenes(train, 3, size=32, rng=np.random.default_rng([0, 0]))
    for (image, mask), scene in zip(dataset, expected, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), scene.image)
        assert np.array_equal(mask.numpy(), scene.mask)
    assert not (folders.unlabeled.parent / "masks").exists()


def test_the_palette_has_eleven_different_colours() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == len(NAMES) == 11


def test_a_missing_scikit_learn_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"gmix\[demo\]"):
        load_sources()


def test_the_whole_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer and smaller steps; the pictures of the documentation are drawn from it as well."""
    from pictures import draw_all

    for name, number in (("LABELED", 5), ("UNLABELED", 4), ("VALIDATION", 6)):
        monkeypatch.setattr(f"gmix.demo.run.{name}", number)
    few = {"norm_batches": 2, "batch_labeled": 3, "batch_unlabeled": 3}

    def config(*args: Any) -> TrainConfig:
        return replace(demo_config(*args), **few)

    monkeypatch.setattr("gmix.demo.run.demo_config", config)
    result = run_demo(tmp_path / "demo", seed=3, steps=2)
    printed = " ".join(capsys.readouterr().out.split())

    assert result.sheet == tmp_path / "demo" / "sheet.png"
    assert read_image(result.sheet).shape[1] > 500
    found = {}
    for method in ("supervised", "guidedmix"):
        run = json.loads((tmp_path / "demo" / method / "results.json").read_text())
        assert (run["steps"], run["seed"], run["method"]) == (2, 3, method)
        assert run["images"]["labeled"] == 5
        assert run["images"]["validation"] == 6
        assert run["images"]["unlabeled"] == 4  # supervised training is finished with them
        found[method] = run["last"]["miou"]
    assert result.supervised == pytest.approx(found["supervised"])
    assert result.guidedmix == pytest.approx(found["guidedmix"])
    assert f"{100 * result.supervised:.1f}" in printed
    assert f"{100 * result.guidedmix:.1f}" in printed
    assert str(result.sheet) in printed.replace(" ", "")
    report = tmp_path / "demo" / "report.html"
    assert str(report) in printed.replace(" ", "")
    assert "GuidedMix" in report.read_text(encoding="utf-8")

    again = run_demo(tmp_path / "demo", seed=3, steps=2)  # finished: nothing is trained anew
    assert again == result
    before = files(tmp_path / "demo" / "scenes")
    with pytest.raises(ValueError, match="--seed"):
        run_demo(tmp_path / "demo", seed=4, steps=2)
    assert files(tmp_path / "demo" / "scenes") == before

    draw_all(tmp_path / "demo", tmp_path / "pictures")
    drawn = sorted((tmp_path / "pictures").iterdir())
    pictures = Path(__file__).resolve().parents[1] / "docs" / "pictures"
    committed = [path for path in sorted(pictures.glob("*")) if path.name != "house.png"]
    shown = [[(path.name, Image.open(path).size) for path in some] for some in (drawn, committed)]
    assert shown[0] == shown[1]
