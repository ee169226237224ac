"""What a training writes is written by the first of its processes, and by nobody before it is asked to."""

import json
from pathlib import Path
from time import perf_counter

import pytest
from tiny_data import tiny_config, write_data

from gmix.runs.results import Report
from gmix.runtime.distributed import Processes
from gmix.training.recorder import Recorder
from gmix.training.session import Session, open_session
from gmix.training.validation import validate

REPORT = Report(6, 2, {"total": 1.5}, 1e-3, 0.5, 4)


def small_session(folder: Path, processes: Processes) -> Session:
    config = tiny_config(
        write_data(folder / "data"),
        folder / "out",
        method="supervised",
        encoder="tu-test_resnet",
        model_args={"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        norm_batches=0,
        decide_for="pixels",
        keep_best=True,
    )
    return open_session(config, processes)


def write_everything(recorder: Recorder, session: Session) -> None:
    found = validate(session, recorder.note)
    with recorder.folder():
        with recorder.tracking(), recorder.screen(["a note"]):
            recorder.report(REPORT)
            recorder.validation(6, found)
            recorder.show(REPORT)
            recorder.count_cost()
            recorder.checkpoint(6)
        recorder.finish(found)


def test_the_first_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, session = tmp_path / "out", small_session(tmp_path, Processes())
    session.state.tally.seconds = 100.0  # of a run that was interrupted
    recorder = Recorder(session, out, 0, perf_counter())
    assert not out.exists()
    write_everything(recorder, session)
    written = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert written == {
        *("config.yaml", "metrics.jsonl", "checkpoint-00000006", "best", "model", "results.json")
    }
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(row.keys() - {"step"}) for row in rows] == [
        ["images_per_second", "losses", "lr", "seconds_per_step"],
        ["validation"],
    ]
    results = json.loads((out / "results.json").read_text())
    assert results["best"] == {"miou": rows[1]["validation"]["miou"], "step": 6}
    assert results["minutes"] > 100 / 60
    assert results["seconds_per_step"] == 2 * 0.5 / 6
    said = capsys.readouterr().out
    assert "a note" in said and "step 6/6" in said


def test_other_processes_write_nothing_and_say_only_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    second = Processes()
    second.rank, second.count = 1, 2
    session = small_session(tmp_path, second)
    recorder = Recorder(session, tmp_path / "out", 0, perf_counter())
    write_everything(recorder, session)
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr() == ("", "")
    recorder.note("an image cannot be read")
    assert capsys.readouterr().err == "gmix, process 1: an image cannot be read\n"


def test_what_fails_between_two_steps_costs_none(tmp_path: Path) -> None:
    session = small_session(tmp_path, Processes())
    recorder = Recorder(session, tmp_path / "out", 0, perf_counter())
    with recorder.folder():
        with (
            pytest.raises(ValueError, match=r"^no room; stopped after step 4 of 6, everything is"),
            recorder.rescued(4),
        ):
            raise OSError("no room")
        with pytest.raises(KeyError), recorder.rescued(5):
            raise KeyError("of a program")
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {
        *("checkpoint-00000004", "checkpoint-00000005")
    }
