"""Data sets and batches from flags; invalid input is reported here, in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import tv_tensors

from gmix.builders.network import Stats
from gmix.builders.notes import Seen, absent, clipped, dark, strays, turned
from gmix.config.files import (
    all_files,
    check_disjoint,
    held_out_files,
    known_finder,
    known_layout,
    training_files,
    validation_files,
)
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.data import (
    IGNORE,
    Cached,
    Classes,
    ColorJitter,
    ImageDataset,
    ImageFormat,
    Sample,
    SegmentationDataset,
    ShardedImages,
    TwoStream,
    compare_palettes,
    data_names,
    find_shards,
    fingerprint,
    fit_binary,
    train_transform,
)
from gmix.data.damaged import Readable, left_out
from gmix.protocols import MapDataset


@dataclass(frozen=True)
class Data:
    """Data sets that one run trains on and is evaluated on."""

    classes: Classes
    labeled: MapDataset[Sample]
    unlabeled: MapDataset[tv_tensors.Image] | None
    validation: MapDataset[Sample] | None
    counts: dict[str, int]
    held_out: MapDataset[Sample] | None = None  # unlabeled images with masks, never trained on
    split: str = ""  # a hash of which images are used for what
    notes: tuple[str, ...] = ()  # warnings about the data
    tested: frozenset[tuple[int, int]] = frozenset()  # sizes of the validation images
    left_out: tuple[
        str, ...
    ] = ()  # names of images that cannot be read, as `--skip-damaged` allows
    pixels: tuple[int, ...] = ()  # of each class in the labeled masks; empty if not yet counted


def build_data(config: TrainConfig) -> Data:
    """Find all files, and read every labeled and validation image once.

    Raises:
        ValueError: If something is missing or inconsistent; the message names the file.
    """
    data = find_data(config)
    read = [name for name in ("labeled", "validation") if getattr(data, name) is not None]
    judged = [*read, *(["held_out"] if data.held_out is not None else [])]
    pairs = {name: getattr(data, name) for name in judged}  # keeps the file names
    if config.skip_damaged:
        data = without_damaged(data, config)
    if config.cache:
        cached: dict[str, Any] = {
            name: Cached(getattr(data, name))
            for name in ("labeled", "unlabeled", "validation", "held_out")
            if getattr(data, name) is not None
        }
        data = replace(data, **cached)
    seen = {name: read_once(getattr(data, name)) for name in judged}
    for name, found in seen.items():
        if found.ids <= {IGNORE}:
            raise ValueError(
                f"no {name.replace('_', '-')} mask has a pixel of any class, from {pairs[name].masks[0]} on all is "
                "ignored: is the label map (--label-map) the one of these masks?"
            )
    notes = [note for name in read for note in absent(name, data.classes, seen[name].ids)]
    images = [path for name in judged for path in pairs[name].images]
    notes += clipped(images, image_format(config)), dark(config, [*seen.values()])
    notes.append(turned(config, images))
    tested = seen["validation"].sizes if "validation" in seen else frozenset()
    pixels = seen["labeled"].pixels[: data.classes.num_classes]
    return replace(data, notes=(*data.notes, *filter(None, notes)), tested=tested, pixels=pixels)


def labeled_pixels(data: Data) -> tuple[int, ...]:
    """Return the number of pixels of each class in the labeled masks, reading these if `find_data` did not."""
    return data.pixels or read_once(data.labeled).pixels[: data.classes.num_classes]


def without_damaged(data: Data, config: TrainConfig) -> Data:
    """Leave out unreadable images (`--skip-damaged`) with a note; check unlabeled ones only with `--cache`.

    In training, the next image takes the place of an unreadable one; evaluation omits it.

    Raises:
        ValueError: If there are more of them than allowed.
    """
    found = {
        name: Readable[Any](dataset, config.skip_damaged)
        for name in ("labeled", "unlabeled", "validation", "held_out")
        if (dataset := getattr(data, name)) is not None
    }
    for name, dataset in found.items():
        if name != "unlabeled" or config.cache:
            dataset.read_once()
    reasons = left_out(found.values())
    if len(reasons) > config.skip_damaged:
        raise ValueError(
            f"{[*reasons.values()][-1]}; {len(reasons)} images cannot be read, --skip-damaged is {config.skip_damaged}"
        )
    kept: dict[str, Any] = {
        name: Subset(dataset.dataset, [i for i in range(len(dataset)) if i not in dataset.left_out])
        for name, dataset in found.items()
        if name in ("validation", "held_out") and dataset.left_out
    }
    counts = {**data.counts, **{name: len(dataset) for name, dataset in kept.items()}}
    notes = tuple(f"left out: {reason}" for reason in reasons.values())
    served: dict[str, Any] = {n: found[n] for n in ("labeled", "unlabeled") if n in found}
    return replace(
        data, **served, **kept, counts=counts, left_out=tuple(reasons), notes=(*data.notes, *notes)
    )


def find_data(config: TrainConfig) -> Data:
    """Find all files, and read only the masks that decide how masks are to be interpreted.

    Raises:
        ValueError: If something is missing; the message names it.
    """
    size = None if config.size is None else parse_size(config.size)
    finder = known_finder(config)  # shared by all lists: it may have indexed a million files
    if config.download and finder is None:
        raise ValueError(
            "--download fetches known data sets: add --dataset NAME and --data ROOT, or leave it out"
        )
    found = all_files(config, finder)
    (images, masks), unlabeled = training_files(config, found)
    validation = validation_files(config, finder)
    format = image_format(config)
    if validation is not None:
        # Never train on validation images, not even without masks.
        check_disjoint(images, validation[0])
        unlabeled = unlabeled.without(validation[0])
    held_out = held_out_files(config, unlabeled, found)
    del finder, found
    read = [*masks, *(mask for pairs in (validation, held_out) if pairs for mask in pairs[1])]
    classes = build_classes(config, read)
    turn = config.mask_orientation == "stored"
    shards = [] if config.unlabeled_shards is None else find_shards(config.unlabeled_shards)
    # Computed before supervised training drops the unlabeled images: it is compared on the same split.
    groups = (images, unlabeled, [] if validation is None else validation[0])
    root = config.voc or config.data
    names = [data_names(group, root) for group in groups]
    split = fingerprint(names[0], [*names[1], *data_names(shards)], names[2])
    pools: list[Dataset[tv_tensors.Image]] = []
    if config.batch_unlabeled > 0:  # also for supervised runs: `finishing` uses them
        if unlabeled:
            pools.append(ImageDataset(unlabeled, size, format))
        if shards:
            pools.append(ShardedImages(shards, size, format))
        if not pools and config.learns_unlabeled:
            raise ValueError(
                f"the method {config.method} needs unlabeled images, found none: give --unlabeled DIR "
                "or --unlabeled-list, keep fewer masks with --labels N, or use --method supervised"
            )
    unlabeled_set: Any = None
    validation_set: MapDataset[Sample] | None = None
    held_out_set: MapDataset[Sample] | None = None
    if pools:
        unlabeled_set = pools[0] if len(pools) == 1 else ConcatDataset(pools)
    if validation is not None:
        validation_set = SegmentationDataset(*validation, classes, format=format, turn_masks=turn)
    if held_out is not None:
        held_out_set = SegmentationDataset(*held_out, classes, size, format, turn)
    counts = {
        "labeled": len(images),
        "unlabeled": 0 if unlabeled_set is None else len(unlabeled_set),
        "validation": 0 if validation is None else len(validation[0]),
    }
    if held_out is not None:
        counts["held_out"] = len(held_out[0])
    labeled_set = SegmentationDataset(images, masks, classes, size, format, turn)
    return Data(
        classes,
        labeled_set,
        unlabeled_set,
        validation_set,
        counts,
        held_out_set,
        split,
        (*strays(config), *compare_palettes(read)),
    )


def build_classes(config: Any, masks: Sequence[Path]) -> Classes:
    """Return the classes the flags name, or those of the known data set; details depend on the masks.

    Args:
        config: Any options with `classes`, `label_map` and `dataset`.
        masks: Mask files that will be read.

    Raises:
        ValueError: If the classes are missing or cannot be parsed.
    """
    layout = known_layout(config)
    if config.classes is None:
        if layout is None:
            raise ValueError(
                "--classes is missing: a number of classes, or a file with a name per line"
            )
        own = layout.classes(masks)
        if config.label_map is None:
            return own
        return replace(Classes.of(own.names, config.label_map), colors=own.colors)
    return fit_binary(Classes.of(config.classes, config.label_map), masks)


def image_format(config: TrainConfig) -> ImageFormat:
    """Return the format in which images are read."""
    return ImageFormat(config.channels, config.value_span())


class AsTested:
    """View of a labeled data set as in testing: normalised, not augmented, read image by image."""

    def __init__(self, dataset: Any, transform: Callable[..., Any]) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.transform(*self.dataset[index])
        return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()


def read_once(dataset: Any) -> Seen:
    """Read every item, so that a broken file ends the run now and not after an hour."""

    def look(index: int) -> tuple[npt.NDArray[np.int64], float, tuple[int, int]]:
        # numpy, because torch would start further threads in each of these threads.
        image, mask = (part.numpy() for part in dataset[index])
        counts: npt.NDArray[np.int64] = np.bincount(mask.ravel(), minlength=IGNORE + 1)
        most = 255.0 if image.dtype == np.uint8 else float(image.max())
        return counts, most, image.shape[1:]

    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    sizes: set[tuple[int, int]] = set()
    brightest = 0.0
    with ThreadPool(4) as pool:
        for counts, most, size in pool.imap(look, range(len(dataset))):
            pixels += counts
            sizes.add(size)
            brightest = max(brightest, most)
    ids = set(pixels.nonzero()[0].tolist())
    return Seen(ids, brightest, frozenset(sizes), tuple(pixels.tolist()))


def build_stream(
    config: TrainConfig, data: Data, mean: Stats, std: Stats, *, finishing: bool = False
) -> TwoStream:
    """Build the batches of a run, a pure function of (seed, t).

    Args:
        config: Configuration of the run.
        data: Data sets of the run.
        mean: Mean of the images, per channel.
        std: Standard deviation of the images, per channel.
        finishing: Whether to include unlabeled images even if the method does not learn from them.
    """
    j = config.jitter
    transform = train_transform(
        crop=config.crop_size(),
        scale=config.scale_range(),
        rotate=config.rotate,
        jitter=ColorJitter(0.3 * j, 0.3 * j, 0.3 * j, 0.05 * j) if j > 0 else None,
        mean=mean,
        std=std,
    )
    return TwoStream(
        data.labeled,
        data.unlabeled if finishing or config.learns_unlabeled else None,
        config.batch_labeled,
        config.batch_unlabeled,
        transform,
        transform,
        config.seed,
    )


def describe_data(data: Data) -> str:
    """Summarise the data in one line for the log.

    Examples:
        >>> describe_data(Data(Classes.of(7), [], None, None, {"labeled": 5, "unlabeled": 9}))
        '7 classes, images: 5 labeled, 9 unlabeled'
    """
    counts = [f"{number} {name.replace('_', ' ')}" for name, number in data.counts.items()]
    return f"{data.classes.num_classes} classes, images: {', '.join(counts)}"
