"""How fast one loader process is, beside plain code for the same work, and what a million paths cost.

    python benchmarks/data.py --images VOC2012/JPEGImages
    python benchmarks/data.py --list 1000000

Without `--images`, the images are synthetic JPEGs of VOC's size. Half of the images come with a mask. The million are
links to a few images, in a VOC layout that `gmix train` could take; each length is measured in a process of its own.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from gmix.builders.data import build_data, build_stream
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.data import (
    Classes,
    ColorJitter,
    ImageDataset,
    SegmentationDataset,
    TwoStream,
    find_images,
    train_transform,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, HEIGHT, WIDTH = 21, 375, 500
FEW = 8  # real files behind the links


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of JPEGs (default: synthetic ones)")
    parser.add_argument("--crop", default="320x320")
    parser.add_argument("--batch", type=int, default=8, help="labeled, and as many unlabeled")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--list", type=int, default=0, help="measure lists of 1000 and N instead")
    parser.add_argument("--measure", help="only this, for the script's own child processes")
    args = parser.parse_args()
    if args.measure:
        print(*measure_list(Path(args.measure), args.list))
        return
    folder = Path(tempfile.mkdtemp())
    try:
        if args.list:
            print_lists(folder, args.list)
        else:
            print_speeds(args, folder)
    finally:
        shutil.rmtree(folder)


# --- images a second ---------------------------------------------------------------------------


def print_speeds(args: argparse.Namespace, folder: Path) -> None:
    images = find_images(args.images)[:256] if args.images else synthetic(folder, 64)
    masks = mask_each(images, folder)
    crop = parse_size(args.crop)
    speeds: dict[str, list[float]] = {}
    builds: dict[str, Callable[[], Iterable[Any]]] = {
        "gmix": lambda: ours(images, masks, crop, args.batch),
        "torchvision.transforms.v2": lambda: plain(Tensors(images, masks, crop), args.batch),
        "PIL": lambda: plain(Pictures(images, masks, crop), args.batch),
    }
    for _ in range(args.repeats):  # in turns, so that whatever else the machine does hits all
        for name, build in builds.items():
            batches = iter(build())
            next(batches)  # the process has started
            began = time.perf_counter()
            count = sum(1 for _ in islice(batches, args.batches))
            speed = 2 * args.batch * count / (time.perf_counter() - began)
            speeds.setdefault(name, []).append(speed)
    print("| loader, one process | images/s | gmix / this |\n|---|---|---|")
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speeds["gmix"], values, strict=True))
        print(f"| {name} | {statistics.median(values):.0f} | {ratio:.2f} |")


def ours(
    images: list[Path], masks: list[Path], crop: tuple[int, int], batch: int
) -> DataLoader[Any]:
    half = len(images) // 2
    labeled = SegmentationDataset(images[:half], masks[:half], Classes.of(CLASSES))
    unlabeled = ImageDataset(images[half:])
    transform = train_transform(crop, jitter=ColorJitter(0.3, 0.3, 0.3, 0.05), mean=MEAN, std=STD)
    stream = TwoStream(labeled, unlabeled, batch, batch, transform, transform, 0)
    return DataLoader(stream, batch_size=None, sampler=range(10**6), num_workers=1)


def plain(dataset: Dataset[Any], batch: int) -> Iterable[Any]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        2 * batch,
        sampler=Endless(len(dataset)),
        num_workers=1,  # type: ignore[arg-type]
    )
    return loader


class Endless(torch.utils.data.Sampler[int]):
    """Shuffled, epoch after epoch."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Any:
        while True:
            yield from torch.randperm(self.length).tolist()


