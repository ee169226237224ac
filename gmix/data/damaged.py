"""Names of images, and handling of images that cannot be read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

from torch.utils.data import ConcatDataset, Dataset

from gmix.data import Cached, ShardedImages

T = TypeVar("T")


class Readable(Dataset[T]):
    """Data set that replaces each unreadable item with the next one (`--skip-damaged`).

    No coordination is needed: as long as the files do not change, item i is the same in every process and after every
    restart.

    Args:
        dataset: Data set that raises a `ValueError` for an item that cannot be read.
        allowed: Number of items this process may leave out; one more raises the error.

    Attributes:
        left_out: Reason why an item cannot be read, by index, for those found so far.

    Examples:
        >>> class Items(Dataset[int]):
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, index):
        ...         if index == 2:
        ...             raise ValueError("2 is damaged")
        ...         return index
        >>> items = Readable(Items(), allowed=1)
        >>> [items[index] for index in range(3)], items.left_out
        ([0, 1, 0], {2: '2 is damaged'})
    """

    def __init__(self, dataset: Any, allowed: int) -> None:
        self.dataset = dataset
        self.allowed = min(allowed, len(dataset) - 1)
        self.left_out: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> T:
        while True:
            place = self.place(index)
            try:
                item: T = self.dataset[place]
            except ValueError as error:
                # Another thread may have found it in the meantime.
                if place not in self.left_out and len(self.left_out) >= self.allowed:
                    raise
                self.left_out[place] = str(error)
            else:
                return item

    def read_once(self) -> None:
        """Read every item now to find those that must be left out.

        Raises:
            ValueError: If there are more than allowed.
        """

        def look(index: int) -> None:
            _ = self[index]  # the item is discarded

        with ThreadPool(4) as pool:
            for _ in pool.imap(look, range(len(self))):
                pass

    def place(self, index: int) -> int:
        """Return the index that item `index` is read from, as far as known."""
        while index in self.left_out:
            index = (index + 1) % len(self)
        return index


def left_out(datasets: Iterable[Any]) -> dict[str, str]:
    """Return the reasons why images were left out so far, by image name."""
    return {
        item_name(readable.dataset, place): reason
        for dataset in datasets
        for readable in [dataset.dataset if isinstance(dataset, Cached) else dataset]
        if isinstance(readable, Readable)
        for place, reason in readable.left_out.items()
    }


def item_name(dataset: Any, index: int) -> str:
    """Return a readable name for an item of a data set: its path, or its index.

    Examples:
        >>> from pathlib import Path
        >>> from gmix.data import ImageDataset
        >>> pool = ConcatDataset([ImageDataset([Path("a.png")]), ImageDataset([Path("b.png")])])
        >>> item_name(pool, 1), item_name([3, 4], 1)
        ('b.png', 'image 1')
    """
    if isinstance(dataset, Readable):
        return item_name(dataset.dataset, dataset.place(index))
    if isinstance(dataset, Cached):
        return item_name(dataset.dataset, index)
    if isinstance(dataset, ConcatDataset):
        place = bisect_right(dataset.cumulative_sizes, index)
        before = dataset.cumulative_sizes[place - 1] if place else 0
        return item_name(dataset.datasets[place], index - before)
    if isinstance(dataset, ShardedImages):
        return dataset.name(index)
    images = getattr(dataset, "images", None)
    return f"image {index}" if images is None else str(images[index])
