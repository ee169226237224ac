"""What scoring large images takes: memory and seconds, whole and in windows, of one image and of more.

    python benchmarks/evaluate_memory.py --sizes 1024x2048 --images 1 4

Random images of 19 classes through a U-Net (ResNet-18, random weights) on the CPU. Each measurement is a process of its
own: the most it held, less what it held with the network built and one small image scored.
"""

import argparse
import subprocess
import sys
import time
from functools import partial

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from gmix.config.commands import EvaluateConfig
from gmix.config.options import parse_size
from gmix.data import Classes, Sample, eval_transform
from gmix.deploy.evaluate import build_predict
from gmix.evaluation import evaluate
from gmix.runtime.device import peak_memory

CPU = torch.device("cpu")
CLASSES = 19
WAYS = ("whole", "769x769", "513x513")


class Scenes(Dataset[Sample]):
    """Random images, made when asked for as files are read."""

    def __init__(self, size: tuple[int, int], images: int) -> None:
        self.size = size
        self.images = images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        torch.manual_seed(index)
        image = torch.randint(0, 256, (3, *self.size), dtype=torch.uint8)
        return Sample(
            tv_tensors.Image(image), tv_tensors.Mask(torch.randint(0, CLASSES, self.size))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1024x2048", "2048x4096"], metavar="HxW")
    parser.add_argument("--images", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--ways", nargs="+", default=WAYS, help="whole, or the HxW of windows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=3, help="only this, for the script's own processes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        size, images, way = args.measure
        print(*measure(parse_size(size), int(images), way))
        return
    print("| image | tested | images | memory | seconds an image |")
    print("|---|---|---|---|---|")
    for size in args.sizes:
        for way in args.ways:
            for images in args.images:
                command = [sys.executable, __file__, "--threads", str(args.threads), "--measure"]
                text = subprocess.check_output([*command, size, str(images), way], text=True)
                memory, seconds = map(float, text.split())
                windows = way if way == "whole" else f"windows of {way}"
                print(
                    f"| {size} | {windows} | {images} | {memory / 1e6:.0f} MB | {seconds:.1f} |",
                    flush=True,
                )


def measure(size: tuple[int, int], images: int, way: str) -> tuple[float, float]:
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES).eval()
    score = partial(evaluate, net, classes=Classes.of(CLASSES), transform=eval_transform())
    score(Scenes((64, 64), 1))
    before = held()
    predict = None if way == "whole" else build_predict(EvaluateConfig(window=way))
    began = time.perf_counter()
    score(Scenes(size, images), predict=predict)
    return held() - before, (time.perf_counter() - began) / images


def held() -> int:
    """The most bytes this process has had so far."""
    peak = peak_memory(CPU)
    if peak is None:
        raise SystemExit("this system does not tell how much memory a process takes")
    return peak


if __name__ == "__main__":
    main()
