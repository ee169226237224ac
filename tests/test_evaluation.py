"""Confusion matrix against torchmetrics and a loop; inference against direct forward passes."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)
from torchvision import tv_tensors

from gmix.data import Classes, Sample, eval_transform
from gmix.evaluation import (
    ConfusionMatrix,
    class_map,
    eval_mode,
    evaluate,
    predict_sliding,
)
from gmix.functional import probabilities


def random_maps(seed: int, classes: int, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Two highest classes are rare, so that some data sets lack one.
    pred, target = torch.randint(0, classes * 2, (2, count, 4, 5), generator=generator) // 2
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target[target == classes - 1] = 0
    return pred, target


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12))
def test_scores_against_torchmetrics(seed: int, classes: int) -> None:
    pred, target = random_maps(seed, classes)
    matrix = ConfusionMatrix(classes)
    for one_pred, one_target in zip(pred, target, strict=True):
        matrix.update(one_pred[None], one_target[None])
    scores = matrix.scores()
    jaccard = MulticlassJaccardIndex(classes, ignore_index=255)
    assert scores.miou == pytest.approx(jaccard(pred, target).item(), abs=1e-6)
    single = MulticlassJaccardIndex(classes, ignore_index=255, average=None)(pred, target)
    f1 = MulticlassF1Score(classes, ignore_index=255)  # of labels, F1 is Dice
    assert scores.mean_dice == pytest.approx(f1(pred, target).item(), abs=1e-6)
    f1 = MulticlassF1Score(classes, ignore_index=255, average=None)
    for label in set(range(classes)) - set(scores.absent):
        assert scores.iou[label] == pytest.approx(single[label].item(), abs=1e-6)
        assert scores.dice[label] == pytest.approx(f1(pred, target)[label].item(), abs=1e-6)
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=255)
    assert scores.pixel_accuracy == pytest.approx(accuracy(pred, target).item(), abs=1e-6)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 40))
def test_scores_against_a_loop(seed: int, classes: int) -> None:
    pred, target = random_maps(seed, classes)
    matrix = ConfusionMatrix(classes)
    matrix.update(pred, target)
    scores = matrix.scores()
    pairs = [
        (p, t)
        for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True)
        if t != 255
    ]
    values = []
    for label in range(classes):
        both = sum(p == label and t == label for p, t in pairs)
        either = sum(p == label or t == label for p, t in pairs)
        assert (label in scores.absent) == math.isnan(scores.iou[label]) == (either == 0)
        if either:
            values.append(both / either)
            assert scores.iou[label] == pytest.approx(both / either)
            assert scores.dice[label] == pytest.approx(2 * both / (both + either))
    assert scores.miou == pytest.approx(sum(values) / len(values))


def test_rows_are_true_columns_predicted_and_any_value_may_be_ignored() -> None:
    matrix = ConfusionMatrix(3, ignore_index=7)
    matrix.update(torch.tensor([[[1, 2, 0]]]), torch.tensor([[[0, 0, 7]]]))
    assert matrix.counts.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_nothing_but_ignored_pixels_gives_nan_not_an_error() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255))
    scores = matrix.scores()
    assert math.isnan(scores.miou) and math.isnan(scores.pixel_accuracy)
    assert scores.absent == [0, 1, 2]
    assert scores.to_dict("abc")["miou"] is None
    assert scores.to_dict("abc")["mean_dice"] is None


@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 70))
def test_counting_in_chunks_counts_every_pixel(seed: int, chunk: int) -> None:
    pred, target = random_maps(seed, 5)
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(pred, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmix.evaluation.confusion.CHUNK", chunk)
        parts.update(pred, target)
    assert torch.equal(whole.counts, parts.counts)
    assert whole.counts.sum() == (target != 255).sum()


INTEGERS = [
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


@pytest.mark.parametrize("of_target", INTEGERS)
@pytest.mark.parametrize("of_pred", INTEGERS)
def test_any_integer_type_counts_alike(of_pred: torch.dtype, of_target: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randint(100, (2, 3, 20, 30), generator=generator)
    target[:, 0] = 127  # ignored: what every type can hold
    expected = np.zeros((100, 100), dtype=np.int64)
    for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != 127:
            expected[t, p] += 1
    matrix = ConfusionMatrix(100, ignore_index=127)
    matrix.update(pred.to(of_pred), target.to(of_target))
    assert matrix.counts.tolist() == expected.tolist()


@pytest.mark.parametrize("classes", [2, 16, 17, 21, 150, 255])
def test_a_perfect_prediction_scores_1_in_any_type(classes: int) -> None:
    mask = torch.arange(classes, dtype=torch.uint8).view(1, 1, classes)
    matrix = ConfusionMatrix(classes)
    matrix.update(mask, mask)
    matrix.update(mask.short(), torch.full_like(mask, 255))
    assert torch.equal(matrix.counts, torch.eye(classes, dtype=torch.int64))


def test_masks_of_bytes_are_scored_as_they_are() -> None:
    """By `evaluate`, whose data set may be anybody's."""
    image = tv_tensors.Image(torch.randint(256, (3, 6, 7), dtype=torch.uint8))
    net = nn.Conv2d(3, 40, 1)
    transform = eval_transform()
    mask = class_map(net(transform(image)[None].as_subclass(Tensor)))[0]
    sample = Sample(image, tv_tensors.Mask(mask.to(torch.uint8)))
    found = evaluate(net, [sample], Classes.of(40), transform=transform)
    assert found.pixel_accuracy == found.miou == 1.0


