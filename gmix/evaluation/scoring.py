"""Scoring a data set, in one process or in several."""

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
"""Images of more pixels than this together go through the network one by one."""


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
    """Scores a network on a data set, at each mask's own resolution.

    The image is resized for the network, its logits are upsampled to the mask; the mask is never
    resized. The network runs in eval mode and is put back into the mode it was in. What is kept
    from image to image is `num_classes**2` numbers; while it runs, a thread reads the next images, of
    2^21 pixels together or the next one.

    Args:
        net: Images `(N, C, H, W)` to logits `(N, K, H, W)`.
        dataset: Images with their masks, `Sample` or pairs of tensors, of any sizes. It is asked for one at a
            time, in order, by a thread.
        classes: Says how many classes there are, and whether it is one logit channel.
        transform: uint8 image to normalised float image, as `eval_transform(mean, std)`.
        size: Height and width the network sees; `None`: each image's own size.
        device: Where to run; the network must be there already.
        batch_size: Images per forward pass, and no more than have 2^21 pixels together, so that
            large images go one by one; neighbours of unequal size are never put together.
        predict: How, if not in one forward pass of whole images: `Inference`, which says which windows of an
            image and which scales; or any `(net, x) -> probs`, for images of `size`, where the probabilities
            may come in bands of rows.

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
    """The confusion matrix behind `evaluate`, of the whole data set or a share of it.

    Args:
        net: As all other arguments but the last: see `evaluate`.
        dataset: See there.
        classes: See there.
        transform: See there.
        size: See there.
        device: See there.
        batch_size: See there.
        predict: See there.
        indices: Which items to count; `None`: all. A share may be empty. Give each of several
            processes its own, every item once; shares that begin at a multiple of `batch_size` are
            predicted in the very batches that one process makes, and counted alike to the last bit.

    Raises:
        ValueError: As `evaluate`.

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
    """The sum of the counts of all processes of `torch.distributed`, the same in each.

    Whole numbers are added, so the scores are exactly those of one process. Without
    `torch.distributed.init_process_group` it is a copy.

    Args:
        matrix: What this process counted; left as it is.

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
    """The centre of every item, to repeat numbers that were measured so; compare them with no other.

    Some code validates on centre crops, because these make batches. The network then sees no
    border, and the pixels there, often the hard ones, count for nothing.

    Args:
        dataset: Images with their masks.
        size: Height and width of the centre; a smaller image is left as it is.

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
    """Class maps `(h, w)` of the images of a batch, as `evaluate` makes them.

    Args:
        net: Images to logits, in the mode it is to run in.
        x: Images `(N, C, H, W)`, normalised, where the network is.
        sizes: Height and width of each map.
        classes: As for `evaluate`.
        predict: `(net, x) -> probs` instead of one forward pass.

    Yields:
        int64, N of them.

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
        # Minus one half puts the binary threshold of a probability at 0, where a logit has it.
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
    """The items, one after the other; as many as a batch may have are read while others are used."""

    def read(rest: Iterator[int]) -> list[tuple[Tensor, Tensor]]:
        some, pixels = [], 0
        for index in rest:
            some.append(dataset[index])
            pixels += some[-1][1].numel()
            if len(some) >= batch_size or pixels >= BATCH_PIXELS:
                break
        return some

    # One thread: a data set need not be made for two at once.
    for some in takewhile(bool, ahead(read, repeat(iter(indices)), workers=1)):
        while some:
            yield some.pop(0)  # and keep none


def _batches(
    items: Iterable[tuple[Tensor, Tensor]],
    transform: Callable[[Any], Tensor],
    size: Size | None,
    batch_size: int,
    predict: Predict | None,
) -> Iterator[tuple[Tensor, list[Tensor], Predict | None]]:
    """Neighbours of one shape, their masks, and how they are predicted."""
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
        del image, mask, x  # else they were there until the next image is
        # Also where a share of the items may end: what stands beside an image decides how its last bits are rounded.
        if len(images) >= min(batch_size, most) or number % batch_size == 0:
            yield _stack(images), masks, how
            images, masks = [], []
    if images:
        yield _stack(images), masks, how


def _stack(images: list[Tensor]) -> Tensor:
    return images[0][None] if len(images) == 1 else torch.stack(images)  # no copy of a large one
