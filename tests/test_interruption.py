"""Whatever ends a training, at whatever moment, `--resume` ends where nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoint import assert_same
from tiny_data import write_data

from gmix.training.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny"))


# A network of milliseconds, and something to write nearly all the time.
QUICK: dict[str, Any] = {
    "encoder": "tu-test_resnet",
    "model_args": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    "steps": 8,
    "checkpoint_every": 2,
    "eval_every": 4,
    "keep_best": True,
}


# --- killed ----------------------------------------------------------------------------------


def everything(out: Path) -> dict[str, Any]:
    """All that a finished run leaves behind but for what takes time."""
    found: dict[str, Any] = {}
    last = list_checkpoints(out)[-1].path
    for folder in (last, out / "model", out / "best"):
        for file in folder.glob("*.safetensors"):
            found[f"{folder.name}/{file.name}"] = load_file(file)
    found["checkpoints"] = [checkpoint.step for checkpoint in list_checkpoints(out)]
    state = torch.load(last / "state.pt", weights_only=True)
    found["optimizer"] = state["optimizer"]
    found["tally"] = {name: state["tally"][name] for name in ("best", "image_passes", "skipped")}
    results = json.loads((out / "results.json").read_text())
    found["results"] = {name: results[name] for name in ("last", "best", "images", "split")}
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds_per_step", None)
        row.pop("images_per_second", None)
    found["metrics"] = rows
    found["remains"] = [path.name for path in out.glob(".*")]
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks")
@pytest.mark.parametrize(
    ("kills", "changes", "holds"),
    [
        (18, {"method": "guidedmix"}, ["teacher.net", "reference.keys", "adjustment.pixels"]),
        (16, {"method": "cps", "optimizer": "sgd"}, ["other.model"]),
        (16, {"method": "mean_teacher", "ema": 0.9, "accumulate": 2}, ["teacher.net"]),
    ],
    ids=["guidedmix", "cps", "ema"],
)
def test_a_run_killed_at_any_moment_ends_bit_equal(
    data: Path, tmp_path: Path, kills: int, changes: dict[str, Any], holds: list[str]
) -> None:
    tests = Path(__file__).parent
    argument = json.dumps([kills, kills, {**QUICK, **changes}])
    found = subprocess.run(
        [sys.executable, str(tests / "kill_often.py"), str(tmp_path), str(data), argument],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    done = json.loads((tmp_path / "kills.json").read_text())
    assert len(done) == kills
    kinds = [kill["kind"] for kill in done]
    assert min(kinds.count(kind) for kind in ("call", "write", "save")) > 0
    expected = everything(tmp_path / "straight")
    names = [*expected["checkpoint-00000008/method.safetensors"]]
    assert all(any(part in name for name in names) for part in holds)
    assert ("checkpoint-00000008/average.safetensors" in expected) == ("ema" in changes)
    assert expected["metrics"][-1]["step"] == 8 and expected["remains"] == []
    runs = {kill["run"] for kill in done}
    for run in runs:
        assert_same(everything(tmp_path / str(run)), expected)