class Tensors(Dataset[Any]):
    """The same work as plain torchvision code: scale, rotation, crop, flip, colours, one after the other."""

    def __init__(self, images: list[Path], masks: list[Path], crop: tuple[int, int]) -> None:
        self.images, self.masks = images, masks
        fill: Any = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
        self.transform = v2.Compose(
            [
                v2.RandomResize(HEIGHT // 2, 2 * HEIGHT, antialias=True),
                v2.RandomRotation(10, v2.InterpolationMode.BILINEAR, fill=fill),
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.3, 0.05),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = pictures(self.images, self.masks, index)
        x = tv_tensors.Image(v2.functional.pil_to_tensor(image))
        x, y = self.transform(x, tv_tensors.Mask(torch.from_numpy(np.array(mask))))
        return x.as_subclass(Tensor), y.as_subclass(Tensor).long()


class Pictures(Dataset[Any]):
    """The usual pipeline of semi-supervised segmentation code (UniMatch's), on PIL images; no rotation."""

    def __init__(self, images: list[Path], masks: list[Path], crop: tuple[int, int]) -> None:
        self.images, self.masks, self.crop = images, masks, crop
        self.color = v1.ColorJitter(0.3, 0.3, 0.3, 0.05)
        self.finish = v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = pictures(self.images, self.masks, index)
        scale = float(torch.empty(()).uniform_(0.5, 2))
        size = round(scale * image.width), round(scale * image.height)
        image = image.resize(size, Image.Resampling.BILINEAR)
        mask = mask.resize(size, Image.Resampling.NEAREST)
        (height, width) = self.crop
        border = (0, 0, max(width - size[0], 0), max(height - size[1], 0))
        image, mask = ImageOps.expand(image, border, 0), ImageOps.expand(mask, border, 255)
        left = int(torch.randint(image.width - width + 1, ()))
        top = int(torch.randint(image.height - height + 1, ()))
        box = (left, top, left + width, top + height)
        image, mask = image.crop(box), mask.crop(box)
        if torch.rand(()) < 0.5:
            image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
        return self.finish(self.color(image)), torch.from_numpy(np.array(mask)).long()


def pictures(images: list[Path], masks: list[Path], index: int) -> tuple[Image.Image, Image.Image]:
    """An image with its mask; the second half of the images has masks of zeros."""
    image = Image.open(images[index]).convert("RGB")
    if index < len(images) // 2:
        return image, Image.open(masks[index])
    return image, Image.new("L", image.size)


def synthetic(folder: Path, count: int) -> list[Path]:
    """JPEGs of the size and about the bytes of VOC's (100 kB)."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{i:04d}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def mask_each(images: list[Path], folder: Path) -> list[Path]:
    """A mask of blocks for each image."""
    rng = np.random.default_rng(1)
    masks = []
    for i, path in enumerate(images):
        blocks = Image.fromarray(rng.integers(0, CLASSES, (6, 8), dtype=np.uint8))
        masks.append(folder / f"mask-{i:04d}.png")
        blocks.resize(Image.open(path).size, Image.Resampling.NEAREST).save(masks[-1])
    return masks


# --- a long list --------------------------------------------------------------------------------


def print_lists(folder: Path, most: int) -> None:
    print("| unlabeled images | seconds | of the CPU | memory | at most | of a loader process |")
    print("|---|---|---|---|---|---|")
    for count in sorted({min(1000, most), most}):
        root = write_voc(folder / str(count), count)
        command = [sys.executable, __file__, "--list", str(count), "--measure", str(root)]
        seconds, cpu, grown, most_grown, worker = subprocess.check_output(
            command, text=True
        ).split()
        row = (f"{float(size) / 1e6:.0f} MB" for size in (grown, most_grown, worker))
        times = f"{float(seconds):.2f} | {float(cpu):.2f}"
        print(f"| {count:,} | {times} | {' | '.join(row)} |", flush=True)


def write_voc(root: Path, count: int) -> Path:
    """A VOC layout of a few labeled images and `count` unlabeled ones."""
    images, masks, lists = (
        root / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    )
    for folder in (images, masks, lists):
        folder.mkdir(parents=True)
    few = synthetic(images, FEW)
    for image, mask in zip(few, mask_each(few, root), strict=True):
        mask.rename(masks / f"{image.stem}.png")
    (lists / "train.txt").write_text("\n".join(path.stem for path in few[: FEW // 2]))
    (lists / "val.txt").write_text("\n".join(path.stem for path in few[FEW // 2 :]))
    with (lists / "pool.txt").open("w") as listing:
        for i in range(count):
            name = f"unlabeled_{i:08d}"
            os.symlink(few[i % FEW].name, images / f"{name}.jpg")  # noqa: PTH211
            listing.write(f"{name}\n")
    return root


def measure_list(root: Path, count: int) -> list[float]:
    """Seconds and memory to find all images of `gmix train`'s flags, and a loader process' own memory."""
    config = TrainConfig(
        voc=str(root), unlabeled_list="pool", classes=CLASSES, workers=1, crop="320x320"
    )
    before = memory("Rss")
    began, cpu_began = time.perf_counter(), time.process_time()
    data = build_data(config)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    assert data.counts["unlabeled"] == count
    grown = memory("Rss") - before
    with Path("/proc/self/status").open() as status:
        peak = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    stream = build_stream(config, data, MEAN, STD)
    ends: Any = multiprocessing.get_context("fork").SimpleQueue()
    worker = multiprocessing.get_context("fork").Process(target=walk, args=(stream, ends))
    worker.start()
    own = ends.get()
    worker.join()
    return [seconds, cpu, grown, peak - before, own]


def walk(stream: TwoStream, ends: Any) -> None:
    """What a loader process does to its memory in an epoch, but for the images: shuffle, and take each path."""
    torch.set_num_threads(1)  # as torch's own loader processes do
    stream.indices(0)
    for index in range(len(stream.unlabeled)):
        stream.unlabeled.images.text(index)
    ends.put(memory("Private_Clean", "Private_Dirty"))


def memory(*kinds: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return sum(sizes[kind] for kind in kinds)


if __name__ == "__main__":
    main()
