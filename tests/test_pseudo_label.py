"""Pseudo labels: masks, confidence and COCO regions against loops and pycocotools."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from full_disk import largest_file
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_predict import saved_model
from tiny_data import write_scene
from torch.nn import functional as F

from gmix.cli.main import main
from gmix.config.commands import PseudoLabelConfig
from gmix.data import Classes, read_image
from gmix.deploy.predict import predict_logits, prepare
from gmix.deploy.pseudo_label import (
    find_regions,
    predict_sure,
    pseudo_label_folder,
    run_lengths,
    sure_mask,
)
from gmix.evaluation import most_likely, predict_sliding, sliding_bands
from gmix.runs.saved import SavedModel
from gmix.runtime.own import RECORD, write_own

UNSURE = 255
# Of pycocotools under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def decode(segmentation: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """A run-length code as a mask, pixel by pixel."""
    height, width = segmentation["size"]
    found = np.zeros((height, width), dtype=bool)
    place = 0
    for number, count in enumerate(segmentation["counts"]):
        for _ in range(count):
            found[place % height, place // height] = number % 2 == 1
            place += 1
    assert place == height * width
    return found


def flood(mask: npt.NDArray[np.uint8]) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """Regions by walking from neighbour to neighbour: class and pixels of each."""
    seen: set[tuple[int, int]] = set()
    regions = []
    for start in np.ndindex(*mask.shape):
        if start in seen or mask[start] == UNSURE:
            continue
        region, todo = set(), [start]
        while todo:
            y, x = todo.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if not inside or (y, x) in region or mask[y, x] != mask[start]:
                continue
            region.add((y, x))
            todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        seen |= region
        regions.append((int(mask[start]), frozenset(region)))
    return regions


masks = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda size: st.lists(
        st.sampled_from([0, 1, 2, UNSURE]), min_size=size[0] * size[1], max_size=size[0] * size[1]
    ).map(lambda ids: np.array(ids, dtype=np.uint8).reshape(size))
)


@given(masks, st.integers(0, 2))
def test_regions_are_those_of_a_flood_fill(mask: npt.NDArray[np.uint8], first: int) -> None:
    confidence = np.random.default_rng(0).uniform(0.3, 1, mask.shape).astype(np.float32)
    expected = {pixels: id for id, pixels in flood(mask) if id >= first}
    found = list(find_regions(mask, confidence, first))
    assert len(found) == len(expected)
    for region in found:
        shape = decode(region["segmentation"])
        ys, xs = np.nonzero(shape)
        pixels = frozenset(zip(ys.tolist(), xs.tolist(), strict=True))
        assert expected[pixels] == region["category_id"]
        assert region["area"] == len(pixels)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert region["bbox"] == box
        assert region["score"] == pytest.approx(confidence[shape].mean(), abs=1e-4)


@given(masks)
def test_pycocotools_reads_the_regions(mask: npt.NDArray[np.uint8]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    for region in find_regions(mask, np.ones(mask.shape, dtype=np.float32)):
        segmentation = region["segmentation"]
        packed = coco.frPyObjects(segmentation, *segmentation["size"])
        assert (coco.decode(packed) == decode(segmentation)).all()
        assert int(coco.area(packed)) == region["area"]
        assert coco.toBbox(packed).tolist() == region["bbox"]


@given(masks)
def test_run_lengths_against_pycocotools_or_a_loop(mask: npt.NDArray[np.uint8]) -> None:
    ones = mask == 1
    code = {"size": list(mask.shape), "counts": run_lengths(ones)}
    assert (decode(code) == ones).all()
    assert all(count > 0 for count in code["counts"][1:])


@given(masks, st.integers(0, 9))
def test_small_regions_are_nobodys(mask: npt.NDArray[np.uint8], min_area: int) -> None:
    classes = np.where(mask == UNSURE, 0, mask).astype(np.int64)
    confidence = np.where(mask == UNSURE, 0.5, 0.75).astype(np.float32)
    expected = np.full_like(mask, UNSURE)
    for id, pixels in flood(mask):
        if len(pixels) >= min_area:
            for pixel in pixels:
                expected[pixel] = id
    assert (sure_mask(classes, confidence, 0.75, min_area) == expected).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [None, (7, 300)])
def test_most_likely_against_a_whole_softmax(channels: int, size: tuple[int, int] | None) -> None:
    logits = 4 * torch.randn(2, channels, 150, 9, generator=torch.Generator().manual_seed(0))
    classes, confidence = most_likely(logits, size)
    whole = logits if size is None else F.interpolate(logits, size, mode="bilinear")
    if channels == 1:
        whole = torch.cat([torch.zeros_like(whole), whole], dim=1)  # a sigmoid is such a softmax
    expected = whole.softmax(dim=1).max(dim=1)
    torch.testing.assert_close(confidence, expected.values, atol=1e-5, rtol=0)
    assert (classes == expected.indices).float().mean() > 0.999  # ties, to rounding


# --- a folder --------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        write_scene(folder / f"{number}.png", None, number, size=40 + 7 * number)
    return folder


@pytest.mark.parametrize("resized", [None, (32, 48)])
def test_a_folder(images: Path, tmp_path: Path, resized: tuple[int, int] | None) -> None:
    saved, paths = saved_model(size=resized), sorted(images.iterdir())
    with torch.no_grad():  # neither sure of everything nor of nothing
        saved.net.model.segmentation_head[0].weight.mul_(3)
    made = pseudo_label_folder(saved, paths, tmp_path, min_confidence=0.5)
    assert made.images == 3 and not made.failures

    found = json.loads((tmp_path / "coco.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    assert [image["file_name"] for image in found["images"]] == [path.name for path in paths]
    assert [item["id"] for item in found["annotations"]] == list(range(1, made.regions + 1))
    assert made.regions > 0
    sure = pixels = 0
    for image in found["images"]:
        path = images / image["file_name"]
        logits = F.interpolate(
            predict_logits(saved, read_image(path)),
            (image["height"], image["width"]),
            mode="bilinear",
        )
        probs = logits.softmax(1)[0].numpy()
        file = Image.open(tmp_path / "masks" / path.name)
        assert file.mode == "P" and file.size == Image.open(path).size
        assert file.getpalette()[3:6] == list(saved.classes.palette[1])
        assert file.getpalette()[-3:] == [255, 255, 255]
        mask = np.array(file)
        expected = np.where(probs.max(0) >= 0.5, probs.argmax(0), UNSURE)
        close = np.abs(probs.max(0) - 0.5) < 1e-4
        assert (mask == expected)[~close].all()
        grey = np.array(Image.open(tmp_path / "confidence" / path.name))
        assert np.abs(grey / 255 - probs.max(0)).max() < 0.51 / 255
        drawn = np.full_like(mask, UNSURE)
        for item in found["annotations"]:
            if item["image_id"] == image["id"]:
                drawn[decode(item["segmentation"])] = item["category_id"]
        assert (drawn == np.where(mask == 0, UNSURE, mask)).all()  # all but the background
        sure += (mask != UNSURE).sum()
        pixels += mask.size
    assert 0 < sure < pixels
    assert made.sure == pytest.approx(sure / pixels)


def test_the_file_is_what_one_image_after_the_other_is(images: Path, tmp_path: Path) -> None:
    saved, paths = saved_model(), sorted(images.iterdir())
    with torch.no_grad():
        saved.net.model.segmentation_head[0].weight.mul_(3)
    (images / "1.png").write_bytes(b"no picture")
    made = pseudo_label_folder(saved, paths, tmp_path, min_confidence=0.5, min_area=3)
    assert [failure.path.name for failure in made.failures] == ["1.png"]
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate([paths[0], paths[2]], start=1):
        classes, confidence = predict_sure(saved, read_image(path))
        for region in find_regions(sure_mask(classes, confidence, 0.5, 3), confidence, 1):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **region})
    assert annotations and made.regions == len(annotations)
    lines = (tmp_path / "coco.json").read_text().splitlines()
    ends = [","] * (len(annotations) - 1) + [""]
    assert lines[1:-1] == [
        json.dumps(one) + end for one, end in zip(annotations, ends, strict=True)
    ]


@pytest.mark.parametrize(("largest", "name"), [(50, "masks|confidence"), (5000, "coco.json")])
def test_a_full_disk_leaves_nothing_half_written(
    images: Path, tmp_path: Path, largest: int, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_own(out / "coco.json", "before")
    reason = rf"cannot write \S+({name})\S*: File too large"
    with largest_file(largest), pytest.raises(ValueError, match=reason):
        pseudo_label_folder(saved_model(), sorted(images.iterdir()), out, min_confidence=0.0)
    assert (out / "coco.json").read_text() == "before"
    for path in out.rglob("*.png"):
        Image.open(path).load()
    assert [path.name for path in out.rglob(".*")] == [RECORD]


@pytest.mark.parametrize("resized", [None, (64, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_against_all_their_probabilities(
    images: Path, channels: int, resized: tuple[int, int] | None
) -> None:
    saved, image = saved_model(channels, resized), read_image(images / "2.png")
    windows = {"crop": (32, 32), "stride": (16, 24)}
    probs = predict_sliding(saved.net, prepare(saved, image, saved.size), **windows)
    if channels == 1:
        probs = torch.cat([1 - probs, probs], dim=1)
    probs = F.interpolate(probs, image.shape[-2:], mode="bilinear")[0]
    classes, confidence = predict_sure(saved, image, partial(sliding_bands, **windows))
    assert classes.shape == confidence.shape == image.shape[-2:]
    # Between two pixels, the logits are in the middle and not the probabilities.
    close = 1e-5 if resized is None else 0.02
    torch.testing.assert_close(
        torch.from_numpy(confidence), probs.max(0).values, atol=close, rtol=0
    )
    assert (torch.from_numpy(classes) == probs.argmax(0)).float().mean() > 0.99
    assert np.abs(confidence - predict_sure(saved, image)[1]).max() > 1e-3


def test_pycocotools_opens_the_file(images: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    pseudo_label_folder(saved_model(), sorted(images.iterdir()), tmp_path, min_confidence=0)
    opened = coco.COCO(str(tmp_path / "coco.json"))
    for item in opened.loadAnns(opened.getAnnIds()):
        image = opened.loadImgs(item["image_id"])[0]
        mask = np.array(Image.open(tmp_path / "masks" / image["file_name"]))
        inside = opened.annToMask(item).astype(bool)
        assert inside.sum() == item["area"] and (mask[inside] == item["category_id"]).all()


def test_classes_without_a_background_begin_at_0(images: Path, tmp_path: Path) -> None:
    saved = saved_model()
    roads = SavedModel(saved.net, Classes.of(["road", "car", "sky"]), None, saved.mean, saved.std)
    pseudo_label_folder(roads, sorted(images.iterdir()), tmp_path, min_confidence=0)
    found = json.loads((tmp_path / "coco.json").read_text())
    assert [item["id"] for item in found["categories"]] == [0, 1, 2]
    assert sum(item["area"] for item in found["annotations"]) == 40**2 + 47**2 + 54**2


def test_the_command(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_model().save_pretrained(tmp_path / "run" / "model")
    (images / "bad.png").write_bytes(b"no picture")
    words = ["pseudo-label", "--model", str(tmp_path / "run"), "--images", str(images)]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, *out, "--min-confidence", "0.4", "--min-area", "10"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("3 of 4 images: ")
    assert "1 of 4 images were left out: cannot read image" in said.err and "bad.png" in said.err
    made = {p.name for p in (tmp_path / "out").iterdir()}
    assert made == {"masks", "confidence", "coco.json", RECORD}
    assert main([*words, *out, "--window", "32x32"]) == 1  # the bad image
    assert main([*words, *out, "--stride", "8x8"]) == 1
    assert "add --window HxW" in capsys.readouterr().err
    assert main([*words, *out, "--min-confidence", "1.5"]) == 1
    assert "--min-confidence must lie between 0 and 1, got 1.5" in capsys.readouterr().err
    assert main(words) == 2
    assert "--out DIR is missing" in capsys.readouterr().err


def test_threads_are_checked() -> None:
    with pytest.raises(ValueError, match="--threads must be at least 1, got 0"):
        PseudoLabelConfig(threads=0)
