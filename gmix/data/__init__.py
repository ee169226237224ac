"""Images and masks from real folders, augmentation, and the deterministic two-stream batches."""

from gmix.data.classes import IGNORE, Classes
from gmix.data.datasets import Cached, ImageDataset, Sample, SegmentationDataset
from gmix.data.files import (
    evenly_spaced,
    find_images,
    match_masks,
    pair_masks,
    read_list,
    voc_images,
    voc_masks,
)
from gmix.data.images import read_image, read_mask
from gmix.data.stream import Batch, TwoStream
from gmix.data.transforms import ColorJitter, TrainTransform, eval_transform, train_transform

__all__ = [
    "IGNORE",
    "Batch",
    "Cached",
    "Classes",
    "ColorJitter",
    "ImageDataset",
    "Sample",
    "SegmentationDataset",
    "TrainTransform",
    "TwoStream",
    "eval_transform",
    "evenly_spaced",
    "find_images",
    "match_masks",
    "pair_masks",
    "read_image",
    "read_list",
    "read_mask",
    "train_transform",
    "voc_images",
    "voc_masks",
]
