"""Prediction of whole images, in windows or at several scales."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gmix.functional import probabilities
from gmix.functional.masks import of_all_classes

Size = tuple[int, int]
Edge = Literal["shift", "truncate"]
Predict = Callable[[nn.Module, Tensor], Tensor | Iterable[Tensor]]
"""`(net, x) -> probs` `(N, K, H, W)`, or the same in bands of rows from top to bottom."""

BAND = 128
"""Rows of a class map that are computed at a time, so that not all logits are in memory."""


def to_logits(probs: Tensor) -> Tensor:
    """Invert `probabilities`: return logits `(N, K, H, W)` that give these probabilities, up to rounding.

    Examples:
        >>> to_logits(torch.tensor([[[[0.25]], [[0.75]]]])).softmax(dim=1).flatten()
        tensor([0.2500, 0.7500])
    """
    probs = probs.float()
    bounds = torch.finfo(probs.dtype)
    if probs.shape[1] == 1:
        return probs.logit(eps=bounds.eps)
    return probs.clamp(min=bounds.tiny).log()  # finite, because they may be upsampled


def class_map(logits: Tensor, size: Size | None = None) -> Tensor:
    """Return the class of each pixel.

    Upsampled logits exist only for a band of rows at a time, so a large map takes only the memory of its int64 classes.

    Args:
        logits: `(N, K, H, W)`; one channel means binary.
        size: Height and width to upsample the logits to (bilinear); `None` keeps theirs.

    Returns:
        An int64 tensor `(N, h, w)`: the channel with the highest logit, or 1 where the only logit is above 0.

    Examples:
        >>> class_map(torch.tensor([[[[-1.0, 2.0]]]])).tolist()
        [[[0, 1]]]
        >>> class_map(torch.tensor([[[[-1.0, 2.0]]]]), (1, 4)).tolist()
        [[[0, 0, 1, 1]]]
    """
    if size is None or size == tuple(logits.shape[-2:]):
        return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
    return torch.cat([class_map(band) for band in _upsampled(logits, size)], dim=1)


def most_likely(logits: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
    """Return the class of each pixel, as `class_map`, and its probability.

    Args:
        logits: `(N, K, H, W)`; one channel means binary.
        size: Height and width to upsample the logits to (bilinear); `None` keeps theirs.

    Returns:
        The classes, int64 `(N, h, w)`, and their probabilities, float32 `(N, h, w)`, at least 1/K (1/2
        if binary).

    Examples:
        >>> classes, confidence = most_likely(torch.zeros(1, 4, 1, 1))
        >>> classes.tolist(), confidence.tolist()
        ([[[0]]], [[[0.25]]])
    """
    if size is None or size == tuple(logits.shape[-2:]):
        found = [_most_likely(band) for band in torch.split(logits, BAND, dim=2)]
    else:
        found = [_most_likely(band) for band in _upsampled(logits, size)]
    classes, confidence = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return classes, confidence


def sliding_bands(
    net: nn.Module, x: Tensor, crop: Size, stride: Size, edge: Edge = "shift"
) -> Iterator[Tensor]:
    """Average the probabilities of overlapping windows that cover the image, band by band.

    `P(p) = 1/|W_p| * sum_{w in W_p} probs_w(p)`, with `W_p` the windows that contain pixel p. A row is
    yielded as soon as no further window contains it, so that at most `crop[0]` rows of sums are
    kept, whatever the height of the image.

    Args:
        net: Network from images to logits, in the mode to run in.
        x: Images `(N, C, H, W)`.
        crop: Height and width of a window; a smaller image is one window.
        stride: Steps down and right, at most `crop`.
        edge: For a window that would cross the border: "shift" moves it back so that it ends there,
            "truncate" cuts it there, so that the last windows are smaller than `crop`.

    Yields:
        Probabilities `(N, K, h, W)` of the next h rows, from top to bottom.

    Raises:
        ValueError: If a stride is below 1 or larger than the window, which would leave gaps, or if
            `edge` is unknown.

    Examples:
        >>> bands = sliding_bands(nn.Identity(), torch.zeros(1, 2, 9, 7), (4, 4), (3, 3))
        >>> [tuple(band.shape) for band in bands]
        [(1, 2, 3, 7), (1, 2, 2, 7), (1, 2, 4, 7)]
    """
    if not all(1 <= step <= length for step, length in zip(stride, crop, strict=True)):
        raise ValueError(f"`stride` must be at least 1 and at most `crop`, got {stride} and {crop}")
    if edge not in ("shift", "truncate"):
        raise ValueError(f'`edge` must be "shift" or "truncate", got {edge!r}')
    height, width = x.shape[-2:]
    tops = _starts(height, crop[0], stride[0], edge)
    lefts = _starts(width, crop[1], stride[1], edge)
    windows = torch.outer(_cover(height, crop[0], tops), _cover(width, crop[1], lefts)).to(x.device)
    shared: Tensor | None = None  # sums of the rows that belong to the windows above, too
    for top, below in pairwise([*tops, height]):
        sums = _add_windows(net, x[:, :, top : top + crop[0]], lefts, crop[1], shared)
        shared = sums[:, :, below - top :].clone()
        yield sums[:, :, : below - top].div_(windows[top:below])
        del sums  # before the next row of windows


@torch.no_grad()
def predict_sliding(
    net: nn.Module, x: Tensor, crop: Size, stride: Size, edge: Edge = "shift"
) -> Tensor:
    """Average the probabilities of overlapping windows that cover the image.

    Concatenates the bands of `sliding_bands`, for callers that need all probabilities at once.

    Args:
        net: Network from images to logits, in the mode to run in.
        x: Images `(N, C, H, W)`.
        crop: Height and width of a window; a smaller image is one window.
        stride: Steps down and right, at most `crop`.
        edge: "shift": the last window is moved back to end at the border; "truncate": it is cut there.

    Returns:
        Probabilities `(N, K, H, W)`.

    Raises:
        ValueError: As for `sliding_bands`.

    Examples:
        >>> probs = predict_sliding(nn.Identity(), torch.zeros(1, 2, 5, 7), (4, 4), (2, 2))
        >>> probs.shape, probs.unique()
        (torch.Size([1, 2, 5, 7]), tensor([0.5000]))
    """
    whole: Tensor | None = None
    top = 0
    for band in sliding_bands(net, x, crop, stride, edge):
        if whole is None:
            whole = band.new_empty(*band.shape[:2], *x.shape[-2:])
        whole[:, :, top : top + band.shape[2]] = band
        top += band.shape[2]
    assert whole is not None
    return whole


@torch.no_grad()
def predict_multiscale(
    net: nn.Module,
    x: Tensor,
    scales: Sequence[float],
    flip: bool = True,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Tensor:
    """Average the probabilities over scaled and left-right flipped copies of the image.

    Args:
        net: Network from images to logits, in the mode to run in.
        x: Images `(N, C, H, W)`.
        scales: Factors for height and width; the paper uses 0.5, 0.75, ..., 1.75.
        flip: Whether to add the flipped copy at each scale.
        predict: `(net, x) -> probs` for each copy; by default a forward pass. With
            `functools.partial(predict_sliding, ...)` every copy is cut into windows of one size.

    Returns:
        Probabilities `(N, K, H, W)`.

    Raises:
        ValueError: If there is no scale, or a scale is not positive.

    Examples:
        >>> predict_multiscale(nn.Identity(), torch.zeros(1, 2, 4, 4), (0.5, 1.0)).unique()
        tensor([0.5000])
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"`scales` must be one or more positive factors, got {tuple(scales)}")
    size = x.shape[-2:]
    predict = predict or (lambda net, x: probabilities(net(x)))
    share = 1 / (len(scales) * (1 + flip))
    total: Tensor | None = None
    for scale in scales:
        scaled = _resize(x, [max(1, round(length * scale)) for length in size])
        for mirrored in (False, True)[: 1 + flip]:
            probs = predict(net, scaled.flip(-1) if mirrored else scaled)
            probs = _resize(probs, size)
            probs = probs.flip(-1) if mirrored else probs
            # A running sum: two maps are kept, whatever the number of scales.
            total = probs * share if total is None else total.add_(probs, alpha=share)
    assert total is not None
    return total


