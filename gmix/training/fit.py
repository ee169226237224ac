"""The training loop, short enough for one screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from gmix.data import Batch
from gmix.data.stream import hashed
from gmix.errors import NonFinite
from gmix.methods import Method
from gmix.runs.results import Report
from gmix.runtime.distributed import SINGLE_PROCESS, Processes
from gmix.runtime.precision import LossScaler, mixed_precision
from gmix.training.micro_batches import MicroBatchStatistics
from gmix.training.nonfinite import Guard
from gmix.training.optim import poly, set_lr


@dataclass(frozen=True)
class FitSettings:
    """The settings for computing the gradients of a step.

    Attributes:
        seed: Seed of the method's random choices.
        amp: The type that autocast computes in, or None, see `mixed_precision`.
        memory_format: Memory format of the images.
        compiled: Whether the method is compiled. It then draws from torch's global generator and takes its progress
            as a tensor, so that one compiled graph serves every step.
        accumulate: Number of micro-batches of a batch, processed one after the other in the memory of one. Exact
            for losses that are means over images; what depends on the whole batch (BatchNorm,
            pairing, a mean over pixels of which some are ignored) sees a micro-batch.
        processes: The processes that share the micro-batches. If necessary, there are more micro-batches than
            `accumulate`, so that each process has the same number.
        scaler: Scales the loss, for float16; part of the state of a training.
    """

    seed: int = 0
    amp: torch.dtype | None = None
    memory_format: torch.memory_format = torch.contiguous_format
    compiled: bool = False
    accumulate: int = 1
    processes: Processes = SINGLE_PROCESS
    scaler: LossScaler = field(default_factory=lambda: LossScaler(enabled=False))


def fit(
    method: Method,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    start: int = 0,
    settings: FitSettings = FitSettings(),
    average: AveragedModel | None = None,
    guard: Guard | None = None,
    report_when: Callable[[int], bool] = lambda step: step % 20 == 0,
) -> Iterator[Report]:
    """Train, and yield a report from time to time; the caller then evaluates, saves or stops.

    Step t depends only on the state, batch t and (seed, t): the method's generator and torch's global
    generator (dropout) are seeded in each step. A run can be resumed after any step.

    Args:
        method: Called as `method(x_labeled, y_labeled, x_unlabeled, progress=..., ...)`; returns
            named scalar losses, including "total". Everything runs on its device.
        batches: Batches `start` .. `steps - 1`; with several processes, the shard of this process.
        optimizer: Its groups hold `initial_lr`, which the poly schedule scales.
        steps: Length of the whole training (the schedule's T).
        start: Number of steps already done.
        settings: The settings for computing the gradients of a step.
        average: Updated from `method.net` after each step.
        guard: Checks each step before the optimizer takes it, and may skip it.
        report_when: Says whether to report, given the number of steps done; the last step always reports.

    Yields:
        A Report; only then does the host wait for the device.

    Raises:
        NonFinite: A FloatingPointError that names the step and the terms, if a loss is not finite.
        FloatingPointError: If float16 gradients overflow at every step.
    """
    net, scaler = cast(Any, method.net), settings.scaler
    model: Callable[..., dict[str, Tensor]] = method
    window: list[dict[str, Tensor]] = []
    reported, began = start, time.perf_counter()
    for step, batch in zip(range(start, steps), batches, strict=False):
        if not window:  # the reader of the last report may have evaluated
            method.train()
        set_lr(optimizer, poly(step, steps))
        optimizer.zero_grad(set_to_none=True)
        if guard is not None:
            guard.remember(method)
        losses = backward(method, model, batch, step, steps, settings)
        if step == start:
            model = settings.processes.wrap(method)
        scaler.unscale_(optimizer)
        if guard is None or guard.passes(step + 1, losses, method, not scaler.is_enabled()):
            scaler.step(optimizer)
            if average is not None:
                average.update_parameters(net)
            window.append(losses)
        scaler.update()

        if report_when(step + 1) or step + 1 == steps:
            passed = step + 1 - reported
            average_losses = mean_losses(window, first_step=reported + 1)
            scaler.check(step + 1)
            seconds = (time.perf_counter() - began) / passed
            images = sum(len(x) for x in (batch.x_labeled, batch.x_unlabeled) if x is not None)
            images *= settings.processes.count
            lr = optimizer.param_groups[-1]["lr"]
            yield Report(step + 1, passed, average_losses, lr, seconds, images)
            window, reported, began = [], step + 1, time.perf_counter()


def backward(
    method: Method,
    model: Callable[..., dict[str, Tensor]],
    batch: Batch,
    step: int,
    steps: int,
    settings: FitSettings,
) -> dict[str, Tensor]:
    """Compute the gradients of a step, and return its named losses, the same in all processes.

    A batch may be split into equal micro-batches, whose losses and gradients are averaged. A micro-batch gives
    the same result whether one process computes all of them or several share them: its random choices depend on
    (seed, t, its number), and BatchNorm's statistics start from those of the step and are averaged, too.

    Args:
        method: The method that learns.
        model: The method, or its wrapper that exchanges gradients; this is called.
        batch: The batch of this process.
        step: Number of the step, from 0.
        steps: Length of the whole training.
        settings: The settings for computing the gradients.
    """
    processes, device = settings.processes, next(method.parameters()).device
    count = processes.micro_batches(settings.accumulate)
    mine, terms = processes.shard(count), []
    progress = torch.tensor(step / steps) if settings.compiled else step / steps
    generator = torch.Generator(device)
    whole = batch.to(device, settings.memory_format)
    statistics = MicroBatchStatistics(method, count)
    with mixed_precision(device, settings.amp):
        method.on_step_start(whole.x_labeled, whole.y_labeled)
    for number, piece in zip(mine, whole.split(len(mine)), strict=True):
        torch.manual_seed(step_seed(settings.seed, step, "torch", number))
        generator.manual_seed(step_seed(settings.seed, step, "method", number))
        draws = None if settings.compiled else generator
        given = {"valid_unlabeled": piece.valid_unlabeled, "generator": draws}
        with processes.exchange(model, last=number == mine[-1]):
            with mixed_precision(device, settings.amp):
                found = model(*piece[:3], progress=progress, step_started=True, **given)
            settings.scaler.scale(found["total"] / len(mine)).backward()  # type: ignore[no-untyped-call]
        terms.append({name: term.detach() for name, term in found.items()})
        statistics.end_micro_batch()
    statistics.end_step(processes.mean)
    means = [torch.stack([found[name] for found in terms]).mean(0) for name in terms[0]]
    return dict(zip(terms[0], processes.mean(means), strict=True))


def step_seed(seed: int, step: int, stream: str, micro_batch: int = 0) -> int:
    """Compute a 63-bit seed for (seed, step, stream, micro-batch), unrelated to all others.

    Examples:
        >>> step_seed(0, 7, "method") == step_seed(0, 7, "method")
        True
        >>> step_seed(0, 7, "method") == step_seed(0, 7, "torch")
        False
    """
    return hashed(seed, step, stream, *([micro_batch] if micro_batch else []))


def mean_losses(window: list[dict[str, Tensor]], first_step: int) -> dict[str, float]:
    """Average each named loss over a window of steps, read from the device at once.

    Raises:
        NonFinite: If a value is not finite.

    Examples:
        >>> mean_losses([{"total": torch.tensor(1.0)}, {"total": torch.tensor(2.0)}], first_step=1)
        {'total': 1.5}
    """
    if not window:  # all of its steps were skipped
        return {}
    names = list(window[0])
    table = torch.stack(
        [torch.stack([row[name].float() for name in names]) for row in window]
    ).cpu()
    for offset, row in enumerate(table):
        if not row.isfinite().all():
            raise NonFinite(first_step + offset, dict(zip(names, row.tolist(), strict=True)))
    return dict(zip(names, table.mean(dim=0).tolist(), strict=True))
