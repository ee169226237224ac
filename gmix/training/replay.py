"""Replay of a step that was not finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import read_settings
from gmix.data import Batch
from gmix.errors import one_line
from gmix.runs.checkpoint import newest_checkpoint
from gmix.runtime.compiled import compile_call
from gmix.runtime.tensorfile import named_in_utf8
from gmix.runtime.typed import from_mapping
from gmix.training.nonfinite import Guard
from gmix.training.session import open_session


def replay(folder: str | Path, device: str | None = None) -> dict[str, float]:
    """Replay a step that was not finite.

    If the folder holds an earlier state, the steps from there up to that step are trained again, from the data.

    Args:
        folder: `OUT/nonfinite-STEP`, as `gmix train` wrote it.
        device: "cpu" or "cuda"; None: as in training.

    Returns:
        The losses of the step, if they are finite now: on another device, or in another version.

    Raises:
        FloatingPointError: If they are not finite, as in training.
        ValueError: If the folder cannot be read.
    """
    folder = Path(folder)
    config, step, last = read_step(folder)
    session = open_session(replace(config, device=device or config.device))
    checkpoint, _ = newest_checkpoint(folder)
    session.resume(checkpoint)
    start = 0 if checkpoint is None else checkpoint.step
    if checkpoint is None:
        session.remember_labeled()
    if config.compile:
        compile_call(session.state.method, session.device)

    def batches() -> Iterator[Batch]:
        yield from (session.stream[earlier] for earlier in range(start, step - 1))
        yield last

    # If the training checked gradients, too, it may be that only a gradient is not finite.
    guard = Guard(0, [], lambda bad: None) if config.skip_nonfinite > 0 else None
    *_, report = session.fit(
        batches(), start=start, guard=guard, report_when=lambda done: done >= step - 1
    )
    return report.losses


def read_step(folder: Path) -> tuple[TrainConfig, int, Batch]:
    """Read the settings, the number and the batch of a step that was not finite.

    Raises:
        ValueError: If the folder does not hold a step, or it cannot be read.
    """
    try:
        config = from_mapping(TrainConfig, read_settings(folder))
        path = folder / "batch.safetensors"
        with named_in_utf8(path) as name, safe_open(name, "pt") as file:
            step = int(file.metadata()["step"])
            batch = Batch(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except Exception as error:  # from safetensors, or for unknown settings
        raise ValueError(f"cannot replay {folder}: {one_line(error)}") from error
    return config, step, batch
