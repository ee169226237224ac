"""Every bad input of bad_inputs.py ends in its one line, and does no harm."""

import logging
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_inputs import DONE, RUNS_CODE, Case, Payload, Place, told
from tiny_data import tiny_config, words, write_data

from gmix.builders.data import build_data
from gmix.cli.main import main
from gmix.config.parser import parse
from gmix.config.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
POSIX = os.name == "posix" and sys.platform != "darwin"  # macOS refuses names that are no UTF-8
ADMIN = hasattr(os, "geteuid") and os.geteuid() == 0
SAYS = dict(told())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    data = write_data(tmp_path_factory.mktemp("data"))
    out = tmp_path_factory.mktemp("finished")
    config = tiny_config(data, out, method="supervised", steps=2, checkpoint_every=0)
    assert main(["train", *words(config)]) == 0
    return out


def listing(folder: Path) -> dict[str, int]:
    """All there is in a folder, with when it was last changed."""
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def fits(pattern: str, line: str) -> bool:
    """Whether a line is what was expected, `…` standing for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), line) is not None


@pytest.mark.parametrize("did", DONE)
def test_bad_input(
    did: str,
    finished: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    says = SAYS[did]
    case = DONE[did] if isinstance(DONE[did], Case) else Case(DONE[did])
    if case.needs and not POSIX:
        pytest.skip("this file system knows no such thing")
    if case.needs == "no root" and ADMIN:
        pytest.skip("root may read everything")
    place = Place(tmp_path, finished)
    argv = case.make(place)
    before = listing(tmp_path)
    capfd.readouterr()
    caplog.set_level(logging.WARNING)
    if says.startswith("works"):
        result: Any = place
        if argv[0] == "train":
            result = build_data(parse(TrainConfig, "gmix train", "", argv[1:]))
        else:
            assert main(argv) == 0
        assert case.check is not None and case.check(result)
        if "warning" in says:
            recwarn.clear()
        assert capfd.readouterr().err == ""
    else:
        assert main(argv) in (1, 2)
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("gmix: ") and fits(says, line.removeprefix("gmix: ")), line
        if "left out" not in line:  # where the others were written
            assert listing(tmp_path) == before
    assert not place.marker.exists(), "the input ran its code"
    # Both would be more lines on stderr.
    silent = [record for record in caplog.records if logging.getLogger(record.name).handlers]
    assert caplog.records == silent  # others go to stderr, where a program sets up no logging
    assert not [str(warning.message) for warning in recwarn.list]


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """Else it would prove nothing that they did not."""
    place = Place(tmp_path, tmp_path)
    for run in (
        lambda: pickle.loads(pickle.dumps(Payload(place.marker))),
        lambda: yaml.unsafe_load(RUNS_CODE.replace("MARKER", str(place.marker))),
    ):
        run().close()
        place.marker.unlink()


def test_every_row_of_the_docs_is_done() -> None:
    assert [did for did, _ in told()] == [*DONE]
