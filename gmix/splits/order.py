"""Order in which images are labeled: a split of n labels takes the first n, so all splits are nested."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def label_counts(text: str, total: int) -> dict[str, int]:
    """Parse `--labels` into the number of labels of each split, by a name that can be a folder.

    Fractions are rounded up, which gives the counts of the published splits: 1/16 of 1464 is 92, of 10582 it is 662.

    Args:
        text: Fractions and counts, e.g. `1/16,1/8,183`.
        total: Number of images with a mask.

    Raises:
        ValueError: If a part is neither, or asks for no image or for more than there are.

    Examples:
        >>> label_counts("1/16, 1/8,183", 1464)
        {'1_16': 92, '1_8': 183, '183': 183}
    """
    counts = {}
    for part in map(str.strip, text.split(",")):
        found = re.fullmatch(r"([0-9]+)(?:/([0-9]+))?", part)
        if found is None or int(found[2] or 1) == 0:
            raise ValueError(
                f"--labels must be fractions or counts such as 1/8, 183 or 1/16,1/8, got {part!r}"
            )
        # In integers: as floats, 3 * (1/3) and the like are not exact.
        count = int(found[1]) if found[2] is None else -(-total * int(found[1]) // int(found[2]))
        if not 1 <= count <= total:
            raise ValueError(
                f"--labels {part} is {count} of {total} images with a mask: ask for 1 to {total}"
            )
        counts[part.replace("/", "_")] = count
    return counts


def seeded_order(names: Sequence[str], seed: int) -> list[int]:
    """Return a random order that depends only on the seed and the names.

    Names are sorted by the SHA-256 of `seed name`. The order is the same on every machine, with every version of a
    random generator and for any order of the list; adding images does not reorder the others.

    Args:
        names: Name of each image, all different.
        seed: Seed of the order.

    Returns:
        Positions in `names`.

    Examples:
        >>> seeded_order(["a", "b", "c", "d"], 0), seeded_order(["d", "c", "b", "a"], 0)
        ([1, 0, 2, 3], [2, 3, 1, 0])
    """
    keys = [
        hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest() for name in names
    ]
    return sorted(range(len(names)), key=keys.__getitem__)


def stratified_order(present: npt.NDArray[np.bool_], order: Sequence[int]) -> list[int]:
    """Order images so that every prefix shows all classes about equally often.

    Each step takes the first remaining image (in the given order) that shows the class with the smallest share of
    images taken so far, `taken_k / images_k`, or the rarest of several. So each class occurs once before any occurs
    twice, as far as images of several classes allow it, and the rarest come first.

    Args:
        present: Bool `(N, K)`: whether class k occurs in the mask of image i.
        order: Positions of all N images, e.g. from `seeded_order`.

    Returns:
        The positions in their new order; images without any class come last.

    Examples:
        >>> stratified_order(np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=bool), [0, 1, 2, 3])
        [3, 0, 1, 2]
    """
    images = present.sum(axis=0)
    taken = np.zeros_like(images)
    waiting = {k: deque(i for i in order if present[i, k]) for k in np.flatnonzero(images)}
    chosen: dict[int, None] = {}
    while waiting:
        k = min(waiting, key=lambda k: (taken[k] / images[k], images[k], k))
        i = waiting[k].popleft()
        if not waiting[k]:
            del waiting[k]
        if i not in chosen:
            chosen[i] = None
            taken += present[i]
    return [*chosen, *(i for i in order if i not in chosen)]
