"""Windows and scales against naive loops over whole images; bands against all rows at once."""

from functools import partial
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision import tv_tensors

from gmix.data import Classes, Sample, eval_transform
from gmix.evaluation import (
    class_map,
    count_pixels,
    predict_multiscale,
    predict_sliding,
    sliding_bands,
)
from gmix.evaluation.inference import BAND
from gmix.evaluation.scoring import BATCH_PIXELS

Edge = Literal["shift", "truncate"]
EDGES: tuple[Edge, ...] = ("shift", "truncate")


class Local(nn.Module):
    """Sees its neighbours and the border of what it is shown, so that windows matter."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, channels, 5, padding=2)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        logits: Tensor = self.conv(x) * 3
        return logits


def places(length: int, window: int, stride: int, edge: Edge) -> list[tuple[int, int]]:
    """First and last + 1 place of every window, step by step, until one reaches the border."""
    found: list[tuple[int, int]] = []
    start = 0
    while True:
        if start + window < length:
            found.append((start, start + window))
            start += stride
            continue
        if edge == "shift":
            start = max(length - window, 0)
        return [*found, (start, length)]


def slide(
    net: nn.Module, x: Tensor, crop: tuple[int, int], stride: tuple[int, int], edge: Edge
) -> Tensor:
    total: Tensor | float = 0.0
    for top, bottom in places(x.shape[2], crop[0], stride[0], edge):
        for left, right in places(x.shape[3], crop[1], stride[1], edge):
            logits = net(x[:, :, top:bottom, left:right])
            probs = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
            around = (left, x.shape[3] - right, top, x.shape[2] - bottom)
            # One channel more counts the windows.
            total = total + F.pad(torch.cat([probs, torch.ones_like(probs[:, :1])], 1), around)
    assert isinstance(total, Tensor)
    return total[:, :-1] / total[:, -1:]


@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    crop=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    edge=st.sampled_from(EDGES),
    channels=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_sliding_is_the_naive_loop(
    size: tuple[int, int], crop: tuple[int, int], edge: Edge, channels: int, data: st.DataObject
) -> None:
    stride = (data.draw(st.integers(1, crop[0])), data.draw(st.integers(1, crop[1])))
    net, x = Local(channels), torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = slide(net, x, crop, stride, edge)
    assert (expected.sum() > 0) and expected.shape == (2, channels, *size)
    probs = predict_sliding(net, x, crop, stride, edge)
    torch.testing.assert_close(probs, expected, atol=1e-6, rtol=1e-5)
    bands = list(sliding_bands(net, x, crop, stride, edge))
    assert torch.equal(torch.cat(bands, dim=2), probs)
    assert max(band.shape[2] for band in bands) <= crop[0]


def test_edges_as_the_fields_code_has_them() -> None:
    # Cityscapes in small: 1024 x 2048 with windows of 801, two thirds of that from one to the next.
    net, x = Local(), torch.randn(1, 3, 1024 // 16, 2048 // 16)
    crop, stride = (50, 50), (33, 33)
    predict_sliding(net, x, crop, stride, "truncate")
    assert [shape[2:] for shape in net.shapes] == [
        (rows, columns) for rows in (50, 31) for columns in (50, 50, 50, 29)
    ]
    net.shapes.clear()
    predict_sliding(net, x, crop, stride)
    assert [shape[2:] for shape in net.shapes] == [(50, 50)] * 8
    with pytest.raises(ValueError, match='`edge` must be "shift" or "truncate"'):
        predict_sliding(net, x, crop, stride, "pad")  # type: ignore[arg-type]
    for wide in ((51, 33), (0, 33)):
        with pytest.raises(ValueError, match="`stride` must be"):
            predict_sliding(net, x, crop, wide)
    for scales in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="`scales` must be"):
            predict_multiscale(net, x, scales)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Triangle filter as wide as the step, which is what Pillow's bilinear is, pixel by pixel."""
    for dim, length in ((2, size[0]), (3, size[1])):
        old = x.shape[dim]
        step = old / length
        support = max(step, 1.0)
        centers = (torch.arange(length) + 0.5) * step
        weights = 1 - (torch.arange(old) + 0.5 - centers[:, None]).abs() / support
        weights = weights.clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True)
        x = torch.tensordot(x, weights, dims=([dim], [1])).movedim(-1, dim)
    return x


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [None, (9, 11)])
def test_multiscale_is_the_naive_mean(flip: bool, crop: tuple[int, int] | None) -> None:
    net, x = Local(), torch.randn(2, 3, 16, 20)
    scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    stride, edge = (5, 6), "truncate"
    predict = crop and partial(predict_sliding, crop=crop, stride=stride, edge=edge)
    views = []
    with torch.no_grad():
        for scale in scales:
            scaled = x if scale == 1 else resize(x, (round(16 * scale), round(20 * scale)))
            for mirror in (False, True) if flip else (False,):
                seen = scaled.flip(3) if mirror else scaled
                probs = slide(net, seen, crop, stride, edge) if crop else net(seen).softmax(1)
                probs = probs.flip(3) if mirror else probs
                views.append(probs if scale == 1 else resize(probs, (16, 20)))
    found = predict_multiscale(net, x, scales, flip, predict or None)
    torch.testing.assert_close(found, torch.stack(views).mean(0), atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_multiscale_leaves_what_predict_returns_as_it_was() -> None:
    kept = torch.full((1, 2, 4, 4), 0.5)
    x = torch.zeros(1, 3, 4, 4)
    predict_multiscale(nn.Identity(), x, [1.0, 1.0], False, lambda net, x: kept)
    assert (kept == 0.5).all()


@given(
    low=st.tuples(st.integers(1, 40), st.integers(1, 6)),
    high=st.tuples(st.integers(1, 3 * BAND), st.integers(1, 12)),
    channels=st.sampled_from([1, 3]),
)
def test_upsampling_in_bands_is_interpolate(
    low: tuple[int, int], high: tuple[int, int], channels: int
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, channels, *low)
    up = F.interpolate(logits, high, mode="bilinear", align_corners=False)
    best = up.sort(1, descending=True)[0]
    # Where two classes are level to the last bit, either is right.
    clear = up[:, 0].abs() > 1e-5 if channels == 1 else best[:, 0] - best[:, 1] > 1e-5
    expected = (up[:, 0] > 0).long() if channels == 1 else up.argmax(1)
    found = class_map(logits, high)
    assert found.shape == (2, *high) and clear.float().mean() > 0.5
    assert torch.equal(found[clear], expected[clear])


def item(height: int, width: int, seed: int = 0, mask: tuple[int, int] | None = None) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, 3, mask or (height, width), generator=generator)
    target[0, 0] = 255
    return Sample(tv_tensors.Image(image), tv_tensors.Mask(target))


