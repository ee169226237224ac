"""The trainings of a comparison, each in a separate process, and their table."""

from __future__ import annotations

import time

from gmix.builders.data import find_data
from gmix.compare.board import PlainBoard, make_board
from gmix.compare.child import Child, is_finished
from gmix.compare.plan import BASELINE, Run, plan
from gmix.compare.results import Comparison, read_record
from gmix.compare.table import points
from gmix.config.train_config import CompareConfig
from gmix.errors import Interrupted
from gmix.runtime.interrupts import Interrupts
from gmix.runtime.own import check_own

PAUSE = 0.2  # seconds between two checks of the processes


def compare(config: CompareConfig) -> Comparison:
    """Train every method with every seed, or read finished runs, and write the tables.

    Writes into `config.out`: a folder for each run as `gmix train` writes it, with `log.txt`;
    `compare.jsonl`, an object per run; `compare.md`, the tables. The last two are rewritten
    after each run.

    Args:
        config: The flags of `gmix compare`.

    Raises:
        ValueError: On bad input, in one sentence, before anything is trained.
        Interrupted: After SIGINT or SIGTERM, once all running trainings have saved their state.

    Examples:
        >>> compare(CompareConfig(methods="unimatch"))
        Traceback (most recent call last):
        gmix.errors.UsageError: --out DIR is missing: where everything is written
    """
    runs = plan(config)
    comparison = Comparison(config, runs)
    check_own(comparison.files)
    waiting = [run for run in runs if not is_finished(run)]
    for run in {run.config.labels: run for run in waiting}.values():
        find_data(run.config)  # reports a wrong folder once, and before any training
    with Interrupts() as interrupts, make_board() as board:
        if BASELINE not in config.method_names():
            board.note(f"{BASELINE} is added: the baseline at equal steps")
        for run in runs:
            if run not in waiting:
                keep(comparison, run, board, "was finished before")
        if comparison.done:
            comparison.write()
        train_all(comparison, waiting, board, interrupts)
    return comparison


def train_all(
    comparison: Comparison, waiting: list[Run], board: PlainBoard, interrupts: Interrupts
) -> None:
    """Keep `--jobs` trainings running until all have ended."""
    waiting = list(waiting)
    children: list[Child] = []
    try:
        while (waiting or children) and not interrupts.asked:
            while waiting and len(children) < comparison.config.jobs:
                start(comparison, waiting.pop(0), children, board)
            for child in [child for child in children if child.ended()]:
                children.remove(child)
                end(comparison, child, board)
            board.update(comparison.runs, comparison.records, [child.run for child in children])
            time.sleep(PAUSE)
        if interrupts.asked and (waiting or children):
            stop(comparison, children, board)
    finally:  # leaves no process running, whatever went wrong
        for child in children:
            child.stop()
        for child in children:
            child.process.wait()


def start(comparison: Comparison, run: Run, children: list[Child], board: PlainBoard) -> None:
    """Start a training, or record why it cannot start."""
    try:
        children.append(Child(run))
    except ValueError as error:
        fail(comparison, run, str(error), board)
        return
    board.note(f"{run.name} starts, {1 + comparison.runs.index(run)} of {len(comparison.runs)}")


def end(comparison: Comparison, child: Child, board: PlainBoard) -> None:
    """Record how a training ended."""
    failure = child.failure()
    if failure is None:
        keep(comparison, child.run, board, "is finished")
        comparison.write()
    else:
        fail(comparison, child.run, failure, board)


def stop(comparison: Comparison, children: list[Child], board: PlainBoard) -> None:
    """Let the running trainings save their state.

    Raises:
        Interrupted: Always; the message says how to resume.
    """
    board.note("stopping: the running trainings save their state ...")
    for child in children:
        child.stop()
    for child in children:
        child.process.wait()
    raise Interrupted(
        f"stopped with {len(comparison.done)} of {len(comparison.runs)} runs finished, everything "
        "is saved: repeat the command to go on"
    )


def keep(comparison: Comparison, run: Run, board: PlainBoard, how: str) -> None:
    """Read the results of a finished training."""
    record = comparison.done[run.name] = read_record(run)
    board.note(f"{run.name} {how}: mIoU {points(record['last']['miou'])}")


def fail(comparison: Comparison, run: Run, reason: str, board: PlainBoard) -> None:
    """Record why a run has no result."""
    reasons = {**comparison.failures, run.name: reason}
    # In the order of the plan: with --jobs they end in any order.
    comparison.failures = {r.name: reasons[r.name] for r in comparison.runs if r.name in reasons}
    board.note(f"{run.name} failed: {reason}")