@dataclass(frozen=True)
class Inference:
    """Predict images whole or in windows, at one or several scales, mirrored or not; a `Predict`.

    Attributes:
        crop: Height and width of a window, in pixels of the image; `None`: the whole image.
        stride: Steps down and right, at most `crop`.
        edge: Treatment of windows at the border, as for `sliding_bands`.
        scales: Factors to average over, as for `predict_multiscale`.
        flip: Whether to average with the mirrored image as well.

    Examples:
        >>> Inference()(nn.Identity(), torch.zeros(1, 2, 4, 4)).unique()
        tensor([0.5000])
    """

    crop: Size | None = None
    stride: Size = (1, 1)
    edge: Edge = "shift"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __call__(self, net: nn.Module, x: Tensor) -> Tensor | Iterator[Tensor]:
        """Predict the probabilities of images `(N, C, H, W)`, in bands of rows if there is one view of each."""
        if self.crop is None:
            return predict_multiscale(net, x, self.scales, self.flip)
        if self._one_view:
            return sliding_bands(net, x, self.crop, self.stride, self.edge)
        predict = partial(predict_sliding, crop=self.crop, stride=self.stride, edge=self.edge)
        return predict_multiscale(net, x, self.scales, self.flip, predict)

    def fit(self, image: Size, size: Size | None) -> "tuple[Size | None, Inference | None]":
        """Fit windows to an image and to the input size of the network.

        An image that fits in a window is predicted whole, as without windows. Otherwise, a network that was trained on
        images resized to `size` gets each window at that size: the image is resized so that a window becomes `size`.

        Args:
            image: Height and width of the image.
            size: Height and width that the network was trained with; `None`: the size of each image.

        Returns:
            The size to resize the image to (`None`: not resized), and how to predict it then (`None`: in one pass).

        Examples:
            >>> windows = Inference((100, 100), (50, 50))
            >>> windows.fit((80, 100), (32, 32))
            ((32, 32), None)
            >>> size, scaled = windows.fit((400, 300), (32, 32))
            >>> size, scaled.crop, scaled.stride
            ((128, 96), (32, 32), (16, 16))
        """
        if self.crop is None:
            return size, None if self._one_view else self
        whole = all(length <= side for length, side in zip(image, self.crop, strict=True))
        if whole and self._one_view:
            return size, None
        if size is None:
            return None, self
        stride = _scaled(self.stride, size, self.crop)
        resized = size if whole else _scaled(image, size, self.crop)
        return resized, replace(self, crop=size, stride=stride)

    @property
    def _one_view(self) -> bool:
        return not self.flip and set(self.scales) == {1.0}


