"""What the probes share: a finished run, its labeled images, and unlabeled ones whose masks are known."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gmix.config.files import training_files
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import read_yaml
from gmix.data import SegmentationDataset, eval_transform, evenly_spaced, pair_masks
from gmix.nn.network import GuidedMixNet
from gmix.runs.saved import SavedModel


@dataclass(frozen=True)
class Probe:
    """A finished run and its data; training never opened the masks of `unlabeled`."""

    config: TrainConfig
    saved: SavedModel
    labeled: SegmentationDataset
    unlabeled: SegmentationDataset

    @property
    def net(self) -> GuidedMixNet:
        return self.saved.net

    def batches(self, dataset: SegmentationDataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole images and masks, 20 at a time."""
        transform = eval_transform(self.saved.mean, self.saved.std)
        for start in range(0, len(dataset), 20):
            part = [transform(*dataset[i]) for i in range(start, min(start + 20, len(dataset)))]
            yield torch.stack([x for x, _ in part]), torch.stack([y.long() for _, y in part])


def open_run(run: Path, truth: str, images: int) -> Probe:
    """A run of `gmix train`, and `images` of its unlabeled images with their masks from `truth`."""
    config = replace(TrainConfig(**read_yaml(run / "config.yaml")), method="guidedmix")
    saved = SavedModel.from_pretrained(run, torch.device("cpu"))
    size = parse_size(config.size) if config.size else None
    (files, masks), rest = training_files(config)
    rest = evenly_spaced(rest, images)
    labeled = SegmentationDataset(files, masks, saved.classes, size)
    unlabeled = SegmentationDataset(rest, pair_masks(rest, truth), saved.classes, size)
    return Probe(config, saved, labeled, unlabeled)
