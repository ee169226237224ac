"""Batches of labeled and unlabeled images: batch t is a pure function of (seed, t)."""

import copy
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from gmix.data.classes import IGNORE
from gmix.protocols import LabeledDataset, MapDataset

Transform = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""`(image, mask) -> (image, mask)`: `train_transform(...)`, any torchvision v2 transform, or your own; what it draws
from torch, numpy (`np.random`) or `random` is seeded for each image. A generator of its own (`np.random.default_rng()`,
`random.Random()`, `torch.Generator()`, those inside albumentations) is not, and every loader process draws the same
from it: seed it within each call, from `torch.randint(2**31, ()).item()`."""


class Batch(NamedTuple):
    """A training batch.

    Attributes:
        x_labeled: Float `(N, C, H, W)`.
        y_labeled: int64 `(N, H, W)`, 255 for padded or ignored pixels; uint8 in transfer from a loader process.
        x_unlabeled: Float `(M, C, H, W)`, or `None` without unlabeled images.
        valid_unlabeled: Bool `(M, H, W)`, `False` exactly at padded pixels, or `None`.
    """

    x_labeled: Tensor
    y_labeled: Tensor
    x_unlabeled: Tensor | None = None
    valid_unlabeled: Tensor | None = None

    def to(
        self,
        device: torch.device | str,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> "Batch":
        """Move the batch to another device, converting images to a memory format."""
        moved: Any = (t if t is None else t.to(device, non_blocking=True) for t in self)
        x_labeled, y_labeled, x_unlabeled, valid = moved
        x_labeled, y_labeled = x_labeled.to(memory_format=memory_format), y_labeled.long()
        if x_unlabeled is not None:
            x_unlabeled = x_unlabeled.to(memory_format=memory_format)
        return Batch(x_labeled, y_labeled, x_unlabeled, valid)

    def split(self, count: int) -> "list[Batch]":
        """Split the batch into micro-batches of equal size, in order.

        Args:
            count: Number of micro-batches; must divide the numbers of labeled and of unlabeled images.

        Examples:
            >>> batch = Batch(torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 8), torch.zeros(6, 3, 8, 8))
            >>> [(len(one.x_labeled), len(one.x_unlabeled)) for one in batch.split(2)]
            [(2, 3), (2, 3)]
        """
        pieces: Any = ([None] * count if t is None else t.chunk(count) for t in self)
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]


class TwoStream(Dataset[Batch]):
    """Map-style data set whose item t *is* batch t, for every t >= 0.

    Each stream visits all its images in a new order every epoch; a batch may reach into the next epoch, and may be
    larger than the data set. Order and augmentation depend on `(seed, stream, position)` alone: not on the number of
    workers or where the run was resumed, and in the labeled stream not on whether there is an unlabeled one. Each visit
    of an image has a new augmentation.

    Use it with `DataLoader(stream, batch_size=None, sampler=range(start, steps), num_workers=w)`.

    Args:
        labeled: Data set of images with masks: of `Sample`, or of pairs of tensors.
        unlabeled: Data set of images, or `None`.
        batch_labeled: Number of labeled images per batch.
        batch_unlabeled: Number of unlabeled images per batch.
        labeled_transform: Function `(image, mask) -> (image, mask)`; all results must have the same size.
        unlabeled_transform: The same for unlabeled images; it receives a mask of zeros. Pixels whose mask it pads with
            255 are marked as not valid.
        seed: Any integer.

    Raises:
        ValueError: If a data set is empty or a batch size is not positive.

    Examples:
        >>> from gmix.data import train_transform
        >>> image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
        >>> mask = tv_tensors.Mask(torch.zeros(8, 8, dtype=torch.int64))
        >>> transform = train_transform(crop=(8, 8))
        >>> stream = TwoStream([(image, mask)], [image] * 5, 2, 3, transform, transform, 0)
        >>> batch = stream[1000]
        >>> batch.x_labeled.shape, batch.valid_unlabeled.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([3, 8, 8]))
        >>> stream.indices(0)[1], stream.indices(1)[1]
        ([0, 1, 3], [4, 2, 1])
    """

    def __init__(
        self,
        labeled: LabeledDataset,
        unlabeled: MapDataset[Tensor] | None,
        batch_labeled: int,
        batch_unlabeled: int,
        labeled_transform: Transform,
        unlabeled_transform: Transform,
        seed: int,
    ) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.batch_labeled = batch_labeled
        self.batch_unlabeled = batch_unlabeled
        self.labeled_transform = labeled_transform
        self.unlabeled_transform = unlabeled_transform
        self.seed = seed
        self.shard_index, self.shard_count = 0, 1
        self._shuffled: dict[str, tuple[int, Tensor]] = {}  # by stream: epoch and its order
        _check("labeled", len(self.labeled), batch_labeled)
        if self.unlabeled is not None:
            _check("unlabeled", len(self.unlabeled), batch_unlabeled)

    def shard(self, index: int, count: int) -> "TwoStream":
        """Return a stream of one of `count` equal shards of each batch, for distributed training.

        Together, the shards make up the batches of the whole stream.

        Args:
            index: Index of the shard, 0 .. count - 1; batches equal `Batch.split(count)[index]`.
            count: Number of shards; must divide both batch sizes.

        Examples:
            >>> images = [tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))] * 5
            >>> masks = [tv_tensors.Mask(torch.zeros(8, 8, dtype=torch.int64))] * 5
            >>> samples = list(zip(images, masks, strict=True))
            >>> stream = TwoStream(samples, images, 2, 4, lambda *x: x, lambda *x: x, seed=0)
            >>> stream.indices(0), [stream.shard(index, 2).indices(0) for index in (0, 1)]
            (([2, 3], [0, 1, 3, 4]), [([2], [0, 1]), ([3], [3, 4])])
        """
        shard = copy.copy(self)
        shard.shard_index, shard.shard_count = index, count
        return shard

    def indices(self, step: int) -> tuple[list[int], list[int]]:
        """Return the indices of the labeled and unlabeled images of batch `step`, or of this shard of it."""
        positions = self._positions(self.batch_labeled, step)
        labeled = self._order("labeled", len(self.labeled), positions)
        if self.unlabeled is None:
            return labeled, []
        positions = self._positions(self.batch_unlabeled, step)
        return labeled, self._order("unlabeled", len(self.unlabeled), positions)

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"`step` must be 0 or more, got {step}")
        labeled, unlabeled = self.indices(step)
        images, masks = [], []
        for place, index in zip(self._positions(self.batch_labeled, step), labeled, strict=True):
            image, mask = self.labeled[index]
            image, mask = self._augment(self.labeled_transform, image, mask, "labeled", place)
            images.append(image)
            masks.append(mask.long())
        x_labeled, y_labeled = torch.stack(images), torch.stack(masks)
        if self.unlabeled is None:
            return Batch(x_labeled, y_labeled)
        images, masks = [], []
        for place, index in zip(
            self._positions(self.batch_unlabeled, step), unlabeled, strict=True
        ):
            image = self.unlabeled[index]
            mask = tv_tensors.Mask(torch.zeros(image.shape[-2:], dtype=torch.uint8))
            image, mask = self._augment(self.unlabeled_transform, image, mask, "unlabeled", place)
            images.append(image)
            masks.append(mask != IGNORE)
        return Batch(x_labeled, y_labeled, torch.stack(images), torch.stack(masks))

    def _positions(self, batch: int, step: int) -> range:
        size = batch // self.shard_count
        first = step * batch + self.shard_index * size
        return range(first, first + size)

    def _order(self, stream: str, length: int, positions: range) -> list[int]:
        result = []
        for position in positions:
            epoch, place = divmod(position, length)
            result.append(int(self._shuffle(stream, length, epoch)[place]))
        return result

    def _shuffle(self, stream: str, length: int, epoch: int) -> Tensor:
        # The last order is cached: shuffling a million images for every batch would cost more than the batch.
        kept = self._shuffled.get(stream)
        if kept is None or kept[0] != epoch:
            generator = torch.Generator().manual_seed(hashed(self.seed, stream, "order", epoch))
            kept = self._shuffled[stream] = epoch, torch.randperm(length, generator=generator)
        return kept[1]

    def _augment(
        self, transform: Transform, image: Tensor, mask: Tensor, stream: str, position: int
    ) -> tuple[Tensor, Tensor]:
        with seeded(hashed(self.seed, stream, "augment", position)):
            image, mask = transform(image, mask)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all global generators (torch, numpy, `random`) within the context; restore them afterwards.

    Examples:
        >>> with seeded(1):
        ...     first = random.random(), float(np.random.rand()), float(torch.rand(1))
        >>> with seeded(1):
        ...     first == (random.random(), float(np.random.rand()), float(torch.rand(1)))
        True
    """
    drawn, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what others draw from
    try:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also reseed CUDA and not restore it.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(legacy)  # noqa: NPY002


def _check(stream: str, images: int, batch: int) -> None:
    if images < 1 or batch < 1:
        raise ValueError(
            f"the {stream} stream needs at least one image and a batch of at least 1, "
            f"got {images} images and a batch of {batch}"
        )


def hashed(*parts: int | str) -> int:
    """Return an integer below 2**63, the same on every machine and Python version."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
