"""Scores of a data set, in one process or in several."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat, takewhile
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from gmix.data.classes import Classes
from gmix.data.datasets import Sample
from gmix.data.prefetch import ahead
from gmix.evaluation.confusion import ConfusionMatrix, Scores
from gmix.evaluation.inference import Predict, Size, class_map, fit
from gmix.nn.modes import eval_mode
from gmix.protocols import LabeledDataset

BATCH_SIZE = 8

BATCH_PIXELS = 2**21
"""Images with more pixels than this together go through the network one by one."""


def evaluate(
    net: nn.Module,
    dataset: LabeledDataset,
    classes: Classes,
    *,
    transform: Callable[[Any], Tensor],
    size: Size | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    predict: Predict | None = None,
) -> Scores:
    """Score a network on a data set, at the resolution of each mask.

    The image is resized for the network, and its logits are upsampled to the mask; the mask is never
    resized. The network runs in eval mode, and its mode is restored afterwards. Only `num_classes**2`
    numbers are kept from image to image. While the network runs, a thread reads the next images, up to
    2^21 pixels together, but at least one.

    Args:
        net: Network from images `(N, C, H, W)` to logits `(N, K, H, W)`.
        dataset: Images with their masks, `Sample` or pairs of tensors, of any sizes. A thread reads the items one
            at a time, in order.
        classes: The classes; they define the number of logit channels (one if binary).
        transform: Maps a uint8 image to a normalised float image, as `eval_transform(mean, std)`.
        size: Height and width of the network's input; `None`: the size of each image.
        device: Device to run on; the network must be there already.
        batch_size: Largest number of images per forward pass. A batch has at most 2^21 pixels, so large
            images go one by one; neighbours of different sizes are never batched.
        predict: Replaces a forward pass of whole images: an `Inference`, with the windows and scales, or any
            `(net, x) -> probs` for images of `size`, which may return the probabilities in bands of rows.

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
    return count_pixels(
        net,
        dataset,
        classes,
        transform=transform,
        size=size,
        device=device,
        batch_size=batch_size,
        predict=predict,
    ).scores()


@torch.inference_mode()
def count_pixels(
    net: nn.Module,
    dataset: LabeledDataset,
    classes: Classes,
    *,
    transform: Callable[[Any], Tensor],
    size: Size | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    predict: Predict | None = None,
    indices: Iterable[int] | None = None,
) -> ConfusionMatrix:
    """Compute the confusion matrix behind `evaluate`, for the whole data set or a part of it.

    Args:
        net: As for `evaluate`, like all other arguments but the last.
        dataset: As for `evaluate`.
        classes: As for `evaluate`.
        transform: As for `evaluate`.
        size: As for `evaluate`.
        device: As for `evaluate`.
        batch_size: As for `evaluate`.
        predict: As for `evaluate`.
        indices: Items to count; `None`: all. May be empty. With several processes, give each its own
            items, and every item once. Parts that begin at a multiple of `batch_size` are predicted in
            the same batches as in a single process, and give the same counts to the last bit.

    Raises:
        ValueError: As for `evaluate`.

    Examples:
        >>> from torchvision import tv_tensors
        >>> from gmix.data import eval_transform
        >>> image = tv_tensors.Image(torch.tensor([[[0, 255]]] * 3, dtype=torch.uint8))
        >>> item = Sample(image, tv_tensors.Mask(torch.tensor([[0, 1]])))
        >>> net = nn.Conv2d(3, 2, 1)
        >>> data, classes, transform = [item] * 5, Classes.of(2), eval_transform()
        >>> count_pixels(net, data, classes, transform=transform, indices=range(1, 5, 2)).counts.sum()
        tensor(4)
    """
    length = len(dataset)
    if length == 0:
        raise ValueError("expected at least one image to evaluate on, got none")
    items = _read(dataset, range(length) if indices is None else indices, batch_size)
    matrix = ConfusionMatrix(classes.num_classes)
    with eval_mode(net):
        for x, masks, how in _batches(items, transform, size, batch_size, predict):
            sizes = [(mask.shape[-2], mask.shape[-1]) for mask in masks]
            preds = class_maps(net, x.to(device), sizes, classes, how)
            for pred, mask in zip(preds, masks, strict=True):
                matrix.update(pred[None], mask[None].to(device))
            del x, masks, pred, mask  # before the next images are made
    return matrix


def add_other_processes(matrix: ConfusionMatrix) -> ConfusionMatrix:
    """Add up the counts of all processes of `torch.distributed`; every process gets the same sum.

    Integers are added, so the scores are exactly those of a single process. Without
    `torch.distributed.init_process_group` the result is a copy.

    Args:
        matrix: The counts of this process; not modified.

    Examples:
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
        >>> add_other_processes(matrix).scores().miou
        1.0
    """
    total = ConfusionMatrix(matrix.num_classes, matrix.ignore_index)
    counts = matrix.counts.clone()
    if distributed.is_available() and distributed.is_initialized():
        # NCCL adds on GPUs only.
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        counts = counts.to(device)
        distributed.all_reduce(counts)
    total.counts += counts.cpu()
    return total


