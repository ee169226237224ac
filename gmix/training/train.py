"""A training, from flags to a folder of results: `gmix train` and `gmix demo` call it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, NoReturn

from gmix.builders.loading import Loader, shortage
from gmix.config.parser import missing
from gmix.config.train_config import TrainConfig
from gmix.errors import Interrupted, NonFinite
from gmix.evaluation import Scores
from gmix.runs.checkpoint import Checkpoint
from gmix.runs.results import Report
from gmix.runs.trackers import available_trackers
from gmix.runtime.atomic import check_writable
from gmix.runtime.deterministic import deterministic
from gmix.runtime.distributed import Processes, start_processes
from gmix.runtime.interrupts import Interrupts
from gmix.runtime.lock import check_unlocked
from gmix.training.nonfinite import Guard
from gmix.training.recorder import Recorder
from gmix.training.session import Session, open_session
from gmix.training.state import find_checkpoint
from gmix.training.validation import Validation, validate

OnReport = Callable[[Report], None]


class Result(NamedTuple):
    """The result of a finished training."""

    scores: Scores | None  # of the last weights; None without validation images
    best: tuple[float, int] | None  # highest mIoU seen and its step
    names: tuple[str, ...]  # names of the classes
    minutes: float
    out: Path

    @property
    def miou(self) -> float:
        """Return the mIoU of the last weights, 0..1; nan without validation images."""
        return math.nan if self.scores is None else self.scores.miou


def train(config: TrainConfig, on_report: OnReport | None = None) -> Result:
    """Build, fit, evaluate, and write everything into `config.out`.

    Writes `config.yaml` (repeats the run), `metrics.jsonl` (one line per report and
    validation), `checkpoint-STEP/` (the last ones), `best/` (with `keep_best`), `model/` and
    `results.json` (at the end). A process that is killed at any moment leaves complete files.

    Args:
        config: The flags of `gmix train`.
        on_report: Called after each report of `fit`.

    Raises:
        ValueError: On bad input, or if something cannot be written, in one sentence.
        FloatingPointError: If a loss is not finite; the message says where the step is saved.
        Interrupted: After SIGINT or SIGTERM, once the state is saved.
    """
    began = perf_counter()
    if config.out is None:
        raise missing(config, "out")
    out, processes = Path(config.out), start_processes(config.device)
    check_divisible(config, processes)
    # The written settings hold the number of micro-batches, so that another number of processes repeats the run.
    config = replace(config, accumulate=processes.micro_batches(config.accumulate))
    available_trackers(config.trackers)
    checkpoint, notes = look_into(out, config, processes)
    session = open_session(config, processes)
    if config.keep_best and session.data.validation is None:
        raise ValueError("--keep-best needs validation images: add some, or leave the flag out")
    notes += [*session.resume(checkpoint), *remarks(session)]
    start = 0 if checkpoint is None else checkpoint.step
    recorder = Recorder(session, out, start, began)
    with recorder.folder():
        if checkpoint is None:
            session.remember_labeled()
        with (
            recorder.tracking(),
            deterministic(config.deterministic),
            Interrupts() as interrupts,
            recorder.screen(notes),
        ):
            found = take_steps(session, recorder, interrupts, on_report)
        recorder.finish(found)
    tally = session.state.tally
    return Result(found.scores, tally.best, session.data.classes.names, tally.seconds / 60, out)


def take_steps(
    session: Session, recorder: Recorder, interrupts: Interrupts, on_report: OnReport | None
) -> Validation:
    """Take the remaining steps; the last is always validated and saved."""
    config, tally, start = session.config, session.state.tally, recorder.start
    steps = range(start, config.steps)
    loader = session.load(session.own_stream, steps, waiting=interrupts.waiting, tell=recorder.note)
    pauses, guard = Pauses(session, loader, interrupts), None
    if config.skip_nonfinite > 0:
        guard = Guard(config.skip_nonfinite, tally.skipped, recorder.skip_step)

    def validated(step: int) -> Validation:
        found = validate(session, recorder.note)
        recorder.validation(step, found)
        return found

    def count(images: int) -> None:
        tally.image_passes = images * session.processes.count

    with closing(loader):
        # If a validation failed, its step was saved without it.
        lacking = start > 0 and due(start, config.eval_every) and recorder.lacks_validation()
        if start == config.steps or session.processes.any(lacking):
            found = validated(start)
        if start < config.steps:
            session.prepare_step(start, count)
        reports = session.fit(loader, start=start, guard=guard, report_when=pauses.due)
        for report in explained(reports, recorder.describe_step):
            step, last = report.step, report.step == config.steps
            with recorder.rescued(step):
                recorder.report(report)
                if last or due(step, config.eval_every):
                    found = validated(step)
                recorder.show(report)
            recorder.count_cost()
            if last or pauses.stopping or due(step, config.checkpoint_every):
                recorder.checkpoint(step)
            if on_report is not None:
                with recorder.rescued(step):
                    on_report(report)
            if pauses.stopping and not last:
                pauses.stop(recorder.stopped(step))
    return found


class Pauses:
    """The steps at which `fit` reports: those in the flags, and the one at which the training must stop.

    Args:
        session: The training.
        loader: Its batches; the next is fetched ahead, to find errors in time.
        interrupts: Knows whether the user has interrupted the training.

    Attributes:
        stopping: Whether to stop after the step just taken, in all processes.
    """

    def __init__(self, session: Session, loader: Loader, interrupts: Interrupts) -> None:
        self.session = session
        self.loader = loader
        self.interrupts = interrupts
        self.stopping = False

    def due(self, step: int) -> bool:
        """Return whether to report after this step."""
        if not self.interrupts.asked:
            self.loader.fetch()  # finds an error of the next batch while the state is good
        asked = self.interrupts.asked or self.loader.error is not None
        self.stopping = self.session.processes.any(asked)
        return self.stopping or is_due(self.session.config, step)

    def stop(self, saved: str) -> NoReturn:
        """End a training whose state is saved, as `saved` says.

        Raises:
            ValueError: If the next batch cannot be loaded.
            Interrupted: If the user has interrupted the training.
        """
        error = self.loader.error
        if error is not None:
            remedy = f"{error.remedy}, and repeat the command with --resume"
            raise ValueError(f"{error.reason}; {saved}: {remedy}") from error
        raise Interrupted(f"{saved}: repeat the command with --resume to go on")


def look_into(
    out: Path, config: TrainConfig, processes: Processes
) -> tuple[Checkpoint | None, list[str]]:
    """Find the checkpoint to resume from before any work, and messages about others.

    Raises:
        ValueError: If the folder is not writable, or another training uses it.
    """
    with processes.main_process_first():
        if processes.first:
            check_writable(out)
            check_unlocked(out)
        return find_checkpoint(config, out)


def remarks(session: Session) -> Iterator[str]:
    """Yield messages to show before a training begins."""
    config = session.config
    if config.held_out > 0 and session.data.held_out is None:
        yield (
            f"--held-out {config.held_out} judges nothing: --labels leaves no mask of an unlabeled image unused"
        )
    short = shortage(config, session.own_stream)
    if short is not None:
        yield short


def explained(
    reports: Iterable[Report], describe_step: Callable[[NonFinite], str]
) -> Iterator[Report]:
    """Pass on the reports of `fit`; if a loss is not finite, raise an error with all details."""
    try:
        yield from reports
    except NonFinite as bad:
        advice = "try a lower --lr, --amp none, or --resume with --skip-nonfinite N"
        raise FloatingPointError(f"{describe_step(bad)}; {advice}") from bad


def check_divisible(config: TrainConfig, processes: Processes) -> None:
    """Check that the micro-batches of a step have equal sizes.

    Raises:
        ValueError: If they differ.

    Examples:
        >>> check_divisible(TrainConfig(accumulate=2), Processes())
    """
    count = processes.micro_batches(config.accumulate)
    unlabeled = config.batch_unlabeled if config.learns_unlabeled else 0
    if config.batch_labeled % count or unlabeled % count:
        raise ValueError(
            f"{processes.count} processes share a step's images in {count} equal micro-batches: --batch-labeled "
            f"{config.batch_labeled} and --batch-unlabeled {unlabeled} must be multiples of {count}"
        )


def is_due(config: TrainConfig, step: int) -> bool:
    """Return whether anything is due after this step."""
    every = (config.log_every, config.eval_every, config.checkpoint_every)
    return any(due(step, interval) for interval in every)


def due(step: int, every: int) -> bool:
    """Return whether an event with an interval of `every` steps is due; 0 means never.

    Examples:
        >>> due(40, 20), due(41, 20), due(40, 0)
        (True, False, False)
    """
    return every > 0 and step % every == 0
