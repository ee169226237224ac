"""Images by name, and those that cannot be read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

from torch.utils.data import ConcatDataset, Dataset

from gmix.data import Cached, ShardedImages

T = TypeVar("T")


class Readable(Dataset[T]):
    """Serves the next item in place of one that cannot be read (`--skip-damaged`).

    Nobody has to be told which ones: while the files stay as they are, item i is the same in every process and
    after every restart.

    Args:
        dataset: Raises a `ValueError` for an item that cannot be read.
        allowed: How many such items this process leaves out; at one more the error is raised.

    Attributes:
        left_out: Why each item met so far cannot be read, by its place.

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
                # Another thread may have met it just now.
                if place not in self.left_out and len(self.left_out) >= self.allowed:
                    raise
                self.left_out[place] = str(error)
            else:
                return item

    def read_once(self) -> None:
        """Find out now what has to be left out.

        Raises:
            ValueError: If it is too much.
        """

        def look(index: int) -> None:
            _ = self[index]  # which is not kept

        with ThreadPool(4) as pool:
            for _ in pool.imap(look, range(len(self))):
                pass

    def place(self, index: int) -> int:
        """Return the place of what item `index` is, as far as is known."""
        while index in self.left_out:
            index = (index + 1) % len(self)
        return index


def left_out(datasets: Iterable[Any]) -> dict[str, str]:
    """Return why images were left out so far, by their names."""
    return {
        item_name(readable.dataset, place): reason
        for dataset in datasets
        for readable in [dataset.dataset if isinstance(dataset, Cached) else dataset]
        if isinstance(readable, Readable)
        for place, reason in readable.left_out.items()
    }


def item_name(dataset: Any, index: int) -> str:
    """What an image of a data set is best called: its path, or its place.

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
