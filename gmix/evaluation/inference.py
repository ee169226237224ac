"""Predicting whole images, in windows or at several scales, and scoring a data set."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import v2

from gmix.data.classes import Classes
from gmix.data.datasets import Sample
from gmix.evaluation.confusion import ConfusionMatrix, Scores
from gmix.modes import eval_mode

Size = tuple[int, int]


def to_probs(logits: Tensor) -> Tensor:
    """Softmax over the channels `(N, K, H, W)`, or the sigmoid if there is one; in float32."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def class_map(logits: Tensor, size: Size | None = None) -> Tensor:
    """The class of each pixel.

    Args:
        logits: `(N, K, H, W)`; one channel means binary.
        size: Height and width to upsample the logits to (bilinear); `None` keeps theirs.

    Returns:
        int64 `(N, h, w)`: the channel with the highest logit, or 1 where the only one is above 0.

    Examples:
        >>> class_map(torch.tensor([[[[-1.0, 2.0]]]])).tolist()
        [[[0, 1]]]
    """
    if size is not None and size != tuple(logits.shape[-2:]):
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


@torch.inference_mode()
def evaluate(
    net: nn.Module,
    dataset: Dataset[Sample] | Sequence[Sample],
    classes: Classes,
    *,
    transform: Callable[[Any], Tensor],
    size: Size | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Scores:
    """Scores a network on a data set, at each mask's own resolution.

    The image is resized for the network, its logits are upsampled to the mask; the mask is never
    resized. The network runs in eval mode and is put back into the mode it was in.

    Args:
        net: Images `(N, C, H, W)` to logits `(N, K, H, W)`.
        dataset: Items of `Sample`, of any sizes.
        classes: Says how many classes there are, and whether it is one logit channel.
        transform: uint8 image to normalised float image, as `eval_transform(mean, std)`.
        size: Height and width the network sees; `None`: each image's own size.
        device: Where to run; the network must be there already.
        batch_size: Images per forward pass; neighbours of unequal size are never put together.
        predict: `(net, x) -> probs` instead of one forward pass of whole images, e.g.
            `functools.partial(predict_sliding, crop=(513, 513), stride=(342, 342))`.

    Raises:
        ValueError: If the data set is empty or the network has another number of channels.

    Examples:
        >>> from torchvision import tv_tensors
        >>> from gmix.data import eval_transform
        >>> image = tv_tensors.Image(torch.tensor([[[0, 255]]] * 3, dtype=torch.uint8))
        >>> mask = tv_tensors.Mask(torch.tensor([[0, 1]]))
        >>> net = nn.Conv2d(3, 1, 1)
        >>> _ = nn.init.ones_(net.weight), nn.init.zeros_(net.bias)
        >>> evaluate(net, [Sample(image, mask)], Classes.of(1), transform=eval_transform()).miou
        1.0
    """
    matrix = ConfusionMatrix(classes.num_classes)
    with eval_mode(net):
        for images, masks in _batches(dataset, transform, size, batch_size):
            x = torch.stack(images).to(device)
            # Minus one half puts the binary threshold of a probability at 0, where a logit has it.
            logits = net(x) if predict is None else predict(net, x) - 0.5
            if logits.shape[1] != classes.channels:
                raise ValueError(
                    f"the network gives {logits.shape[1]} channels, but the data set needs "
                    f"{classes.channels}: build it with `classes={classes.channels}`"
                )
            for row, mask in zip(logits, masks, strict=True):
                pred = class_map(row[None], (mask.shape[-2], mask.shape[-1]))
                matrix.update(pred, mask[None].to(device))
    return matrix.scores()


@torch.no_grad()
def predict_sliding(net: nn.Module, x: Tensor, crop: Size, stride: Size) -> Tensor:
    """Averages the probabilities of overlapping windows that cover the image.

    Args:
        net: Images to logits, in the mode it is to run in.
        x: Images `(N, C, H, W)`.
        crop: Height and width of a window; a smaller image is one window.
        stride: Steps down and right, at most `crop`; the last window ends at the border.

    Returns:
        Probabilities `(N, K, H, W)`.

    Raises:
        ValueError: If a stride is below 1 or larger than the window, which would leave gaps.

    Examples:
        >>> probs = predict_sliding(nn.Identity(), torch.zeros(1, 2, 5, 7), (4, 4), (2, 2))
        >>> probs.shape, probs.unique()
        (torch.Size([1, 2, 5, 7]), tensor([0.5000]))
    """
    if not all(1 <= step <= length for step, length in zip(stride, crop, strict=True)):
        raise ValueError(f"`stride` must be at least 1 and at most `crop`, got {stride} and {crop}")
    height, width = x.shape[-2:]
    total: Tensor | None = None
    windows = torch.zeros(height, width, device=x.device)
    for top in _starts(height, crop[0], stride[0]):
        for left in _starts(width, crop[1], stride[1]):
            window = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
            probs = to_probs(net(x[window]))
            if total is None:
                total = probs.new_zeros(*probs.shape[:2], height, width)
            total[window] += probs
            windows[window] += 1
    assert total is not None
    return total / windows


@torch.no_grad()
def predict_multiscale(
    net: nn.Module, x: Tensor, scales: Sequence[float], flip: bool = True
) -> Tensor:
    """Averages the probabilities over scaled and left-right flipped copies of the image.

    Args:
        net: Images to logits, in the mode it is to run in.
        x: Images `(N, C, H, W)`.
        scales: Factors for height and width; the paper uses 0.5, 0.75, ..., 1.75.
        flip: Whether to add the flipped copy at each scale.

    Returns:
        Probabilities `(N, K, H, W)`.

    Raises:
        ValueError: If there is no scale or one is not positive.

    Examples:
        >>> predict_multiscale(nn.Identity(), torch.zeros(1, 2, 4, 4), (0.5, 1.0)).unique()
        tensor([0.5000])
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"`scales` must be one or more positive factors, got {tuple(scales)}")
    size = x.shape[-2:]
    views = []
    for scale in scales:
        scaled = _resize(x, [max(1, round(length * scale)) for length in size])
        views.append(_resize(to_probs(net(scaled)), size))
        if flip:
            views.append(_resize(to_probs(net(scaled.flip(-1))).flip(-1), size))
    return torch.stack(views).mean(dim=0)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def _batches(
    dataset: Any, transform: Callable[[Any], Tensor], size: Size | None, batch_size: int
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    if len(dataset) == 0:
        raise ValueError("expected at least one image to evaluate on, got none")
    images: list[Tensor] = []
    masks: list[Tensor] = []
    for index in range(len(dataset)):
        image, mask = dataset[index]
        if size is not None:
            image = v2.functional.resize(image, list(size), antialias=True)
        image = transform(image).as_subclass(Tensor)
        if images and (len(images) == batch_size or images[0].shape != image.shape):
            yield images, masks
            images, masks = [], []
        images.append(image)
        masks.append(mask.as_subclass(Tensor))
    yield images, masks
