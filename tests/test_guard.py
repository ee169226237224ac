"""Whether unlabeled images helped: the interval against a loop, and what the command says of known predictions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import tiny_config, words
from torch import Tensor

from gmix.cli.main import main
from gmix.compare import guard
from gmix.config.yamlfile import read_settings
from gmix.evaluation import ConfusionMatrix, paired_gain, tallies


def images(seed: int, count: int = 12, classes: int = 3, wrong: float = 0.3) -> list[Any]:
    """Masks, and predictions of them some of whose pixels are wrong."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        mask = rng.integers(0, classes, (5, 7))
        noise = rng.integers(0, classes, (5, 7))
        found.append((mask, np.where(rng.random((5, 7)) < wrong, noise, mask)))
    return found


def count(found: list[Any], classes: int = 3) -> Tensor:
    matrices = []
    for mask, pred in found:
        matrix = ConfusionMatrix(classes)
        matrix.update(torch.from_numpy(pred)[None], torch.from_numpy(mask)[None])
        matrices.append(matrix.counts)
    return torch.stack(matrices)


def miou(found: list[Any], classes: int = 3) -> float:
    """By loops over classes and pixels, in numpy."""
    mask = np.concatenate([m.ravel() for m, _ in found])
    pred = np.concatenate([p.ravel() for _, p in found])
    ious = [
        ((mask == k) & (pred == k)).sum() / ((mask == k) | (pred == k)).sum()
        for k in range(classes)
        if ((mask == k) | (pred == k)).any()
    ]
    return float(np.mean(ious))


def test_the_interval_is_that_of_a_loop_over_resampled_images() -> None:
    first, second = images(0, wrong=0.5), images(0, wrong=0.3)
    gain = paired_gain(tallies(count(first)), tallies(count(second)))
    assert gain.difference == pytest.approx(miou(second) - miou(first))
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        which = rng.integers(0, len(first), len(first))
        drawn.append(miou([second[i] for i in which]) - miou([first[i] for i in which]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.01)
    assert gain.verdict == "helped" and gain.low < gain.difference < gain.high


def test_a_class_that_some_draws_miss_leaves_their_mean() -> None:
    found = images(0)
    found[3][0][:], found[3][1][:] = 3, 3  # one image only shows class 3, all of it right
    gain = paired_gain(tallies(count(found, 4)), tallies(count(found, 4)))
    assert gain == (0.0, 0.0, 0.0) and not math.isnan(gain.low)


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_swapping_the_networks_turns_the_sign(seed: int, number: int) -> None:
    one, other = (tallies(count(images(seed + i, number))) for i in (0, 1))
    gain, back = paired_gain(one, other), paired_gain(other, one)
    assert gain == pytest.approx((-back.difference, -back.high, -back.low))
    assert gain.low <= gain.high
    if number == 1:  # of one image there is nothing to resample
        assert gain.low == pytest.approx(gain.high) == pytest.approx(gain.difference)


def test_other_images_are_refused() -> None:
    one = tallies(count(images(0)))
    for other in (one[1:], one[:, :, 1:], one[:0]):
        with pytest.raises(ValueError, match="of the same n images"):
            paired_gain(other, one)


def test_a_guarded_training_says_what_the_unlabeled_images_did(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    config = tiny_config(data, out, method="fixmatch", steps=2, guard=True)
    assert main(["train", *words(config)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    kept = json.loads((out / "guard.json").read_text())
    scores = [
        json.loads((folder / "results.json").read_text())["last"]["miou"]
        for folder in (out / "guard-supervised", out)
    ]
    # One image at a time, a pixel on the edge of two classes may fall to the other.
    assert kept["difference"] == pytest.approx(scores[1] - scores[0], abs=1e-3)
    assert kept["judged_on"] == "validation" and kept["images"] == 3
    assert "on 3 validation images (95 % of resampled images:" in said
    assert "the unlabeled images" in said and kept["verdict"] in said

    # Again: nothing is trained twice, the run goes on as ever.
    stamp = (out / "guard-supervised" / "checkpoint-00000002").stat().st_mtime_ns
    assert main(["train", *words(config), "--resume"]) == 0
    assert (out / "guard-supervised" / "checkpoint-00000002").stat().st_mtime_ns == stamp
    assert json.loads((out / "guard.json").read_text()) == kept


def test_held_out_images_judge_where_there_are_no_validation_ones(
    data: Path, tmp_path: Path
) -> None:
    alone = {"val_images": None, "val_masks": None, "labels": 2, "held_out": 2, "steps": 1}
    config = tiny_config(data, tmp_path / "out", method="fixmatch", guard=True, **alone)
    assert main(["train", *words(config)]) == 0
    kept = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert kept["judged_on"] == "held-out" and kept["images"] == 2


def test_the_twin_of_another_variant_is_plain_supervised(data: Path, tmp_path: Path) -> None:
    given = {"variant": "paper", "method_args": {"direct": 0.5}, "steps": 1}
    config = tiny_config(data, tmp_path / "out", method="guidedmix", guard=True, **given)
    assert main(["train", *words(config)]) == 0
    twin = read_settings(tmp_path / "out" / "guard-supervised")
    assert (twin["method"], twin["variant"], twin["method_args"]) == ("supervised", "default", {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "supervised"}, "choose another --method"),
        ({"val_images": None, "val_masks": None}, "give --val-images and --val-masks"),
    ],
)
def test_what_cannot_be_guarded_is_refused_before_the_training(
    data: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    out = tmp_path / "out"
    config = tiny_config(data, out, **{"method": "fixmatch", "guard": True, **changes})
    with pytest.raises(ValueError, match=sentence):
        guard.check_guard(config)
    assert main(["train", *words(config)]) == 1
    assert not out.exists()