def fit(
    predict: Predict | None, image: Size, size: Size | None
) -> tuple[Size | None, Predict | None]:
    """Apply `Inference.fit`; any other `Predict` gets images of `size`."""
    return predict.fit(image, size) if isinstance(predict, Inference) else (size, predict)


def _scaled(lengths: Size, size: Size, crop: Size) -> Size:
    """Scale lengths in pixels by the factor from `crop` to `size`."""
    height, width = (
        max(1, round(length * new / old))
        for length, new, old in zip(lengths, size, crop, strict=True)
    )
    return height, width


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    classes, probs = class_map(logits), of_all_classes(probabilities(logits))
    return classes, probs.gather(1, classes[:, None])[:, 0]


def _upsampled(logits: Tensor, size: Size) -> Iterator[Tensor]:
    """Yield `F.interpolate(logits, size, mode="bilinear")` in bands of rows."""
    last = logits.shape[-2] - 1
    rows = (torch.arange(size[0], device=logits.device) + 0.5) * ((last + 1) / size[0]) - 0.5
    rows = rows.clamp(0, last)
    for place in torch.split(rows, BAND):
        upper = place.floor().long()
        lower = (upper + 1).clamp(max=last)
        first = int(upper[0])
        near = logits[:, :, first : int(lower[-1]) + 1].float()
        near = F.interpolate(near, (near.shape[2], size[1]), mode="bilinear", align_corners=False)
        share = (place - upper)[:, None]
        yield near[:, :, upper - first] * (1 - share) + near[:, :, lower - first] * share


@torch.no_grad()
def _add_windows(
    net: nn.Module, x: Tensor, lefts: Sequence[int], width: int, above: Tensor | None
) -> Tensor:
    """Add up the probabilities of a row of windows, and those of the row above."""
    sums: Tensor | None = None
    for left in lefts:
        probs = probabilities(net(x[..., left : left + width]))
        if sums is None:
            sums = probs.new_zeros(*probs.shape[:2], *x.shape[-2:])
            if above is not None:
                sums[:, :, : above.shape[2]] = above
        sums[..., left : left + width] += probs
    assert sums is not None
    return sums


def _starts(length: int, window: int, stride: int, edge: Edge) -> list[int]:
    last = max(length - window, 0)
    if edge == "truncate":
        return list(range(0, last + stride, stride))
    return [*range(0, last, stride), last]


def _cover(length: int, window: int, starts: Sequence[int]) -> Tensor:
    """Count the windows that contain each place."""
    windows = torch.zeros(length)
    for start in starts:
        windows[start : start + window] += 1
    return windows