@pytest.mark.parametrize("size", [None, (17, 30)])
def test_evaluating_in_bands_is_evaluating_whole_probabilities(
    size: tuple[int, int] | None,
) -> None:
    net, items = Local(), [item(20, 31), item(20, 31, 1), item(33, 9, 2)]
    score = partial(count_pixels, net, items, Classes.of(3), transform=eval_transform(), size=size)
    windows = {"crop": (8, 9), "stride": (5, 9), "edge": "truncate"}
    in_bands = score(predict=partial(sliding_bands, **windows))
    whole = score(predict=partial(predict_sliding, **windows))
    assert torch.equal(in_bands.counts, whole.counts)
    assert in_bands.counts.sum() == 2 * (20 * 31 - 1) + 33 * 9 - 1
    assert not torch.equal(in_bands.counts, score().counts)


def test_logits_and_masks_of_other_sizes_than_the_image_are_upsampled() -> None:
    net = nn.Sequential(Local(), nn.AvgPool2d(2))
    for mask in ((8, 12), (16, 25)):
        image, target = item(8, 12, mask=mask)
        with torch.no_grad():
            logits = net(eval_transform()(image).as_subclass(Tensor)[None])
        up = F.interpolate(logits, mask, mode="bilinear", align_corners=False).argmax(1)
        counted = target.as_subclass(Tensor) != 255
        found = count_pixels(
            net, [Sample(image, target)], Classes.of(3), transform=eval_transform()
        )
        right = (up[0] == target.as_subclass(Tensor))[counted].sum()
        assert found.counts.sum() == counted.sum() and found.counts.diagonal().sum() == right


class Largest(TorchDispatchMode):
    """Remembers how many floats the largest tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.floats = 0

    def __torch_dispatch__(  # type: ignore[override]
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.floats = max(self.floats, leaf.numel())
        return result


@pytest.mark.parametrize("height", [48, 96, 480])
def test_in_windows_there_is_never_more_than_a_row_of_them(height: int) -> None:
    channels, width, crop = 40, 24, 16
    net, data = Local(channels), [item(height, width)]
    windows = partial(sliding_bands, crop=(crop, crop), stride=(10, 10))
    with Largest() as largest:
        count_pixels(net, data, Classes.of(channels), transform=eval_transform(), predict=windows)
    assert largest.floats == max(channels * crop, 3 * height) * width  # a row, or the image
    with Largest() as largest:
        count_pixels(net, data, Classes.of(channels), transform=eval_transform())
    assert largest.floats >= channels * height * width


def test_upsampled_logits_are_never_all_there() -> None:
    with Largest() as largest:
        class_map(torch.zeros(1, 19, 10, 10), (10 * BAND, 30))
    assert largest.floats == 19 * BAND * 30


def test_large_images_go_through_the_network_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BATCH_PIXELS == 1024 * 2048
    monkeypatch.setattr("gmix.evaluation.scoring.BATCH_PIXELS", 3 * 8 * 8)
    net = Local()
    items = [item(8, 8, i) for i in range(4)] + [item(16, 16, i) for i in range(2)]
    count_pixels(net, items, Classes.of(3), transform=eval_transform())
    assert [shape[0] for shape in net.shapes] == [3, 1, 1, 1]
    net.shapes.clear()
    windows = partial(sliding_bands, crop=(8, 8), stride=(8, 8))
    count_pixels(net, items[4:], Classes.of(3), transform=eval_transform(), predict=windows)
    assert net.shapes == [(1, 3, 8, 8)] * 8
