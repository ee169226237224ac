"""Trackers: live display of the numbers of a training in TensorBoard, W&B, MLflow and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gmix.config.train_config import TrainConfig
from gmix.errors import one_line
from gmix.runtime.console import warn
from gmix.runtime.shown import printable

__all__ = ["Log", "no_log", "open_trackers", "scalars"]

Log = Callable[[dict[str, Any]], None]
"""Function that is called with each line of `metrics.jsonl`."""


def no_log(row: dict[str, Any]) -> None:
    """Ignore the line."""


def available_trackers(names: str) -> list[str]:
    """Parse `--trackers` into a list, and check that each can be used.

    Raises:
        ValueError: If a tracker is unknown, or its package is missing.

    Examples:
        >>> available_trackers("none")
        []
    """
    if names == "none":
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {getattr(kind, "value", kind) for kind in get_available_trackers()}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"--trackers: {name!r} is unknown, choose from {known}, or none")
        if name not in there:
            raise ValueError(
                f"--trackers {name} needs its package: `pip install {name.replace('_', '-')}`, or leave "
                "it out (--trackers none)"
            )
    return wanted


@contextmanager
def open_trackers(names: str, config: TrainConfig, out: Path, start: int = 0) -> Iterator[Log]:
    """Yield a function that sends lines to accelerate's trackers.

    A tracker that fails later, for example because its server does, is dropped with a warning, and the training
    continues.

    Args:
        names: Value of `--trackers`: names separated by commas, or "none".
        config: Flags that a tracker may show beside the numbers.
        out: Folder of the run; TensorBoard's files go into `out/tensorboard`.
        start: Number of steps already done; TensorBoard drops what an interrupted run wrote about later ones.

    Yields:
        Function to call with each line.

    Raises:
        ValueError: If a tracker is unknown, its package is missing, or it cannot start.
    """
    wanted = available_trackers(names)
    if not wanted:
        yield no_log
        return
    from accelerate import Accelerator

    settings = {
        "tensorboard": {"purge_step": start + 1},
        "wandb": {"name": out.name, "dir": str(out)},
        "mlflow": {"run_name": out.name},
    }
    keepers: dict[str, Accelerator] = {}
    for name in wanted:
        # Processes are already joined; each of these Accelerators only holds a tracker.
        keepers[name] = Accelerator(mixed_precision="no", log_with=name, project_dir=out)
        alone = name == "tensorboard"
        # TensorBoard would open another run for the flags at every start; config.yaml has them.
        flags = None if alone else {k: str(v) for k, v in asdict(config).items()}
        try:
            keepers[name].init_trackers(
                "tensorboard" if alone else "gmix", flags, {name: settings.get(name, {})}
            )
        except Exception as error:  # any error of a service's client
            raise ValueError(f"--trackers {name} cannot start: {one_line(error)}") from error

    def ask_all(act: Callable[[Any], None]) -> None:
        for name, keeper in list(keepers.items()):
            try:
                act(keeper)
            except Exception as error:  # as above
                del keepers[name]
                warn(f"--trackers {name} failed, no more is sent there: {one_line(error)}")

    def log(row: dict[str, Any]) -> None:
        ask_all(lambda keeper: keeper.log(scalars(row), step=row["step"]))

    def finish(keeper: Any) -> None:
        for tracker in keeper.trackers:
            tracker.finish()

    try:
        yield log
    finally:
        ask_all(finish)


def scalars(row: dict[str, Any], name: str = "") -> dict[str, float]:
    """Flatten a line of `metrics.jsonl` into its numbers, by path.

    Examples:
        >>> scalars({"step": 2, "losses": {"total": 0.5}, "validation": {"iou": {"cat": None}, "miou": 1.0}})
        {'losses/total': 0.5, 'validation/miou': 1.0}
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        path = printable(f"{name}/{key}" if name else key)
        if isinstance(value, dict):
            found |= scalars(value, path)
        elif isinstance(value, (int, float)) and path != "step":
            found[path] = value
    return found
