"""What a step costs when several processes share it: images, passes, bytes on the wire, bytes in memory.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --pool 1e7

Nothing of the first is measured, and nothing assumed but how messages are passed on: the networks are built (without
memory for their weights) and their parts counted, and passes through encoders are counted while every method trains on
a few images. In a ring of n processes an all-reduce of b bytes sends 2 (n - 1) / n * b from each, an all-gather brings
each (n - 1) / n of what all have together. `--pool N` measures what N unlabeled images cost before one is read.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gmix.builders.method import build_method
from gmix.builders.network import build_net
from gmix.config.parser import parse
from gmix.config.train_config import TrainConfig
from gmix.data import Paths, ShardedImages
from gmix.methods import METHODS, GuidedMix
from gmix.nn.passes import count_first_step
from gmix.training.optim import build_optimizer
from gmix.training.plan import human, tensors

PROCESSES = (1, 2, 8, 64)
LABELED = UNLABELED = 128  # of a step, whatever the number of processes
CLASSES = 21
NETWORKS = {
    "U-Net, EfficientNet-lite0": "--recipe cpu",
    "DeepLabV3+, ResNet-50": "--arch DeepLabV3Plus --encoder resnet50 --crop 512x512",
    "DeepLabV3+, ResNet-101": "--arch DeepLabV3Plus --encoder resnet101 --crop 512x512",
    "DPT, DINOv2 ViT-S": "--recipe voc_1-8_dinov2_s",
    "DPT, DINOv2 ViT-B": "--recipe voc_1-8_dinov2_b",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=lambda n: int(float(n)), help="measure N unlabeled images")
    args = parser.parse_args()
    for line in tables() if args.pool is None else pool(args.pool):
        print(line, flush=True)


def tables() -> Iterator[str]:
    """Passes, messages and memory."""
    yield from passes_table()
    networks = {name: count_network(words.split()) for name, words in NETWORKS.items()}
    yield ""
    yield from messages_table(networks)
    yield ""
    yield from memory_table(networks)


# --- passes -------------------------------------------------------------------------------------


def passes_table() -> Iterator[str]:
    yield f"| encoder passes a step | in all | {' | '.join(f'each of {n}' for n in PROCESSES[1:])} |"
    yield "|---|---|" + "---|" * len(PROCESSES[1:])
    yield row("images", [(LABELED + UNLABELED) // n for n in PROCESSES])
    for name in METHODS:
        whole = passes(name) * LABELED
        yield row(name, [whole // n for n in PROCESSES])


def passes(name: str) -> int:
    """Of a step, for each labeled image and as many unlabeled ones: counted while steps are made."""
    small = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    config = TrainConfig(
        method=name, encoder="tu-test_resnet", encoder_weights="none", model_args=small
    )
    torch.manual_seed(0)
    method = build_method(config, build_net(config, CLASSES)).train()
    found: list[int] = []
    for images in (2, 4):
        count_first_step(method, found.append)
        x_labeled, x_unlabeled = torch.randn(2, images, 3, 32, 32)
        method(x_labeled, torch.randint(CLASSES, (images, 32, 32)), x_unlabeled, progress=1.0)
    each, rest = divmod(found[0], 2)
    assert rest == 0 and found[1] == 4 * each, f"{name}: passes are not in proportion to images"
    return each


# --- messages and memory ------------------------------------------------------------------------


class Network(NamedTuple):
    """GuidedMix around a network, in bytes."""

    parameters: int  # how many are deployed
    weights: int
    gradients: int
    optimizer: int
    teacher: int
    reference: int
    norms: int  # channels of all BatchNorm layers that train
    layers: int  # and how many they are
    across: int  # of all labeled images of a step, their masks, probabilities and embeddings


def count_network(words: list[str]) -> Network:
    """Build a network of a recipe on the meta device, where tensors have shapes and no memory."""
    config = parse(TrainConfig, "gmix train", "", [*words, "--encoder-weights", "none"])
    with torch.device("meta"):
        net = build_net(config, CLASSES)
    method = build_method(config, net)
    assert isinstance(method, GuidedMix) and method.teacher and method.reference
    optimizer = build_optimizer(method.parameters(), net.model.encoder, name=config.optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    gradients = held(p.grad for p in method.parameters() if p.grad is not None)
    reference = method.reference
    height, width = config.crop_size()
    x, y = torch.empty(3, height, width), torch.empty(height, width, dtype=torch.int64)
    image = x.nbytes + y.nbytes + CLASSES * height * width * 4 + net.embedding_dim * 4
    norms = [m.num_features for m in net.modules() if isinstance(m, _BatchNorm)]
    return Network(
        sum(p.numel() for p in net.model.parameters()),
        held(net.parameters()),
        gradients,
        held(tensors(optimizer.state_dict())),
        held(method.teacher.parameters()),
        held([*reference.parameters(), *reference.buffers()]),
        sum(norms),
        len(norms),
        LABELED * image,
    )


def messages_table(networks: dict[str, Network]) -> Iterator[str]:
    heads = "gradients | statistics | `--sync-norm` | `pair_across` | with FSDP"
    yield f"| GuidedMix, a step of one process | of | {heads} |"
    yield "|---|---|---|---|---|---|---|"
    for name, net in networks.items():
        for n in PROCESSES[1:]:
            ring = (n - 1) / n
            sizes = [
                2 * ring * net.gradients,  # all-reduce
                2 * ring * 2 * 4 * net.norms,  # all-reduce of mean and variance
                # All-gather of mean, deviation and count of each, all-reduce of two gradients.
                (n - 1) * 4 * (2 * net.norms + net.layers) + 2 * ring * 2 * 4 * net.norms,
                ring * net.across,  # all-gather
                # All-gather of network and teacher, reduce-scatter of the gradients.
                ring * (net.weights + net.teacher + net.gradients),
            ]
            yield row(name, [n, *(size_of(size) for size in sizes)])


def memory_table(networks: dict[str, Network]) -> Iterator[str]:
    heads = "weights | gradients | optimizer | teacher | reference | DDP"
    shared = " | ".join(f"FSDP, {n}" for n in PROCESSES[1:])
    yield f"| GuidedMix, memory of one process | parameters | {heads} | {shared} |"
    yield "|---|---|---|---|---|---|---|---|" + "---|" * len(PROCESSES[1:])
    for name, net in networks.items():
        parts = [net.weights, net.gradients, net.optimizer, net.teacher, net.reference]
        sharded = sum(parts[:-1])
        totals = [sharded + net.reference, *(sharded / n + net.reference for n in PROCESSES[1:])]
        millions = f"{net.parameters / 1e6:.1f} million"
        yield row(name, [millions, *(size_of(size) for size in (*parts, *totals))])


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.nbytes for tensor in tensors)


def size_of(size: float) -> str:
    return f"{size / 1e3:.0f} kB" if size < 1e6 else human(round(size))


def row(name: str, cells: list[object]) -> str:
    return f"| {name} | {' | '.join(map(str, cells))} |"


# --- a large pool -------------------------------------------------------------------------------


def pool(count: int) -> Iterator[str]:
    """Seconds and bytes for so many unlabeled images, in every process that has them."""
    torch.set_num_threads(1)
    yield f"| {count:,} unlabeled images | seconds of one core | memory |\n|---|---|---|"
    names = (f"JPEGImages/unlabeled_{i:010d}.jpg" for i in range(count))
    seconds, paths = timed(lambda: Paths(names))
    yield row("`Paths` of 35 letters", [f"{seconds:.1f}", human(held([paths._text, paths._ends]))])
    del paths
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), count)
        seconds, images = timed(lambda: ShardedImages(shards))
    yield row(
        f"{len(shards)} shards with an index", [f"{seconds:.1f}", human(images._places.nbytes)]
    )
    del images
    seconds, order = timed(lambda: torch.randperm(count))
    yield row("an epoch's order, `torch.randperm`", [f"{seconds:.1f}", human(order.nbytes)])
    del order


def write_shards(folder: Path, count: int, most: int = 10_000) -> list[Path]:
    """Shards of which only the index is true: nothing in them is read."""
    shards = []
    for number, first in enumerate(range(0, count, most)):
        images = min(most, count - first)
        shards.append(folder / f"{number:06d}.tar")
        lines = [f"jpg {100_000 * i + 512} 99000" for i in range(images)]
        shards[-1].with_suffix(".idx").write_text("\n".join([f"v1.1 {images}", *lines]))
        with shards[-1].open("wb") as file:
            file.truncate(100_000 * images)  # takes no place on the disk
    return shards


def timed(make: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the CPU, and what came of them."""
    began = time.process_time()
    made = make()
    return time.process_time() - began, made


if __name__ == "__main__":
    main()
