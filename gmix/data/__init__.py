"""Images and masks from files, augmentation, and deterministic batches of two streams."""

from gmix.data.classes import IGNORE, Classes
from gmix.data.datasets import Cached, ImageDataset, Sample, SegmentationDataset
from gmix.data.download import fetch
from gmix.data.files import (
    evenly_spaced,
    find_images,
    match_masks,
    pair_masks,
)
from gmix.data.images import RGB, ImageFormat, read_image, to_rgb
from gmix.data.layouts import LAYOUTS, Finder, Layout, images_of, masks_of
from gmix.data.masks import (
    check_white,
    compare_palettes,
    fit_binary,
    holds_only_0_and_255,
    read_mask,
)
from gmix.data.paths import Paths, folder_images
from gmix.data.prefetch import ahead
from gmix.data.shards import ShardedImages, find_shards, write_index
from gmix.data.splits import Entry, data_names, fingerprint, read_split, write_split
from gmix.data.stream import Batch, TwoStream
from gmix.data.transforms import ColorJitter, TrainTransform, eval_transform, train_transform

__all__ = [
    "IGNORE",
    "LAYOUTS",
    "RGB",
    "Batch",
    "Cached",
    "Classes",
    "ColorJitter",
    "Entry",
    "Finder",
    "ImageDataset",
    "ImageFormat",
    "Layout",
    "Paths",
    "Sample",
    "SegmentationDataset",
    "ShardedImages",
    "TrainTransform",
    "TwoStream",
    "ahead",
    "check_white",
    "compare_palettes",
    "data_names",
    "eval_transform",
    "evenly_spaced",
    "fetch",
    "find_images",
    "find_shards",
    "fingerprint",
    "fit_binary",
    "folder_images",
    "holds_only_0_and_255",
    "images_of",
    "masks_of",
    "match_masks",
    "pair_masks",
    "read_image",
    "read_mask",
    "read_split",
    "to_rgb",
    "train_transform",
    "write_index",
    "write_split",
]
