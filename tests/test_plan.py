"""`gmix train --dry-run`: what it says is what the run does, and nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_data import tiny_config, words, write_data

from gmix.cli.main import main
from gmix.methods import METHODS
from gmix.runs.results import Report
from gmix.training import plan as plan_file
from gmix.training import session as session_file
from gmix.training.plan import describe, human, plan
from gmix.training.train import train


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# What differs between methods is how many images go where, and what else they train; tests/test_docs.py counts the
# passes of all.
@pytest.mark.parametrize(
    "method", ["supervised", "guidedmix", "fixmatch", "cps", "cct", "s4gan", "u2pl"]
)
def test_a_plan_is_what_the_run_does(data: Path, tmp_path: Path, method: str) -> None:
    changes: dict[str, Any] = {"method": method, "steps": 3, "batch_unlabeled": 4}
    if method == "cct":
        changes["method_args"] = {"decoders": {"noise": 1, "cutout": 1}}
    if method in ("fixmatch", "guidedmix"):
        changes |= {"accumulate": 2, "ema": 0.9}
    before = files(data)
    config = tiny_config(data, tmp_path / "out", **changes)
    found = plan(config)
    assert not (tmp_path / "out").exists() and files(data) == before

    train(config)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found.image_passes == results["image_passes_per_step"]
    assert found.config.method == method
    has_unlabeled = METHODS[method].unlabeled
    assert found.epochs_labeled == 3 * 2 / 4
    assert found.epochs_unlabeled == (3 * 4 / 4 if has_unlabeled else None)
    assert (found.config.batch_labeled, found.batch_unlabeled) == (2, 4 if has_unlabeled else 0)
    assert found.hours == found.config.steps * found.seconds_per_step / 3600 > 0
    checkpoint = tmp_path / "out" / "checkpoint-00000003"
    on_disk = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert 0.8 * on_disk < found.checkpoint <= on_disk  # names and sizes are not counted
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    moments = [s["exp_avg"].numel() for s in state["optimizer"]["state"].values()]
    assert found.trained == sum(moments) >= found.parameters  # a teacher learns nothing


def test_time_is_that_of_the_measured_steps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(*_: Any, **rest: Any) -> Any:
        assert rest["steps"] == 7200 and rest["report_when"](1)
        for i, seconds in enumerate((1000.0, 30.0, 50.0)):  # the first is a warm-up
            yield Report(i + 1, 1, {"total": 1.0}, 1e-3, seconds, 4)

    monkeypatch.setattr(session_file, "fit", steps)
    monkeypatch.setattr(session_file, "count_first_step", lambda m, tell, calls: tell(6))
    found = plan(tiny_config(data, tmp_path / "out", steps=7200))
    assert found.seconds_per_step == 40
    assert found.hours == 80
    text = "\n".join(describe(found))
    assert "80:00:00 on cpu" in text and "40.00 s a step" in text


def test_slow_loading_is_part_of_the_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 12.0])
    monkeypatch.setattr(plan_file, "perf_counter", lambda: next(clock))
    found = plan(tiny_config(data, tmp_path / "out", method="supervised", workers=2))
    assert (found.seconds_per_batch, found.seconds_per_step) == (12, 6)


def test_the_command_prints_it_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"accumulate": 2, "lr": 0.004, "encoder_lr": 0.5, "steps": 2}
    config = tiny_config(data, tmp_path / "out", dry_run=True, **changes)
    assert main(["train", *words(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "guidedmix: 3 classes, images: 4 labeled, 4 unlabeled, 3 validation"
    rows = {line[:14].strip(): line[15:] for line in lines[1:]}
    assert (
        rows["steps"]
        == "2, of 2 labeled + 2 unlabeled images, in 2 micro-batches one after the other"
    )
    assert rows["epochs"] == "1.0 over the labeled images, 1.0 over the unlabeled"
    # Teacher and reference see the unlabeled ones, the student the labeled ones and two views.
    assert rows["image passes"] == "10 through an encoder a step"
    assert rows["learning rate"] == "adamw, from 0.004 (encoder 0.002) to 0 as (1 - t/2)^0.9"
    assert rows["peak memory"].endswith("B") and "kept" in rows["checkpoint"]
    assert not (tmp_path / "out").exists()
    assert main(["train", *words(tiny_config(data, tmp_path / "out", **changes))]) == 0
    assert "dry_run: false" in (tmp_path / "out" / "config.yaml").read_text()
    # Over a finished run as well, which is left as it is.
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path / "out")}
    assert main(["train", *words(config)]) == 0
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path / "out")} == before


def test_missing_data_is_the_normal_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(data, tmp_path / "out", images="nowhere", dry_run=True)
    assert main(["train", *words(config)]) == 1
    assert "the image folder nowhere does not exist" in capsys.readouterr().err


def test_compare_has_no_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--dry-run"]) == 2
    assert "--dry-run has no place here: it is for `gmix train`" in capsys.readouterr().err


def test_sizes_are_decimal() -> None:
    assert [human(n) for n in (999_400_000, 1_000_000_000)] == ["999 MB", "1.0 GB"]


def test_grey_images_are_planned_as_they_are_trained(tmp_path: Path) -> None:
    data = write_data(tmp_path / "grey")
    for name in ("images", "val_images"):
        for path in (data / name).iterdir():
            Image.open(path).convert("L").save(path)
    assert plan(tiny_config(data, tmp_path / "out", channels=1)).image_passes > 0
