"""What a step of every method costs, beside the same images through the plain SMP model.

    python benchmarks/step_cost.py --methods guidedmix,cct,unimatch --encoder resnet50

The plain model takes as many images as the method trains on forward and backward, and those that the method only
looks at (with a teacher, a frozen encoder) forward without gradients. Both in turns for the times; for the memory in
a process each: the most it held, less what it held before there was a network. Optimizer steps are left out.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor, nn

from gmix import LabeledReference, NonLocalBlock
from gmix.builders.method import build_method
from gmix.builders.network import build_net
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.methods import METHODS, Method
from gmix.nn.passes import encoders
from gmix.runtime.device import peak_memory
from gmix.runtime.precision import mixed_precision

CPU = torch.device("cpu")
CLASSES = 21
PRECISIONS = ("float32", "--channels-last", "with autocast", "with --amp bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--arch", default="Unet")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", default="320x320")
    parser.add_argument("--batch", type=int, default=4, help="labeled, and as many unlabeled")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=(32, 64, 128))
    parser.add_argument("--measure", help="only this, for the script's own child processes")
    args = parser.parse_args()
    if args.measure:
        what, subject = args.measure.split(":")
        print(*MEASURES[what](args, subject))
        return

    def measure(what: str) -> list[float]:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", what]
        return [float(word) for word in subprocess.check_output(command, text=True).split()]

    print("| method | images: trained on, looked at | seconds | / plain | memory | / plain |")
    print("|---|---|---|---|---|---|")
    for name in args.methods.split(","):
        trained, seen, seconds, ratio = measure(f"time:{name}")
        (memory,), (plain,) = measure(f"memory:{name}"), measure(f"plain:{name}")
        print(
            f"| {name} | {trained:.0f}, {seen:.0f} | {seconds:.2f} | {ratio:.2f} "
            f"| {memory / 1e6:.0f} MB | {memory / plain:.2f} |",
            flush=True,
        )
    print("\n| attention over | memory | bytes a position |\n|---|---|---|")
    for side, memory in zip(args.sides, measure("attention:"), strict=True):
        print(f"| {side} x {side} | {memory / 1e6:.1f} MB | {memory / side**2:.0f} |", flush=True)
    print("\n| plain model | seconds | / float32 |\n|---|---|---|")
    seconds = measure("precision:")
    for name, value in zip(PRECISIONS, seconds, strict=True):
        print(f"| {name} | {value:.2f} | {value / seconds[0]:.2f} |", flush=True)


class Passes(NamedTuple):
    """How many images go through the networks of a method in a step."""

    trained: int  # with gradients
    seen: list[int]  # without, batch by batch
    encoded: list[int]  # without, and without a decoder


def build(args: argparse.Namespace, name: str) -> Method:
    torch.manual_seed(0)
    config = TrainConfig(method=name, arch=args.arch, encoder=args.encoder, encoder_weights="none")
    return build_method(config, build_net(config, CLASSES)).train()


def step(method: Method, batch: int, size: tuple[int, int]) -> None:
    """Forward and backward on random images."""
    x_labeled, x_unlabeled = torch.randn(2, batch, 3, *size)
    y = torch.randint(CLASSES, (batch, *size))
    method.zero_grad(set_to_none=True)
    method(x_labeled, y, x_unlabeled, progress=1.0)["total"].backward()


def passes_of(method: Method, batch: int) -> Passes:
    trained, seen, encoded = [], [], []
    partial_nets = {m.encoder for m in method.modules() if isinstance(m, LabeledReference)}

    def note(encoder: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        unlearned = encoded if encoder in partial_nets else seen
        (trained if torch.is_grad_enabled() else unlearned).append(len(inputs[0]))

    handles = [encoder.register_forward_pre_hook(note) for encoder in encoders(method)]
    step(method, batch, (64, 64))
    for handle in handles:
        handle.remove()
    return Passes(sum(trained), seen, encoded)


def plain_step(model: SegmentationModel, passes: Passes, size: tuple[int, int]) -> None:
    """As many images through the plain model."""
    with torch.no_grad():
        for images in passes.seen:
            model(torch.randn(images, 3, *size))
        for images in passes.encoded:
            model.encoder(torch.randn(images, 3, *size))
    model.zero_grad(set_to_none=True)
    model(torch.randn(passes.trained, 3, *size)).mean().backward()


def method_time(args: argparse.Namespace, name: str) -> list[float]:
    method, plain, size = (
        build(args, name),
        build(args, "supervised").net.model,
        parse_size(args.size),
    )
    passes = passes_of(method, args.batch)
    ours, theirs = in_turns(
        args.repeats,
        lambda: step(method, args.batch, size),
        lambda: plain_step(plain, passes, size),
    )
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    looked_at = sum(passes.seen) + sum(passes.encoded)
    return [passes.trained, looked_at, statistics.median(ours), ratio]


def method_memory(args: argparse.Namespace, name: str) -> list[float]:
    before = held()
    step(build(args, name), args.batch, parse_size(args.size))
    return [held() - before]


def plain_memory(args: argparse.Namespace, name: str) -> list[float]:
    before = held()
    method = build(args, name)
    plain_step(method.net.model, passes_of(method, args.batch), parse_size(args.size))
    return [held() - before]


def attention_memory(args: argparse.Namespace, _: str) -> list[float]:
    """Forward and backward of the block over maps of 256 channels, larger and larger."""
    block, before, most = NonLocalBlock(256), held(), []
    for side in args.sides:
        block(torch.randn(1, 256, side, side)).mean().backward()
        most.append(float(held() - before))
    return most


def precisions(args: argparse.Namespace, _: str) -> list[float]:
    """The plain model with a loss, in two memory layouts and three precisions."""
    plain, size = build(args, "supervised").net.model, parse_size(args.size)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(args.batch, 3, *size)

    def run(model: nn.Module, context: AbstractContextManager[object]) -> None:
        layout = torch.contiguous_format if model is plain else torch.channels_last
        with context:
            loss = model(x.to(memory_format=layout)).float().mean()
        loss.backward()

    return [
        statistics.median(times)
        for times in in_turns(
            args.repeats,
            lambda: run(plain, nullcontext()),
            lambda: run(last, nullcontext()),
            lambda: run(last, torch.autocast("cpu", torch.bfloat16)),
            lambda: run(last, mixed_precision(CPU)),
        )
    ]


def in_turns(repeats: int, *runs: Callable[[], None]) -> list[list[float]]:
    """Seconds of each, the first time left out."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return [taken[1:] for taken in times]


def held() -> int:
    """The most bytes this process has had so far."""
    peak = peak_memory(CPU)
    if peak is None:
        raise SystemExit("this system does not tell how much memory a process takes")
    return peak


MEASURES: dict[str, Callable[[argparse.Namespace, str], list[float]]] = {
    "time": method_time,
    "memory": method_memory,
    "plain": plain_memory,
    "attention": attention_memory,
    "precision": precisions,
}


if __name__ == "__main__":
    main()
