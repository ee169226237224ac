"""Images a second of `predict_folder` and `evaluate`, beside the same calls one after the other.

    python benchmarks/inference.py
    python benchmarks/inference.py --images VOC2012/JPEGImages --networks mobilenet_v2 --count 16

The plain loop is the same code with `map` in place of `ahead`: it reads, computes and writes in turns. Both alternate.
Without `--images`, they are scenes of the demo at VOC's size; the masks that are scored against are blocks. Networks:
the name of an encoder of a U-Net (random weights), or how many milliseconds one just waits for each image, which leaves
the CPU to others, as a GPU does. There is one foreground class: what is left to do with the logits is little, as that,
too, would be a GPU's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn

from gmix.data import Classes, SegmentationDataset, eval_transform, find_images
from gmix.deploy.predict import predict_folder
from gmix.evaluation import evaluate
from gmix.nn.network import GuidedMixNet
from gmix.runs.saved import SavedModel

HEIGHT, WIDTH = 375, 500
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Waits(nn.Module):
    """Stands for a network on a GPU: its time passes, and the CPU is free; bright squares are foreground."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.seconds = milliseconds / 1000
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds * len(x))
        squares = x[:, :1, ::25, ::25].repeat_interleave(25, 2).repeat_interleave(25, 3)
        return squares[:, :, : x.shape[2], : x.shape[3]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of images (default: scenes made here)")
    parser.add_argument("--count", type=int, default=40, help="how many of them")
    parser.add_argument("--networks", nargs="+", default=["20", "mobilenet_v2"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="torch's")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    print("| network | torch threads | | images/s | plain loop | ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images, masks = write(root, photos(args.images, args.count))
        for network in args.networks:
            saved = build(network)
            tasks = {
                "predict": partial(predict_folder, saved, images, root / "out"),
                "evaluate": partial(
                    evaluate,
                    saved.net,
                    SegmentationDataset(images, masks, saved.classes),
                    saved.classes,
                    transform=eval_transform(MEAN, STD),
                ),
            }
            for threads in args.threads:
                torch.set_num_threads(threads)
                for task, run in tasks.items():
                    own, plain, ratio = compare(run, len(images), args.repeats)
                    shown = f"waits {network} ms" if network.isdecimal() else network
                    row = (
                        f"| {shown} | {threads} | {task} | {own:.1f} | {plain:.1f} | {ratio:.2f} |"
                    )
                    print(row, flush=True)


def compare(run: Callable[[], Any], images: int, repeats: int) -> tuple[float, float, float]:
    """Images a second, those of the plain loop, and the ratio: medians, the ratio that of neighbours."""
    run()
    own, plain = [], []
    for _ in range(repeats):
        own.append(images / seconds(run))
        with ExitStack() as stack:
            for module in ("gmix.deploy.predict", "gmix.evaluation.scoring"):
                stack.enter_context(patch(f"{module}.ahead", in_turns))
            plain.append(images / seconds(run))
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    return statistics.median(own), statistics.median(plain), statistics.median(ratios)


def in_turns(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int = 0
) -> Iterator[Any]:
    """`ahead` that is not ahead."""
    return map(function, items)


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def photos(folder: str | None, count: int) -> list[Image.Image]:
    if folder is not None:
        return [Image.open(path).convert("RGB") for path in find_images(folder)[:count]]
    from gmix.demo import compose_scenes, load_sources

    scenes = compose_scenes(load_sources()[0], count, size=120, rng=np.random.default_rng(0))
    return [
        Image.fromarray(scene.image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        for scene in scenes
    ]


def write(root: Path, pictures: list[Image.Image]) -> tuple[list[Path], list[Path]]:
    """JPEGs, and masks of blocks."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for number, picture in enumerate(pictures):
        images.append(root / f"{number:04d}.jpg")
        picture.save(images[-1], quality=90)
        blocks = Image.fromarray(rng.integers(0, 2, (8, 10), dtype=np.uint8))
        masks.append(root / f"{number:04d}.png")
        blocks.resize(picture.size, Image.Resampling.NEAREST).save(masks[-1])
    return images, masks


def build(network: str) -> SavedModel:
    torch.manual_seed(0)
    net: Any = Waits(float(network)) if network.isdecimal() else None
    if net is None:
        net = GuidedMixNet(smp.Unet(network, encoder_weights=None, classes=1))
    return SavedModel(net.eval(), Classes.of(1), None, MEAN, STD)


if __name__ == "__main__":
    main()
