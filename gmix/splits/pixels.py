"""Class counts of the masks of a split."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gmix.data import IGNORE, Classes, compare_palettes, read_mask


def class_pixels(masks: Sequence[Path], classes: Classes) -> npt.NDArray[np.int64]:
    """Count the pixels of each class in each mask.

    Returns:
        Counts `(N, K + 1)`, the ignored pixels last.

    Raises:
        ValueError: As in `read_mask` and `compare_palettes`.
    """
    compare_palettes(masks)
    ignored = classes.num_classes

    def count(path: Path) -> npt.NDArray[np.int64]:
        ids = read_mask(path, classes).numpy()
        return np.bincount(np.where(ids == IGNORE, ignored, ids).ravel(), minlength=ignored + 1)

    with ThreadPool(4) as pool:
        counts = pool.map(count, masks)
    return np.array(counts, dtype=np.int64).reshape(len(masks), ignored + 1)
