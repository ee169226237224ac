"""What the trainer adds to a step of the demo: `fit` beside a hand-written loop, and where the time of a step goes.

    python benchmarks/overhead.py

The loop makes the same calls: learning rate, zero_grad, autocast, the method, backward, optimizer. Both train in turns,
a block of steps each, on the same batches, already loaded; so does `fit` with the guard of `--skip-nonfinite`. Then
`fit` trains on batches as `gmix demo` loads them, and every call of method, backward and optimizer is timed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from gmix.builders.data import build_data, build_stream
from gmix.builders.loading import Loader
from gmix.builders.network import image_stats
from gmix.config.train_config import TrainConfig
from gmix.data import Batch
from gmix.demo.run import LABELED, SIZE, UNLABELED, VALIDATION, demo_config
from gmix.demo.scenes import Folders, write_scenes
from gmix.training.fit import fit
from gmix.training.nonfinite import Guard
from gmix.training.session import fit_settings
from gmix.training.state import TrainingState, build_state

CPU = torch.device("cpu")
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="supervised,guidedmix")
    parser.add_argument("--block", type=int, default=5, help="steps of one, then of the next")
    parser.add_argument("--repeats", type=int, default=12, help="blocks of each")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, default=0, help="loader processes of the profile")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of one thread, on a busy machine"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        folders = Folders.inside(Path(root) / "scenes")
        write_scenes(
            folders, labeled=LABELED, unlabeled=UNLABELED, val=VALIDATION, size=SIZE, seed=0
        )
        # The steps are those of a training that is longer than what is measured of it.
        configs = [
            demo_config(Path(root), folders, name, 10_000, 0) for name in args.methods.split(",")
        ]
        print("| method | loop, ms a step | fit / loop | guarded / fit |\n|---|---|---|---|")
        for config in configs:
            loop, ratio, guarded = compare(config, args)
            print(
                f"| {config.method} | {1000 * loop:.1f} | {ratio:.3f} | {guarded:.3f} |", flush=True
            )
        print("\n| method | ms a step | method | backward | optimizer | loading | the rest |")
        print("|---|---|---|---|---|---|---|")
        for config in (replace(config, workers=args.workers) for config in configs):
            shares = profile(config, args)
            total = sum(shares.values())
            cells = " | ".join(f"{100 * share / total:.1f} %" for share in shares.values())
            steps = args.block * args.repeats
            print(f"| {config.method} | {1000 * total / steps:.1f} | {cells} |", flush=True)


def prepare(config: TrainConfig) -> tuple[TrainingState, Any]:
    """A method at its first step, and its batches."""
    data = build_data(config)
    stream = build_stream(config, data, *image_stats(config))
    return build_state(config, data.classes.channels, CPU), stream


def by_hand(parts: TrainingState, batches: Iterable[Batch], config: TrainConfig) -> Iterator[None]:
    """A loop with the same calls; hands over after each step."""
    method, optimizer = parts.method.train(), parts.optimizer
    generator = torch.Generator()
    for step, (x_labeled, y_labeled, x_unlabeled, valid) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - step / config.steps) ** 0.9
        generator.manual_seed(step)
        x_labeled = x_labeled.to(memory_format=torch.channels_last)
        if x_unlabeled is not None:
            x_unlabeled = x_unlabeled.to(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            losses = method(
                x_labeled,
                y_labeled,
                x_unlabeled,
                progress=step / config.steps,
                valid_unlabeled=valid,
                generator=generator,
            )
        losses["total"].backward()
        optimizer.step()
        yield


def compare(config: TrainConfig, args: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds of a step of the loop; then `fit` in relation to it, and `fit` with a guard to `fit`."""
    prepared = [prepare(config) for _ in range(3)]
    batches = [prepared[0][1][step] for step in range(args.block)]

    def fitted(parts: TrainingState, guard: Guard | None) -> Callable[[], Any]:
        reports = fit(
            parts.method,
            cycle(batches),
            parts.optimizer,
            guard=guard,
            report_when=lambda step: step % args.block == 0,
            steps=config.steps,
            settings=fit_settings(config, CPU),
        )
        return lambda: next(reports)

    steps = by_hand(prepared[0][0], cycle(batches), config)
    runs = [
        lambda: [next(steps) for _ in range(args.block)],
        fitted(prepared[1][0], None),
        fitted(prepared[2][0], Guard(1, [], print)),
    ]
    now = CLOCKS[args.clock]
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(args.repeats + 1):
        for place in range(3):  # nobody is always the first
            which = (turn + place) % 3
            began = now()
            runs[which]()
            times[which].append(now() - began)
    loop, ours, guarded = (taken[1:] for taken in times)  # the first time is left out
    return (
        statistics.median(loop) / args.block,
        statistics.median(b / a for a, b in zip(loop, ours, strict=True)),
        statistics.median(b / a for a, b in zip(ours, guarded, strict=True)),
    )


def profile(config: TrainConfig, args: argparse.Namespace) -> dict[str, float]:
    """Seconds in method, backward, optimizer, loading and the rest, over all steps."""
    parts, stream = prepare(config)
    now, steps = CLOCKS[args.clock], args.block * args.repeats
    spent = dict.fromkeys(("method", "backward", "optimizer", "loading", "rest"), 0.0)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*inputs: Any, **named: Any) -> Any:
            began = now()
            result = call(*inputs, **named)
            spent[name] += now() - began
            return result

        return wrapper

    def loaded() -> Iterator[Batch]:
        read = timed("loading", iter(Loader(config, stream, range(steps + 1), CPU)).__next__)
        yield from (read().to(CPU) for _ in range(steps + 1))

    method, optimizer = parts.method, parts.optimizer
    calls = [(method, "forward", "method"), (optimizer, "step", "optimizer")]
    if hasattr(method, "on_step_start"):
        calls.append((method, "on_step_start", "method"))
    reports = fit(
        method,
        loaded(),
        optimizer,
        report_when=lambda step: step == 1 or step % config.log_every == 0 or step == steps + 1,
        steps=config.steps,
        settings=fit_settings(config, CPU),
    )
    backward = patch.object(torch.Tensor, "backward", timed("backward", torch.Tensor.backward))
    with backward:
        for owner, name, kind in calls:
            setattr(owner, name, timed(kind, getattr(owner, name)))
        next(reports)
        spent.update(dict.fromkeys(spent, 0.0))  # the first step is left out
        began = now()
        while next(reports).step <= steps:
            pass
        spent["rest"] = now() - began - sum(spent.values())
    return spent


if __name__ == "__main__":
    main()
