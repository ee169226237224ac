"""From real photos to a trained model, its score and its predictions, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmix.cli.main import main

VOC = ["--classes", "7", "--label-map", "0:0,8:1,10:2,12:3,13:4,15:5,17:6"]
NETWORK = ["--encoder", "tu-tf_efficientnet_lite0", "--encoder-weights", "lite0"]
NETWORK += ["--model-args", "{encoder_depth: 3, decoder_channels: [32, 16, 8]}"]
SMALL = ["--size", "48x64", "--batch-labeled", "4", "--batch-unlabeled", "4", "--workers", "0"]
SMALL += ["--norm-batches", "4"]


@pytest.fixture
def lists(shared_data: Path, tmp_path: Path) -> dict[str, Path]:
    """A handful of lines of the real list files: 8 labeled, 12 unlabeled, 6 to score."""
    source = shared_data / "voc_animals" / "ImageSets" / "Segmentation"
    wanted = {"train": slice(0, 437, 55), "trainaug": slice(500, 512), "val": slice(0, 445, 80)}
    found = {}
    for name, part in wanted.items():
        lines = (source / f"{name}.txt").read_text(encoding="utf-8").split()[part]
        found[name] = tmp_path / f"{name}.txt"
        found[name].write_text("\n".join(lines), encoding="utf-8")  # no newline at the end
    return found


def test_real_photos_in_voc_layout(
    shared_data: Path, lists: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [
        "train",
        "--voc",
        str(shared_data / "voc_animals"),
        "--train-list",
        str(lists["train"]),
    ]
    words += ["--unlabeled-list", str(lists["trainaug"]), "--val-list", str(lists["val"])]
    words += [*VOC, *NETWORK, *SMALL, "--steps", "30", "--log-every", "5"]
    assert main([*words, "--out", str(out)]) == 0

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["losses"]["supervised"] for row in rows if "losses" in row]
    assert losses[-1] < 0.8 * losses[0]  # it learns from the photos
    results = json.loads((out / "results.json").read_text())
    assert 0 < results["last"]["miou"] <= 1
    assert results["images"] == {
        "labeled": 8,
        "unlabeled": 12,
        "validation": 6,
    }


def test_real_photos_in_plain_folders_then_predict(shared_data: Path, tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    source = shared_data / "camvid"
    for i, photo in enumerate(sorted((source / "images" / "val").glob("*.jpg"))[:101:20]):
        (images / photo.name).write_bytes(photo.read_bytes())
        if i < 4:  # the others are unlabeled
            mask = source / "masks" / "val" / f"{photo.stem}.png"
            (masks / mask.name).write_bytes(mask.read_bytes())
    out, predicted = tmp_path / "run", tmp_path / "predicted"
    words = ["train", "--images", str(images), "--masks", str(masks), *NETWORK, *SMALL]
    words += ["--classes", str(source / "classes.txt"), "--steps", "3", "--out", str(out)]
    assert main(words) == 0
    assert (
        main(["predict", "--model", str(out), "--images", str(images), "--out", str(predicted)])
        == 0
    )
    written = sorted((predicted / "masks").glob("*.png"))
    assert [path.stem for path in written] == sorted(path.stem for path in images.iterdir())
    ids = np.array(Image.open(written[0]))
    assert ids.shape == (360, 480) and ids.max() < 11
