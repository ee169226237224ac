"""The cost of a training, estimated from a few steps: `gmix train --dry-run`."""

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
    """The estimated cost of a training.

    Attributes:
        config: The flags.
        data: Number of classes and images, in words.
        batch_unlabeled: Unlabeled images per step.
        epochs_labeled: Number of times that each labeled image is seen.
        epochs_unlabeled: Number of times that each unlabeled image is seen; None without unlabeled images.
        image_passes: Images through an encoder per step.
        parameters: Parameters of the deployed network.
        trained: Parameters that are learned, including those of the method.
        device: Device of the training.
        seconds_per_step: Seconds per step, of training or loading, whichever is slower.
        seconds_per_batch: Seconds to load a batch in one process.
        peak_memory: Bytes: on a GPU those of tensors, otherwise all memory of this process. None if the
            system does not report it.
        checkpoint: Bytes of a checkpoint on the disk.
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
        """Return the hours of all steps, without validation."""
        return self.config.steps * self.seconds_per_step / 3600


def plan(config: TrainConfig) -> Plan:
    """Estimate the cost of a training: build everything, and train three steps that are discarded.

    The first step is not timed. Nothing is written. To measure the memory of the training alone, call it in
    a fresh process, as the command line does.

    Args:
        config: The flags of `gmix train`; `out` is not used.

    Raises:
        ValueError: On bad input, as in training.
    """
    steps = WARM_UP + MEASURED
    session = open_session(replace(config, steps=max(config.steps, steps)))
    state, stream, device = session.state, session.stream, session.device
    began = perf_counter()
    first = stream[0]
    loading = perf_counter() - began
    # The time of a step does not depend on what is remembered.
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
        # In such a short training the batches are loaded before they are needed.
        seconds_per_step=max(step, loading / max(config.workers, 1)),
        seconds_per_batch=loading,
        peak_memory=peak_memory(device),
        checkpoint=checkpoint_size(state),
    )


def describe(plan: Plan) -> list[str]:
    r"""Return the lines of `gmix train --dry-run`.

    Examples:
        >>> config = TrainConfig(method="unimatch", steps=1500, accumulate=2)
        >>> found = Plan(config, "7 classes, images: 55 labeled, 900 unlabeled", 8, 218.2, 13.3, 40,
        ...     24_400_000, 24_430_000, "cpu", 2.4, 0.3, 3_500_000_000, 391_000_000)
        >>> print(*describe(found), sep="\n")
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
    """Describe the learning-rate schedule.

    Examples:
        >>> learning_rate(TrainConfig())
        'adamw, from 0.001 (encoder 0.0003) to 0 as (1 - t/4000)^0.9'
    """
    encoder = f"{config.lr * config.encoder_lr:g}"
    return f"{config.optimizer}, from {config.lr:g} (encoder {encoder}) to 0 as (1 - t/{config.steps})^0.9"


def checkpoint_size(state: TrainingState) -> int:
    """Compute the bytes of all tensors of a checkpoint."""
    states = [module.state_dict() for module in state.modules.values()]
    return sum(tensor.nbytes for tensor in tensors([*states, state.optimizer.state_dict()]))


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def human(size: int) -> str:
    """Format a size in bytes for people.

    Examples:
        >>> human(391_000_000), human(3_500_000_000)
        ('391 MB', '3.5 GB')
    """
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
