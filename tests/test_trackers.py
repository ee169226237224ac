"""What `metrics.jsonl` says, trackers show; checked with TensorBoard's own reader."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_data import tiny_config, write_data

from gmix.cli.main import main
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import write_yaml
from gmix.runs.trackers import open_trackers, scalars

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def shown(folder: Path) -> dict[str, dict[int, float]]:
    """Every series by step, as TensorBoard merges the files of a run."""
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in names}


def test_tensorboard_shows_the_metrics_also_after_a_restart(tmp_path: Path) -> None:
    out, flags = tmp_path / "out", tmp_path / "flags.yaml"
    settings: dict[str, Any] = {"steps": 4, "eval_every": 2, "checkpoint_every": 2}
    settings |= {"method": "supervised", "trackers": "tensorboard"}
    write_yaml(tiny_config(write_data(tmp_path / "data"), out, **settings), flags)
    assert main(["train", "--config", str(flags)]) == 0
    (out / "results.json").unlink()
    for path in (out / "checkpoint-00000004").iterdir():
        path.unlink()
    (out / "checkpoint-00000004").rmdir()
    assert main(["train", "--config", str(flags), "--resume"]) == 0  # steps 3 and 4 once more
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    expected: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in scalars(row).items():
            expected.setdefault(name, {})[row["step"]] = value
    found = shown(out / "tensorboard")
    assert {"losses/total", "validation/miou", "lr"} <= found.keys() == expected.keys()
    for name, series in expected.items():
        assert found[name] == pytest.approx(series, rel=1e-5)
    assert [path for path in (out / "tensorboard").iterdir() if path.is_dir()] == []


def test_names_of_classes_are_shown_as_text_and_none_is_left_out() -> None:
    row = {"step": 3, "validation": {"iou": {"step": 0.5, "re\x1b[31md\u202e": 0.25}}}
    found = scalars(row)
    assert found == {"validation/iou/step": 0.5, "validation/iou/re\\x1b[31md\\u202e": 0.25}


def test_a_tracker_whose_server_is_gone_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("accelerate.tracking")
    asked: list[int] = []

    class Gone(tracking.GeneralTracker):  # type: ignore[misc, name-defined]
        """Its server answers at the first step only; what was sent cannot be closed, either."""

        name, requires_logging_directory, tracker = "tensorboard", False, None

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            asked.append(step or 0)
            if step != 1:
                raise ConnectionError("the server\nis gone")

        def finish(self) -> None:
            raise ConnectionError("nobody answers")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Gone)
    with open_trackers("tensorboard", TrainConfig(), tmp_path) as log:
        for step in (1, 2, 3):
            log({"step": step, "lr": 0.1})
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and asked == [1, 2]
    assert "--trackers tensorboard failed, no more is sent there: the server is gone" in said
    with open_trackers("tensorboard", TrainConfig(), tmp_path) as log:
        log({"step": 1, "lr": 0.1})
    assert "nobody answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", "--trackers: 'tensorbord' is unknown, choose from"),
        ("tensorboard,", "--trackers: '' is unknown"),
        ("dvclive", "--trackers dvclive needs its package: `pip install dvclive`"),
    ],
)
def test_what_cannot_track_is_refused_in_one_sentence(
    names: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tmp_path / "flags.yaml"
    write_yaml(tiny_config(write_data(tmp_path / "data"), tmp_path / "out", trackers=names), flags)
    assert main(["train", "--config", str(flags)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
