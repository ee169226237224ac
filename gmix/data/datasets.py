"""Map-style data sets of images, with and without masks."""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from gmix.data.classes import Classes
from gmix.data.decode import orientation
from gmix.data.images import RGB, ImageFormat, read_image
from gmix.data.masks import read_mask
from gmix.data.paths import Paths
from gmix.protocols import MapDataset

T = TypeVar("T")
Size = tuple[int, int]

_TYPES = tuple(map(np.dtype, ("u1", "f4", "f8", "f2", "i1", "i2", "i4", "i8", "u2")))


class Sample(NamedTuple):
    """An image and its mask.

    Attributes:
        image: `(C, H, W)`, uint8, or float32 in 0..255 for files of more than 8 bits.
        mask: int64 `(H, W)`, class ids and 255.
    """

    image: tv_tensors.Image
    mask: tv_tensors.Mask


class SegmentationDataset(Dataset[Sample]):
    """Images with masks, read on access.

    Args:
        images: Image files.
        masks: Mask files, in the order of the images.
        classes: Class names and label map.
        size: Height and width to resize to (bilinear for images, nearest for masks); `None` keeps the original size,
            which evaluation needs.
        format: Channels of the images, and what their values mean.
        turn_masks: Whether masks were drawn on the stored pixels of photos that EXIF rotates. If so, each mask is
            rotated like its image, unless it has EXIF data itself.

    Raises:
        ValueError: If the lists differ in length or are empty. On access: if a file is broken, the sizes of image and
            mask differ, or the mask holds an unknown id.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        classes: Classes,
        size: Size | None = None,
        format: ImageFormat = RGB,
        turn_masks: bool = False,
    ) -> None:
        if len(images) != len(masks) or not images:
            raise ValueError(
                f"expected one mask per image and at least one image, got {len(images)} images "
                f"and {len(masks)} masks"
            )
        self.images = list(images)
        self.masks = list(masks)
        self.classes = classes
        self.size = size
        self.format = format
        self.turn_masks = turn_masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        path, mask_path = self.images[index], self.masks[index]
        image = read_image(path, self.format)
        turn = orientation(path) if self.turn_masks and orientation(mask_path) == 1 else 1
        mask = read_mask(mask_path, self.classes, turn)
        if image.shape[-2:] != mask.shape[-2:]:
            (h, w), (mask_h, mask_w) = image.shape[-2:], mask.shape[-2:]
            hint = ""
            if (h, w) == (mask_w, mask_h) and orientation(path) >= 5:
                drawn = "what is shown" if self.turn_masks else "its stored pixels"
                hint = (
                    f"; EXIF turns the image, and the mask was drawn on {drawn}: "
                    f"--mask-orientation {'shown' if self.turn_masks else 'stored'}"
                )
            raise ValueError(
                f"image {path} is {h}x{w} (HxW) but its mask {mask_path} is {mask_h}x{mask_w}: they must "
                f"have the same size{hint}"
            )
        if self.size is not None:
            image = v2.functional.resize(image, list(self.size), antialias=True)
            # As a plain tensor: for a Mask, older torchvision uses NEAREST, which is half a pixel off.
            pixels = v2.functional.resize(
                mask.as_subclass(torch.Tensor)[None],
                list(self.size),
                interpolation=v2.InterpolationMode.NEAREST_EXACT,
            )
            mask = tv_tensors.Mask(pixels[0])
        return Sample(image, mask)


class ImageDataset(Dataset[tv_tensors.Image]):
    """Images without masks, read on access.

    Args:
        images: Image files.
        size: Height and width to resize to; `None` keeps the original size.
        format: Channels of the images, and what their values mean.

    Raises:
        ValueError: If there is no image. On access: if the file is broken.
    """

    def __init__(
        self, images: Sequence[Path], size: Size | None = None, format: ImageFormat = RGB
    ) -> None:
        if not images:
            raise ValueError("expected at least one image, got none")
        self.images = images if isinstance(images, Paths) else Paths(images)
        self.size = size
        self.format = format

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tv_tensors.Image:
        image = read_image(self.images.text(index), self.format)
        if self.size is not None:
            image = v2.functional.resize(image, list(self.size), antialias=True)
        return image


class Cached(Dataset[T]):
    """Copy of a data set in memory: every item is read once, now, and returned as a copy.

    It needs `4 * H * W` bytes per labeled image of 8 bits and 3 channels. Items equal those of the wrapped data set. A
    broken file shows up here, before any training. All items are in one tensor, which loader processes share (forked or
    spawned) if shared memory has room for it.

    Args:
        dataset: A `SegmentationDataset` or `ImageDataset`, or any data set with the same kind of items.

    Examples:
        >>> image = tv_tensors.Image(torch.full((3, 2, 2), 7, dtype=torch.uint8))
        >>> Cached([Sample(image, tv_tensors.Mask(torch.zeros(2, 2).long()))])[0].image.unique().tolist()
        [7]
    """

    def __init__(self, dataset: MapDataset[T]) -> None:
        self.dataset = dataset  # knows the names of its items
        length = len(dataset)
        with ThreadPoolExecutor() as pool:  # decoding releases the GIL
            packed = deque(pool.map(lambda index: _pack(dataset[index]), range(length)))
        # numpy, because torch would start threads, which deadlock processes forked later.
        block, places = np.empty(sum(len(one) for one, _ in packed), np.uint8), list[list[int]]()
        start = 0
        while packed:  # free each before copying the next
            one, described = packed.popleft()
            block[start : start + len(one)] = one
            places.append([start, *described])
            start += len(one)
        self._block: Tensor | npt.NDArray[np.uint8] = torch.from_numpy(block)
        self._places = torch.tensor(places, dtype=torch.int64).view(-1, 6)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if isinstance(self._block, Tensor):
            try:
                self._block.share_memory_()  # type: ignore[no-untyped-call]
            except RuntimeError:  # containers may have only 64 MB: each process copies then
                state["_block"] = self._block.numpy()
        return state

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> T:
        start, kind, masked, *shape = self._places[range(len(self))[index]].tolist()
        block = np.asarray(self._block)
        image = np.frombuffer(block, _TYPES[kind], math.prod(shape), start).reshape(shape)
        item: Any = tv_tensors.Image(torch.from_numpy(image.copy()))
        if masked:
            ids = np.frombuffer(block, np.uint8, math.prod(shape[1:]), start + image.nbytes)
            ids = ids.reshape(shape[1:]).astype(np.int64)
            item = Sample(item, tv_tensors.Mask(torch.from_numpy(ids)))
        result: T = item
        return result


def _pack(item: Any) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Return the bytes of image and mask; the image's type, whether there is a mask, and their shape."""
    masked = isinstance(item, tuple)
    image = (item[0] if masked else item).numpy()
    parts = [image.ravel().view(np.uint8)]
    if masked:
        parts.append(item[1].to(torch.uint8).numpy().ravel())
    return np.concatenate(parts), [_TYPES.index(image.dtype), masked, *image.shape]
