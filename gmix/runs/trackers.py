"""Trackers: the numbers of a training, shown while it runs by TensorBoard, W&B, MLflow and others."""

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
"""Is given a line of `metrics.jsonl`."""


def no_log(row: dict[str, Any]) -> None:
    """Show it nowhere."""


def available_trackers(names: str) -> list[str]:
    """The trackers of `--trackers`, one by one.

    Raises:
        ValueError: if one is unknown, or its package missing.

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
    """Show what is logged within by accelerate's trackers.

    One that fails while it runs, as its server may, is left out from then on, with a warning: the training goes on.

    Args:
        names: as `--trackers`: one or several, with commas between, or "none".
        config: the flags, which a tracker may show beside the numbers.
        out: the folder of the run; TensorBoard's files go into `out/tensorboard`.
        start: steps already done; TensorBoard forgets what an interrupted run wrote about later ones.

    Yields:
        What is to be called with each line.

    Raises:
        ValueError: if a tracker is unknown, its package missing, or it cannot start.
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
        # The processes were joined before; these only keep a tracker each.
        keepers[name] = Accelerator(mixed_precision="no", log_with=name, project_dir=out)
        alone = name == "tensorboard"
        # TensorBoard would open a run of its own for the flags at every start; they are in config.yaml.
        flags = None if alone else {k: str(v) for k, v in asdict(config).items()}
        try:
            keepers[name].init_trackers(
                "tensorboard" if alone else "gmix", flags, {name: settings.get(name, {})}
            )
        except Exception as error:  # whatever a client of a service raises
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
    """The numbers of a line of `metrics.jsonl`, by path.

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
