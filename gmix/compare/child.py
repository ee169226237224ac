"""A training in a separate process, with its own memory; a crash does not affect the other runs."""

from __future__ import annotations

import signal
import subprocess
import sys

from gmix.compare.plan import Run
from gmix.config.yamlfile import check_unchanged, read_settings, write_yaml
from gmix.runtime.infile import read_json
from gmix.runtime.lock import check_unlocked


class Child:
    """A `gmix train --resume`, started immediately; its output goes to `log.txt` in its folder.

    Args:
        run: The run to train.

    Raises:
        ValueError: If another process is training in that folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        check_unlocked(
            run.folder
        )  # here as well, because the error of the child process would be in its log
        run.folder.mkdir(parents=True, exist_ok=True)
        self.log = run.folder / "log.txt"
        with self.log.open("ab") as log:
            self.start = log.tell()
            # Not config.yaml, which holds the settings that the run was started with.
            flags = run.folder / "flags.yaml"
            write_yaml(run.config, flags)
            words = ["train", "--config", str(flags), "--resume", "--report", "none"]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gmix", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C would also reach the child, and a second signal would end it before it has saved.
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Return whether the process has ended, with or without success."""
        return self.process.poll() is not None

    def failure(self) -> str | None:
        """Return why an ended process left no result, in one line; None if it left one."""
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
        """Ask the process to save and stop; a second call ends it immediately."""
        self.process.terminate()  # does nothing if it has ended


def is_finished(run: Run) -> bool:
    """Return whether the run has already finished, with the same settings."""
    try:
        read_json(run.folder / "results.json")
        check_unchanged(run.config, run.folder / "config.yaml")
        before = read_settings(run.folder)
    except (OSError, ValueError):  # if something is wrong, the run itself reports it
        return False
    # Resuming a finished run only measures again, as needed for another --held-out.
    return bool(before.get("held_out", 0) == run.config.held_out)


def last_words(text: str) -> str:
    r"""Return the last error line of a log, or its last line.

    Examples:
        >>> last_words("gmix: going on\ngmix: no mask\nstep 2\n"), last_words("step 1\nstep 2\n\n")
        ('no mask', 'step 2')
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("gmix: ") for line in lines if line.startswith("gmix: ")]
    return (errors or lines or [""])[-1]
