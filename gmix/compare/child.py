"""A training in a process of its own: its memory is its own, and its crash ends nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys

from gmix.compare.plan import Run
from gmix.config.yamlfile import check_unchanged, read_settings, write_yaml
from gmix.runtime.infile import read_json
from gmix.runtime.lock import check_unlocked


class Child:
    """One `gmix train --resume`, started at once; what it prints goes to `log.txt` in its folder.

    Args:
        run: what to train.

    Raises:
        ValueError: if another process is training in that folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        check_unlocked(run.folder)  # as its own process would, but that one's log is not ours
        run.folder.mkdir(parents=True, exist_ok=True)
        self.log = run.folder / "log.txt"
        with self.log.open("ab") as log:
            self.start = log.tell()
            # Not config.yaml: that one says what the run was started with.
            flags = run.folder / "flags.yaml"
            write_yaml(run.config, flags)
            words = ["train", "--config", str(flags), "--resume", "--report", "none"]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gmix", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C would reach it as well, and a second signal ends it before it has saved.
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Whether the process has come to its end, good or bad."""
        return self.process.poll() is not None

    def failure(self) -> str | None:
        """Why an ended process has left no result, in one line; None if it has."""
        code = self.process.returncode
        if code == 0:
            there = (self.run.folder / "results.json").is_file()
            return None if there else "it was stopped: repeat the command to go on"
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", as happens when memory runs out" if name == "SIGKILL" else ""
            return f"it was ended by {name}{hint}"
        with self.log.open("rb") as log:
            log.seek(self.start)
            return last_words(log.read().decode("utf-8", "replace")) or f"exit code {code}"

    def stop(self) -> None:
        """Ask it to save and stop; asked twice, it ends at once."""
        self.process.terminate()  # which does nothing to one that has ended


def is_finished(run: Run) -> bool:
    """Whether the run has come to its end before, under these very settings."""
    try:
        read_json(run.folder / "results.json")
        check_unchanged(run.config, run.folder / "config.yaml")
        before = read_settings(run.folder)
    except (OSError, ValueError):  # if something is wrong, the run itself will say what
        return False
    # Resuming a finished run only measures again, and that is what another --held-out wants.
    return bool(before.get("held_out", 0) == run.config.held_out)


def last_words(text: str) -> str:
    """The last line that says what went wrong, or just the last one.

    Examples:
        >>> last_words("gmix: going on\\ngmix: no mask\\nstep 2\\n"), last_words("step 1\\nstep 2\\n\\n")
        ('no mask', 'step 2')
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("gmix: ") for line in lines if line.startswith("gmix: ")]
    return (errors or lines or [""])[-1]