def test_confusion_matrix_refuses_what_are_no_integers() -> None:
    zeros = torch.zeros(1, 2, 2, dtype=torch.int64)
    for kind in (torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.bool):
        for name, pair in (("pred", (zeros.to(kind), zeros)), ("target", (zeros, zeros.to(kind)))):
            with pytest.raises(TypeError, match=rf"`{name}` must hold .* got {kind}.*\.long\(\)"):
                ConfusionMatrix(3).update(*pair)
    with pytest.raises(TypeError, match=r"`target` must be a tensor, got ndarray: pass torch.as_t"):
        ConfusionMatrix(3).update(zeros, zeros.numpy())  # type: ignore[arg-type]


def test_no_class_is_ignored_unawares() -> None:
    for bad in (3.5, "3", True):
        with pytest.raises(ValueError, match=r"^`num_classes` must be at least 2"):
            ConfusionMatrix(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"of 256 classes 255 is one.*ignore_index=-1"):
        ConfusionMatrix(256)
    matrix = ConfusionMatrix(300, ignore_index=-1)
    matrix.update(torch.tensor([[[255, 299, 3]]]), torch.tensor([[[255, 299, -1]]]))
    assert matrix.counts.nonzero().tolist() == [[255, 255], [299, 299]]


def test_confusion_matrix_refuses() -> None:
    zeros = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"same shape .* got \(1, 2, 2\) and \(1, 2, 3\)"):
        ConfusionMatrix(3).update(zeros, torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`target` must hold classes 0\.\.2, got 3"):
        ConfusionMatrix(3).update(zeros, zeros + 3)
    with pytest.raises(ValueError, match=r"`pred` must hold classes 0\.\.2, got -1"):
        ConfusionMatrix(3).update(zeros - 1, zeros)
    with pytest.raises(ValueError, match="at least 2"):
        ConfusionMatrix(1)


def test_class_map_multi_class_and_binary() -> None:
    logits = torch.randn(2, 4, 5, 6)
    assert torch.equal(class_map(logits), logits.argmax(1))
    assert class_map(logits, (10, 13)).shape == (2, 10, 13)
    assert torch.equal(class_map(logits[:, :1]), (probabilities(logits[:, :1])[:, 0] > 0.5).long())
    up = F.interpolate(logits, (10, 13), mode="bilinear", align_corners=False)
    assert torch.equal(class_map(logits, (10, 13)), up.argmax(1))
    undecided = torch.zeros(1, 2, 1, 1)
    assert class_map(undecided[:, :1]) == class_map(undecided) == 0  # binary as two classes


class Spy(nn.Module):
    """A pointwise net that remembers what it was shown."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.shapes: list[tuple[int, ...]] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        self.modes.append(self.training)
        logits: Tensor = self.norm(self.conv(x))
        return logits


@pytest.fixture
def net() -> Spy:
    torch.manual_seed(0)
    return Spy(4)


def data(sizes: list[tuple[int, int]], classes: int = 4) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    result = []
    for height, width in sizes:
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        mask = torch.randint(0, classes, (height, width), generator=generator)
        mask[0, 0] = 255
        result.append(Sample(tv_tensors.Image(image), tv_tensors.Mask(mask)))
    return result


@pytest.mark.parametrize("size", [None, (5, 6)])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_evaluate_at_each_masks_own_resolution(
    net: Spy, size: tuple[int, int] | None, batch_size: int
) -> None:
    items = data([(6, 8), (6, 8), (6, 8), (9, 5), (7, 7)])
    classes, transform = Classes.of(4), eval_transform()
    scores = evaluate(net, items, classes, transform=transform, size=size, batch_size=batch_size)
    assert sum(shape[0] for shape in net.shapes) == 5
    assert max(shape[0] for shape in net.shapes) == min(batch_size, 3 if size is None else 5)
    matrix = ConfusionMatrix(4)
    net.eval()
    for image, mask in items:
        if size is not None:
            raw = image.as_subclass(Tensor)[None]
            image = F.interpolate(raw, size, mode="bilinear", antialias=True)[0]
        with torch.no_grad():
            logits = net(transform(tv_tensors.Image(image)).as_subclass(Tensor)[None])
        if logits.shape[-2:] != mask.shape:
            logits = F.interpolate(logits, tuple(mask.shape), mode="bilinear")
        matrix.update(logits.argmax(1), mask[None].as_subclass(Tensor))
    assert matrix.counts.sum() == sum(mask.numel() - 1 for _, mask in items)
    assert scores == matrix.scores()


def test_evaluate_runs_in_eval_mode_and_restores_every_part(net: Spy) -> None:
    net.train()
    net.norm.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    evaluate(net, data([(6, 8)]), Classes.of(4), transform=eval_transform())
    assert net.modes == [False]
    assert net.training and net.conv.training and not net.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="stop"), eval_mode(net):
        raise ValueError("stop")
    assert net.training and not net.norm.training


def test_binary_scores_background_and_foreground() -> None:
    torch.manual_seed(0)
    net = Spy(1).eval()
    items = data([(6, 8), (6, 8)], classes=2)
    scores = evaluate(net, items, Classes.of(1), transform=eval_transform())
    assert len(scores.iou) == 2 and scores.absent == []
    with torch.no_grad():
        pred = torch.cat(
            [
                net(eval_transform()(i).as_subclass(Tensor)[None]).sigmoid()[:, 0] > 0.5
                for i, _ in items
            ]
        )
    target = torch.stack([mask.as_subclass(Tensor) for _, mask in items])
    counted = target != 255
    both = (pred & (target == 1) & counted).sum()
    either = ((pred | (target == 1)) & counted).sum()
    assert scores.iou[1] == pytest.approx((both / either).item())
    probs = partial(predict_sliding, crop=(4, 4), stride=(2, 2))
    again = evaluate(net, items, Classes.of(1), transform=eval_transform(), predict=probs)
    assert again == scores


def test_evaluate_refuses(net: Spy) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(net, [], Classes.of(4), transform=eval_transform())
    with pytest.raises(ValueError, match="the network gives 4 channels, but the data set needs 5"):
        evaluate(net, data([(4, 4)]), Classes.of(5), transform=eval_transform())
