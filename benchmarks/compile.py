"""What `torch.compile` is worth: a training step of each method compiled and as it is, and how long compiling takes.

    python benchmarks/compile.py --methods supervised,guidedmix --encoder tu-tf_efficientnet_lite0

Forward and backward on random images, both in turns; the optimizer's step is left out. What is compiled is what
`gmix train --compile` compiles.
"""

import argparse
import statistics
import time

import torch
from step_cost import build, in_turns

from gmix.config.options import parse_size
from gmix.methods import Method
from gmix.runtime.precision import mixed_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="supervised,guidedmix")
    parser.add_argument("--arch", default="Unet")
    parser.add_argument("--encoder", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--size", default="96x96")
    parser.add_argument("--batch", type=int, default=8, help="labeled, and as many unlabeled")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--amp", choices=("none", "bf16"), default="none")
    parser.add_argument("--backend", default="inductor")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        "| method | seconds a step | compiled | compiled / plain | compiling | pays after |\n"
        "|---|---|---|---|---|---|"
    )
    for name in args.methods.split(","):
        plain, compiled = (build(args, name).to(memory_format=torch.channels_last) for _ in "ab")
        compiled.compile(backend=args.backend)
        began = time.perf_counter()
        step(compiled, args)
        compiling = time.perf_counter() - began
        before, after = in_turns(
            args.repeats, lambda m=plain: step(m, args), lambda m=compiled: step(m, args)
        )
        ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
        saved = statistics.median(before) * (1 - ratio)
        pays = f"{compiling / saved:,.0f} steps" if saved > 0 else "never"
        print(
            f"| {name} | {statistics.median(before):.3f} | {statistics.median(after):.3f} "
            f"| {ratio:.2f} | {compiling:.0f} s | {pays} |",
            flush=True,
        )


def step(method: Method, args: argparse.Namespace) -> None:
    """Forward and backward on random images, at a random moment of the training."""
    size = parse_size(args.size)
    images = torch.randn(2, args.batch, 3, *size)
    x_labeled, x_unlabeled = (x.to(memory_format=torch.channels_last) for x in images)
    y = torch.randint(method.net.classes, (args.batch, *size))
    method.zero_grad(set_to_none=True)
    with mixed_precision(torch.device("cpu"), torch.bfloat16 if args.amp == "bf16" else None):
        losses = method(x_labeled, y, x_unlabeled, progress=torch.rand(()))
    losses["total"].backward()


if __name__ == "__main__":
    main()
