"""From flags to data sets and network; bad input ends here, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from torch.utils.data import ConcatDataset, Dataset
from torchvision import tv_tensors

from gmix.data import (
    IGNORE,
    LAYOUTS,
    Cached,
    Classes,
    ColorJitter,
    Finder,
    ImageDataset,
    ImageFormat,
    Layout,
    Paths,
    Sample,
    SegmentationDataset,
    ShardedImages,
    TwoStream,
    data_names,
    evenly_spaced,
    fetch,
    find_images,
    find_shards,
    fingerprint,
    folder_images,
    holds_only_0_and_255,
    match_masks,
    pair_masks,
    train_transform,
)
from gmix.network import GuidedMixNet
from gmix.training.config import TrainConfig
from gmix.training.options import parse_size
from gmix.unet import GuidedMixUnet
from gmix.weights import encoder_stats, load_encoder_weights

Stats = tuple[float, ...]
Pairs = tuple[list[Path], list[Path]]

ARCHITECTURES = {**smp.MODEL_ARCHITECTURES_MAPPING, "guidedmixunet": GuidedMixUnet}


@dataclass(frozen=True)
class Data:
    """What one run trains and is judged on."""

    classes: Classes
    labeled: Dataset[Sample]
    unlabeled: Dataset[tv_tensors.Image] | None
    validation: Dataset[Sample] | None
    counts: dict[str, int]
    held_out: Dataset[Sample] | None = None  # unlabeled images with their masks, never trained on
    split: str = ""  # a hash of which images are used for what


def build_data(config: TrainConfig) -> Data:
    """Find all files and read every labeled and validation image once.

    Raises:
        ValueError: if something is missing or does not fit, naming the file.
    """
    data = find_data(config)
    labeled: Any = data.labeled
    validation: Any = data.validation
    labeled_masks = labeled.masks
    validation_masks = [] if validation is None else validation.masks
    if config.cache:
        cached: dict[str, Any] = {
            name: Cached(getattr(data, name))
            for name in ("labeled", "unlabeled", "validation", "held_out")
            if getattr(data, name) is not None
        }
        data = replace(data, **cached)
    else:
        for dataset in (data.labeled, data.validation, data.held_out):
            if dataset is not None:
                read_once(dataset)
    refuse_blank(data.labeled, labeled_masks, "labeled")
    if data.validation is not None:
        refuse_blank(data.validation, validation_masks, "validation")
    return data


def find_data(config: TrainConfig) -> Data:
    """Find all files; none is read yet but those that say what the masks hold.

    Raises:
        ValueError: if something is missing, naming it.
    """
    size = None if config.size is None else parse_size(config.size)
    finder = known_finder(config)  # one for all lists: it may know a million files by now
    (images, masks), unlabeled = training_files(config, finder)
    validation = validation_files(config, finder)
    del finder
    classes = build_classes(config, masks + (validation[1] if validation is not None else []))
    format = image_format(config)
    if validation is not None:
        # Never learn from what the run is judged on, not even without masks.
        unlabeled = unlabeled.without(validation[0])
    held_out = held_out_files(config, unlabeled)
    shards = [] if config.unlabeled_shards is None else find_shards(config.unlabeled_shards)
    # Before supervised training leaves the unlabeled ones aside: it is compared on the same split.
    groups = (images, unlabeled, [] if validation is None else validation[0])
    root = config.voc or config.data
    names = [data_names(group, root) for group in groups]
    split = fingerprint(names[0], [*names[1], *data_names(shards)], names[2])
    pools: list[Dataset[tv_tensors.Image]] = []
    if config.method != "supervised" and config.batch_unlabeled > 0:
        if unlabeled:
            pools.append(ImageDataset(unlabeled, size, format))
        if shards:
            pools.append(ShardedImages(shards, size, format))
        if not pools:
            raise ValueError(
                f"the method {config.method} needs unlabeled images, found none: give --unlabeled DIR "
                "or --unlabeled-list, keep fewer masks with --labels N, or use --method supervised"
            )
    unlabeled_set: Any = None
    validation_set: Dataset[Sample] | None = None
    held_out_set: Dataset[Sample] | None = None
    if pools:
        unlabeled_set = pools[0] if len(pools) == 1 else ConcatDataset(pools)
    if validation is not None:
        validation_set = SegmentationDataset(*validation, classes, format=format)
    if held_out is not None:
        held_out_set = SegmentationDataset(*held_out, classes, size, format)
    counts = {
        "labeled": len(images),
        "unlabeled": 0 if unlabeled_set is None else len(unlabeled_set),
        "validation": 0 if validation is None else len(validation[0]),
    }
    if held_out is not None:
        counts["held_out"] = len(held_out[0])
    labeled_set = SegmentationDataset(images, masks, classes, size, format)
    return Data(classes, labeled_set, unlabeled_set, validation_set, counts, held_out_set, split)


def build_classes(config: Any, masks: Sequence[Path]) -> Classes:
    """The classes the flags name, or those of the known data set; what the masks hold decides details.

    Args:
        config: anything with `classes`, `label_map` and `dataset`.
        masks: those that will be read.

    Raises:
        ValueError: if they are missing or cannot be understood.
    """
    layout = known_layout(config)
    if config.classes is None:
        if layout is None:
            raise ValueError(
                "--classes is missing: a number of classes, or a file with a name per line"
            )
        own = layout.classes(masks)
        return own if config.label_map is None else Classes.of(own.names, config.label_map)
    classes = Classes.of(config.classes, config.label_map)
    if classes.binary and classes.label_map is None and holds_only_0_and_255(masks):
        return replace(classes, label_map={0: 0, 1: 1, 255: 1})
    return classes


def image_format(config: TrainConfig) -> ImageFormat:
    """What images are read as."""
    return ImageFormat(config.channels, config.value_span())


def image_stats(config: TrainConfig) -> tuple[Stats, Stats]:
    """Mean and standard deviation per channel, of images in 0..1, that the encoder expects.

    What pretrained weights expect of RGB, averaged, serves any other number of channels.
    """
    mean, std = encoder_stats(config.encoder)
    if config.channels == 3:
        return mean, std
    return (sum(mean) / 3,) * config.channels, (sum(std) / 3,) * config.channels


def known_layout(config: Any) -> Layout | None:
    """The data set that `--dataset` (or `--voc`) names."""
    if config.dataset is not None:
        layout: Layout = lookup(config.dataset.replace("-", "_"), LAYOUTS, "--dataset")
        return layout
    return LAYOUTS["voc"] if getattr(config, "voc", None) is not None else None


def known_data(config: Any) -> tuple[Layout, Path] | None:
    """A known data set and its folder, if the flags say to take the images from one.

    Args:
        config: anything with `dataset`, `data` and `voc`.

    Raises:
        ValueError: if they do not make sense together.
    """
    layout = known_layout(config)
    if config.voc is not None:
        if config.data is not None or config.dataset not in (None, "voc"):
            raise ValueError("give either --voc ROOT or --dataset NAME and --data ROOT, not both")
        return LAYOUTS["voc"], Path(config.voc)
    if config.data is None:
        return None
    if layout is None:
        raise ValueError(f"--data {config.data} needs --dataset NAME: {', '.join(LAYOUTS)}")
    return layout, Path(config.data)


def known_finder(config: Any) -> Finder | None:
    """Finds the files of the known data set that the flags name; with `--download`, fetches it first."""
    known = known_data(config)
    if known is None:
        return None
    if any(getattr(config, name, None) is not None for name in ("images", "masks")):
        raise ValueError("give either --data ROOT (--voc ROOT) or --images and --masks, not both")
    if getattr(config, "download", False):
        fetch(*known)
    return Finder(*known)


def training_files(config: TrainConfig, finder: Finder | None = None) -> tuple[Pairs, Paths]:
    """Labeled images with their masks, and all unlabeled images.

    Args:
        config: the flags.
        finder: what `known_finder` made of them, for those who go on to look for other files.
    """
    (images, masks), groups = all_files(config, finder)
    if config.labels is not None:
        groups = [*groups, images]
        pairs = evenly_spaced(list(zip(images, masks, strict=True)), config.labels)
        images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
    return (images, masks), Paths.union(*groups).without(images)


def held_out_files(config: TrainConfig, unlabeled: Sequence[Path]) -> Pairs | None:
    """Up to `--held-out` of the unlabeled images whose masks `--labels` left unused, with them.

    Training goes on using the images; the masks are only there to measure by.
    """
    if config.held_out == 0:
        return None
    (images, masks), _ = all_files(config)
    free = set(images).intersection(unlabeled)
    unused = [pair for pair in zip(images, masks, strict=True) if pair[0] in free]
    if not unused:
        return None
    pairs = evenly_spaced(unused, min(config.held_out, len(unused)))
    return [image for image, _ in pairs], [mask for _, mask in pairs]


def all_files(
    config: TrainConfig, finder: Finder | None = None
) -> tuple[Pairs, list[Sequence[Path]]]:
    """All training images with a mask, whatever `--labels` says, and groups of those without."""
    rest: list[Sequence[Path]] = []
    finder = finder or known_finder(config)
    if finder is not None:
        images, masks = list(finder.images(config.train_list)), finder.masks(config.train_list)
        if config.unlabeled_list is not None:
            rest.append(finder.images(config.unlabeled_list))
    else:
        if config.images is None or config.masks is None:
            raise ValueError(
                "--images DIR and --masks DIR are missing (or --dataset NAME and --data ROOT)"
            )
        images, masks, others = match_masks(find_images(config.images), config.masks)
        rest.append(others)
    if config.unlabeled is not None:
        rest.append(folder_images(config.unlabeled))
    return (images, masks), rest


def validation_files(config: Any, finder: Finder | None = None) -> Pairs | None:
    """Validation images with their masks, or None if there are none.

    Args:
        config: anything with `val_images`, `val_masks`, `dataset`, `data`, `voc`, `val_list` and `val_part`.
        finder: as for `training_files`.
    """
    if config.val_images is not None:
        if config.val_masks is None:
            raise ValueError("--val-images needs --val-masks DIR")
        images = find_images(config.val_images)
        masks = pair_masks(images, config.val_masks)
    elif (finder := finder or known_finder(config)) is not None:
        images, masks = list(finder.images(config.val_list)), finder.masks(config.val_list)
    else:
        return None
    part = {"all": slice(None), "odd": slice(0, None, 2), "even": slice(1, None, 2)}[
        config.val_part
    ]
    return images[part], masks[part]


def read_once(dataset: Any) -> None:
    """Read every item, so that a bad file ends the run now and not after an hour."""
    with ThreadPool(4) as pool:
        for _ in pool.imap(dataset.__getitem__, range(len(dataset))):
            pass


def refuse_blank(dataset: Any, masks: Sequence[Path], kind: str) -> None:
    """Refuse masks of which nothing is left, as a wrong label map makes them; mostly reads one item."""
    if not any(bool((dataset[index].mask != IGNORE).any()) for index in range(len(masks))):
        raise ValueError(
            f"no {kind} mask has a pixel of any class, from {masks[0]} on all is ignored: "
            "is the label map (--label-map) the one of these masks?"
        )


def build_stream(config: TrainConfig, data: Data, mean: Stats, std: Stats) -> TwoStream:
    """The batches of a run: a pure function of (seed, t)."""
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
        data.unlabeled,
        config.batch_labeled,
        config.batch_unlabeled,
        transform,
        transform,
        config.seed,
    )


def build_net(config: TrainConfig, channels: int) -> GuidedMixNet:
    """The SMP model the flags describe, with its encoder's weights, wrapped for training.

    Raises:
        ValueError: if architecture, encoder or weights are unknown or do not fit.
    """
    architecture = lookup(config.arch, ARCHITECTURES, "--arch")
    from_smp = config.encoder_weights == "imagenet"
    try:
        model = architecture(
            encoder_name=config.encoder,
            encoder_weights="imagenet" if from_smp else None,
            in_channels=config.channels,
            classes=channels,
            **config.model_args,
        )
    except Exception as error:  # whatever SMP, timm or a download raise
        hint = "; if the weights cannot be downloaded: --encoder-weights lite0, none or a file"
        raise ValueError(
            f"cannot build {config.arch} with the encoder {config.encoder}: {one_line(error)}"
            f"{hint if from_smp else ''}"
        ) from error
    if not from_smp and config.encoder_weights != "none":
        load_encoder_weights(model, config.encoder_weights)
    return GuidedMixNet(model, mitrans=config.mitrans)


def lookup(name: str, table: dict[str, Any], flag: str) -> Any:
    """The entry of a table, whatever the case of the name."""
    if name.lower() not in table:
        raise ValueError(f"{flag} {name} is unknown: choose one of {', '.join(sorted(table))}")
    return table[name.lower()]


def one_line(error: BaseException) -> str:
    """What an exception says, on one line.

    Examples:
        >>> one_line(RuntimeError("first\\n  second"))
        'first second'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


def describe_data(data: Data) -> str:
    """One line for the log.

    Examples:
        >>> describe_data(Data(Classes.of(7), [], None, None, {"labeled": 5, "unlabeled": 9}))
        '7 classes, images: 5 labeled, 9 unlabeled'
    """
    counts = [f"{number} {name.replace('_', ' ')}" for name, number in data.counts.items()]
    return f"{data.classes.num_classes} classes, images: {', '.join(counts)}"