class CenterCrop(Dataset[Sample]):
    """Crop the centre of every item, only to repeat numbers that were measured on centre crops.

    Some code validates on centre crops, because these can be batched. The network then sees no
    borders, and their pixels, which are often hard, do not count. Do not compare the numbers with others.

    Args:
        dataset: Images with their masks.
        size: Height and width of the centre; a smaller image is not cropped.

    Examples:
        >>> image = tv_tensors.Image(torch.zeros(3, 6, 9, dtype=torch.uint8))
        >>> item = Sample(image, tv_tensors.Mask(torch.zeros(6, 9, dtype=torch.int64)))
        >>> [tuple(part.shape) for part in CenterCrop([item], (4, 20))[0]]
        [(3, 4, 9), (4, 9)]
    """

    def __init__(self, dataset: LabeledDataset, size: Size) -> None:
        self.dataset = dataset
        self.size = size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.dataset[index]
        rows, columns = (
            slice(max(length - side, 0) // 2, max(length - side, 0) // 2 + side)
            for length, side in zip(mask.shape[-2:], self.size, strict=True)
        )
        return Sample(
            tv_tensors.Image(image[..., rows, columns]), tv_tensors.Mask(mask[..., rows, columns])
        )


def class_maps(
    net: nn.Module,
    x: Tensor,
    sizes: Sequence[Size],
    classes: Classes,
    predict: Predict | None = None,
) -> Iterator[Tensor]:
    """Yield the class maps `(h, w)` of the images of a batch, as `evaluate` computes them.

    Args:
        net: Network from images to logits, in the mode to run in.
        x: Normalised images `(N, C, H, W)`, on the network's device.
        sizes: Height and width of each map.
        classes: As for `evaluate`.
        predict: `(net, x) -> probs` instead of one forward pass.

    Yields:
        N int64 tensors `(h, w)`.

    Raises:
        ValueError: If the network has another number of channels.

    Examples:
        >>> x = torch.tensor([[[[1.0, -1.0]]]])
        >>> [found.tolist() for found in class_maps(nn.Identity(), x, [(1, 4)], Classes.of(1))]
        [[[1, 1, 0, 0]]]
    """
    found = net(x) if predict is None else predict(net, x)

    def fit(logits: Tensor) -> Tensor:
        if logits.shape[1] != classes.channels:
            raise ValueError(
                f"the network gives {logits.shape[1]} channels, but the data set needs "
                f"{classes.channels}: build it with `classes={classes.channels}`"
            )
        # Minus one half moves the binary threshold of a probability to 0, the threshold of a logit.
        return logits - 0.5 if classes.binary and predict is not None else logits

    if isinstance(found, Tensor):
        logits = fit(found)
    elif all(size == tuple(x.shape[-2:]) for size in sizes):
        maps = []
        for band in found:
            maps.append(class_map(fit(band)))
            del band  # before the next is made
        yield from torch.cat(maps, dim=1)
        return
    else:
        logits = fit(torch.cat(list(found), dim=2))
    for row, size in zip(logits, sizes, strict=True):
        yield class_map(row[None], size)[0]


def _read(
    dataset: LabeledDataset, indices: Iterable[int], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the items in order, while a thread reads up to a batch of them ahead."""

    def read(rest: Iterator[int]) -> list[tuple[Tensor, Tensor]]:
        some, pixels = [], 0
        for index in rest:
            some.append(dataset[index])
            pixels += some[-1][1].numel()
            if len(some) >= batch_size or pixels >= BATCH_PIXELS:
                break
        return some

    # One thread: a data set need not be thread-safe.
    for some in takewhile(bool, ahead(read, repeat(iter(indices)), workers=1)):
        while some:
            yield some.pop(0)  # keeps no reference


def _batches(
    items: Iterable[tuple[Tensor, Tensor]],
    transform: Callable[[Any], Tensor],
    size: Size | None,
    batch_size: int,
    predict: Predict | None,
) -> Iterator[tuple[Tensor, list[Tensor], Predict | None]]:
    """Yield batches of neighbours of one shape, their masks, and how to predict them."""
    images: list[Tensor] = []
    masks: list[Tensor] = []
    how = predict
    for number, (image, mask) in enumerate(items, 1):
        seen, own = fit(predict, (image.shape[-2], image.shape[-1]), size)
        if seen is not None:
            image = v2.functional.resize(image, list(seen), antialias=True)
        x = transform(image).as_subclass(Tensor)
        if images and (images[0].shape != x.shape or how != own):
            yield _stack(images), masks, how
            images, masks = [], []
        how = own
        images.append(x)
        masks.append(mask.as_subclass(Tensor))
        most = BATCH_PIXELS // (x.shape[-2] * x.shape[-1])
        del image, mask, x  # otherwise they stay in memory until the next image is read
        # Also at multiples of `batch_size`, where the part of another process may end: the composition of a batch
        # affects the rounding of the last bits.
        if len(images) >= min(batch_size, most) or number % batch_size == 0:
            yield _stack(images), masks, how
            images, masks = [], []
    if images:
        yield _stack(images), masks, how


def _stack(images: list[Tensor]) -> Tensor:
    return (
        images[0][None] if len(images) == 1 else torch.stack(images)
    )  # avoids a copy of a large image
