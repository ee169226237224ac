"""What a training would take, from a few steps of it: `gmix train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from torch import Tensor

from gmix.builders.data import describe_data
from gmix.config.train_config import TrainConfig
from gmix.runs.progress import clock
from gmix.runtime.device import peak_memory
from gmix.training.session import open_session
from gmix.training.state import TrainingState

WARM_UP, MEASURED = 1, 2


@dataclass(frozen=True)
class Plan:
    """What a training would take.

    Attributes:
        config: the flags.
        data: how many classes and images, in words.
        batch_unlabeled: unlabeled images a step.
        epochs_labeled: how often each labeled image is seen.
        epochs_unlabeled: how often each unlabeled image is seen; None without them.
        image_passes: images through an encoder in one step.
        parameters: of the network that is deployed.
        trained: parameters that are learned, those of the method included.
        device: where it would run.
        seconds_per_step: of the slower of training and loading.
        seconds_per_batch: to load one, in one process.
        peak_memory: bytes; of a GPU, what tensors take; else all memory of this process. None where the
            system does not tell.
        checkpoint: bytes of one on the disk.
    """

    config: TrainConfig
    data: str
    batch_unlabeled: int
    epochs_labeled: float
    epochs_unlabeled: float | None
    image_passes: int
    parameters: int
    trained: int
    device: str
    seconds_per_step: float
    seconds_per_batch: float
    peak_memory: int | None
    checkpoint: int

    @property
    def hours(self) -> float:
        """Of all steps; validation is not in it."""
        return self.config.steps * self.seconds_per_step / 3600


def plan(config: TrainConfig) -> Plan:
    """Build everything, train three steps of which nothing is kept, and see.

    The first step is not timed. Nothing is written. For a memory that is the training's alone, call it in a
    fresh process, as the command line does.

    Args:
        config: the flags of `gmix train`; `out` is not looked at.

    Raises:
        ValueError: on bad input, as training itself.
    """
    steps = WARM_UP + MEASURED
    session = open_session(replace(config, steps=max(config.steps, steps)))
    state, stream, device = session.state, session.stream, session.device
    began = perf_counter()
    first = stream[0]
    loading = perf_counter() - began
    # A step takes as long, whatever is remembered.
    state.method.remember([(first.x_labeled[0].to(device), first.y_labeled[0].to(device))])
    passes: list[int] = []
    session.prepare_step(0, passes.append)
    reports = session.fit(session.load(stream, range(steps)), report_when=lambda step: True)
    seconds = [next(reports).seconds for _ in range(steps)][WARM_UP:]
    step = sum(seconds) / len(seconds)
    counts, with_unlabeled = session.data.counts, stream.unlabeled is not None
    batch_unlabeled = config.batch_unlabeled if with_unlabeled else 0
    return Plan(
        config=config,
        data="; ".join([describe_data(session.data), *session.data.notes]),
        batch_unlabeled=batch_unlabeled,
        epochs_labeled=config.steps * config.batch_labeled / counts["labeled"],
        epochs_unlabeled=(
            config.steps * batch_unlabeled / counts["unlabeled"] if with_unlabeled else None
        ),
        image_passes=passes[0],
        parameters=sum(p.numel() for p in state.deployed.model.parameters()),
        trained=sum(p.numel() for group in state.optimizer.param_groups for p in group["params"]),
        device=str(device),
        # The batches of so short a training were there before it asked for them.
        seconds_per_step=max(step, loading / max(config.workers, 1)),
        seconds_per_batch=loading,
        peak_memory=peak_memory(device),
        checkpoint=checkpoint_size(state),
    )


def describe(plan: Plan) -> list[str]:
    """The lines of `gmix train --dry-run`.

    Examples:
        >>> config = TrainConfig(method="unimatch", steps=1500, accumulate=2)
        >>> found = Plan(config, "7 classes, images: 55 labeled, 900 unlabeled", 8, 218.2, 13.3, 40,
        ...     24_400_000, 24_430_000, "cpu", 2.4, 0.3, 3_500_000_000, 391_000_000)
        >>> print(*describe(found), sep="\\n")
        unimatch: 7 classes, images: 55 labeled, 900 unlabeled
        steps          1500, of 8 labeled + 8 unlabeled images, in 2 micro-batches one after the other
        epochs         218.2 over the labeled images, 13.3 over the unlabeled
        image passes   40 through an encoder a step
        parameters     24.40 million deployed, 24.43 million trained
        learning rate  adamw, from 0.001 (encoder 0.0003) to 0 as (1 - t/1500)^0.9
        time           1:00:00 on cpu: 2.40 s a step, measured; validation comes on top
        loading        0.30 s a batch in one process
        peak memory    3.5 GB
        checkpoint     391 MB on the disk, the last 2 are kept
    """
    config = plan.config
    images = f"{config.batch_labeled} labeled"
    if plan.batch_unlabeled:
        images += f" + {plan.batch_unlabeled} unlabeled"
    split = (
        f", in {config.accumulate} micro-batches one after the other"
        if config.accumulate > 1
        else ""
    )
    epochs = f"{plan.epochs_labeled:.1f} over the labeled images"
    if plan.epochs_unlabeled is not None:
        epochs += f", {plan.epochs_unlabeled:.1f} over the unlabeled"
    memory = "unknown on this system" if plan.peak_memory is None else human(plan.peak_memory)
    deployed, trained = plan.parameters / 1e6, plan.trained / 1e6
    rows = {
        "steps": f"{config.steps}, of {images} images{split}",
        "epochs": epochs,
        "image passes": f"{plan.image_passes} through an encoder a step",
        "parameters": f"{deployed:.2f} million deployed, {trained:.2f} million trained",
        "learning rate": learning_rate(config),
        "time": f"{clock(3600 * plan.hours)} on {plan.device}: {plan.seconds_per_step:.2f} s a step, "
        "measured; validation comes on top",
        "loading": f"{plan.seconds_per_batch:.2f} s a batch in one process",
        "peak memory": memory,
        "checkpoint": f"{human(plan.checkpoint)} on the disk, the last {config.keep_last} are kept",
    }
    return [
        f"{config.method}: {plan.data}",
        *(f"{name:14} {text}" for name, text in rows.items()),
    ]


def learning_rate(config: TrainConfig) -> str:
    """The learning-rate rule in words.

    Examples:
        >>> learning_rate(TrainConfig())
        'adamw, from 0.001 (encoder 0.0003) to 0 as (1 - t/4000)^0.9'
    """
    encoder = f"{config.lr * config.encoder_lr:g}"
    return f"{config.optimizer}, from {config.lr:g} (encoder {encoder}) to 0 as (1 - t/{config.steps})^0.9"


def checkpoint_size(state: TrainingState) -> int:
    """Bytes of all tensors of a checkpoint."""
    states = [module.state_dict() for module in state.modules.values()]
    return sum(tensor.nbytes for tensor in tensors([*states, state.optimizer.state_dict()]))


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def human(size: int) -> str:
    """A size in bytes, as people say it.

    Examples:
        >>> human(391_000_000), human(3_500_000_000)
        ('391 MB', '3.5 GB')
    """
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
