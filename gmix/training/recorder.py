"""The output of a training: files, trackers and lines on the screen, written by the main process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from gmix.builders.data import describe_data, image_format
from gmix.config.yamlfile import write_yaml
from gmix.errors import NonFinite
from gmix.runs.card import training_facts
from gmix.runs.checkpoint import remove_old
from gmix.runs.progress import PlainProgress, SilentProgress, make_progress
from gmix.runs.reproduction import batch_names, first_names, save_reproduction
from gmix.runs.results import Metrics, Report, write_results
from gmix.runs.saved import SavedModel
from gmix.runs.trackers import open_trackers
from gmix.runtime.atomic import atomic_folder, remove_stale
from gmix.runtime.console import explain, print_error
from gmix.runtime.device import peak_memory
from gmix.runtime.lock import locked
from gmix.training.nonfinite import check_finite
from gmix.training.session import Session
from gmix.training.state import find_checkpoint
from gmix.training.validation import Validation

__all__ = ["Recorder"]


class Recorder:
    """Write `config.yaml`, `metrics.jsonl`, checkpoints, `best/`, `model/` and `results.json`, and show progress.

    Nothing is written before `folder` is entered, and only the main process writes.

    Args:
        session: The training.
        out: The folder to write into.
        start: Number of steps already done.
        began: Start of the training, by `perf_counter`.
    """

    def __init__(self, session: Session, out: Path, start: int, began: float) -> None:
        self.session = session
        self.out = out
        self.start = start
        self.writes = session.processes.first
        self._began = began - session.state.tally.seconds  # those of earlier runs count as well
        self._screen: PlainProgress = SilentProgress(session.config.steps, start)
        self._metrics = Metrics(None, session.data.classes.names, start)

    @contextmanager
    def folder(self) -> Iterator[None]:
        """Lock the folder for this training, and prepare it.

        Raises:
            ValueError: If another training uses it, or it is not writable.
        """
        if not self.writes:
            yield
            return
        config, out = self.session.config, self.out
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            if self.start == 0:
                find_checkpoint(config, out)  # another run may have started and ended meanwhile
            remove_stale(out)
            remove_old(out, config.keep_last)
            write_yaml(config, out / "config.yaml")
            self._metrics = Metrics(out / "metrics.jsonl", self._metrics.names, self.start)
            yield

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Pass each line of `metrics.jsonl` to the trackers as well.

        Raises:
            ValueError: If a tracker cannot start.
        """
        config = self.session.config
        names = config.trackers if self.writes else "none"
        with open_trackers(names, config, self.out, self.start) as self._metrics.log:
            yield

    @contextmanager
    def screen(self, notes: Sequence[str]) -> Iterator[None]:
        """Show the training while it runs.

        Args:
            notes: Messages to show first.
        """
        config, data, processes = self.session.config, self.session.data, self.session.processes
        progress = make_progress if self.writes else SilentProgress
        with progress(config.steps, self.start) as self._screen:
            self._screen.note(f"{config.method}: {describe_data(data)}; writing to {self.out}")
            for note in (*data.notes, *notes):
                self._screen.note(note)
            if processes.count > 1:
                self._screen.note(
                    f"{processes.count} processes share the {config.accumulate} micro-batches of a step"
                )
            if self.start:
                self._screen.note(f"going on after step {self.start}")
            yield

    def note(self, text: str) -> None:
        """Show a message, from any process."""
        if self.writes:
            self._screen.note(text)
        else:
            print_error(text, 0)

    def lacks_validation(self) -> bool:
        """Return whether the step to resume from still lacks its validation; False in processes that do not write."""
        return self._metrics.lacks_validation(self.start)

    def report(self, report: Report) -> None:
        """Write a report of `fit` into `metrics.jsonl`."""
        self.session.state.tally.step_seconds += report.seconds * report.steps
        self._metrics.report(report)

    def show(self, report: Report) -> None:
        """Show a report of `fit`, after the validation of its step."""
        self._screen.report(report)

    def validation(self, step: int, found: Validation) -> None:
        """Write a validation, and with `--keep-best` the network if it is the best so far."""
        tally = self.session.state.tally
        if found.scores is not None:
            self._screen.miou = found.scores.miou
            self._metrics.scores(step, found.scores)
            tally.best = max(tally.best or (-1.0, 0), (found.scores.miou, step))
            if self.session.config.keep_best and tally.best[1] == step:
                self._model("best", step, found)
        if found.pseudo is not None:
            self._metrics.pseudo(step, found.pseudo)

    def checkpoint(self, step: int) -> None:
        """Write a checkpoint.

        Raises:
            FloatingPointError: If a weight is not finite; the previous checkpoint stays.
            ValueError: If it cannot be written; the previous checkpoint stays.
        """
        check_finite(self.session.state.method, step)
        if self.writes:
            self.session.state.save(self.out, step, self.session.config.keep_last)

    def count_cost(self) -> None:
        """Record the time and memory so far."""
        tally = self.session.state.tally
        tally.seconds = perf_counter() - self._began
        peak = peak_memory(self.session.device) or 0
        tally.peak_memory = max(tally.peak_memory or 0, peak) or None

    @contextmanager
    def rescued(self, step: int) -> Iterator[None]:
        """Save the state of the training if the block, which is not part of a step, fails.

        Raises:
            ValueError: With one sentence that says what failed and how to resume; errors other than those of data
                and files are raised unchanged.
        """
        try:
            yield
        except Exception as error:
            try:
                self.checkpoint(step)
            except ValueError as second:  # it says what is left
                raise ValueError(f"{explain(error)}; {second}") from error
            if not isinstance(error, (ValueError, OSError)):
                raise
            remedy = "mend that, and repeat the command with --resume"
            raise ValueError(f"{explain(error)}; {self.stopped(step)}: {remedy}") from error

    def stopped(self, step: int) -> str:
        """Describe where a saved training stopped."""
        return f"stopped after step {step} of {self.session.config.steps}, everything is saved"

    def finish(self, found: Validation) -> None:
        """Write `model/` and `results.json`."""
        config, data, tally = self.session.config, self.session.data, self.session.state.tally
        self._model("model", config.steps, found)
        if self.writes:
            path, names = self.out / "results.json", data.classes.names
            write_results(path, config, names, data.counts, tally, found.scores, found.pseudo)

    def _model(self, name: str, step: int, found: Validation) -> None:
        if not self.writes:
            return
        config, data = self.session.config, self.session.data
        scores, reached = found.scores, None
        if scores is not None:
            reached = {"step": step, **scores.to_dict(data.classes.names)}
        facts = training_facts(config, data.counts, data.split, reached)
        size, (mean, std) = self.session.size, self.session.stats
        saved = SavedModel(found.net, data.classes, size, mean, std, image_format(config), facts)
        with atomic_folder(self.out / name) as aside:
            saved.save_pretrained(aside)

    def skip_step(self, bad: NonFinite) -> None:
        """Report a skipped step, and save a reproduction of the first one."""
        # Only the first: each is as large as a checkpoint.
        saved = bool(self.session.state.tally.skipped)
        self._screen.note(f"left out: {self.describe_step(bad, save=not saved)}")

    def describe_step(self, bad: NonFinite, *, save: bool = True) -> str:
        """Describe the values that are not finite, the images, and where the step is saved."""
        session = self.session
        labeled, unlabeled = map(first_names, batch_names(session.stream, bad.step))
        text = f"{bad}; labeled images: {labeled}; unlabeled: {unlabeled or 'none'}"
        if not (save and self.writes):
            return text
        state = None  # without a guard the weights have changed since
        if session.config.skip_nonfinite > 0:
            state = partial(session.state.save, step=bad.step - 1)
        try:
            found = save_reproduction(self.out, bad, session.config, session.stream, state)
        except ValueError as error:
            return f"{text}; {error}"
        return f"{text}; saved in {found}"
