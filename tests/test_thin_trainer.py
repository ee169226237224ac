"""The recipe as one plain loop gives the very weights of `gmix train`."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_examples import assert_shown

from gmix.demo.run import demo_config
from gmix.demo.scenes import Folders, write_scenes
from gmix.training.decide import DECIDING
from gmix.training.train import train

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "thin_trainer.py"


@pytest.fixture
def thin() -> Any:
    spec = importlib.util.spec_from_file_location("thin_trainer", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 100


def test_it_trains_as_the_trainer_does(
    thin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = Folders.inside(tmp_path / "scenes")
    write_scenes(folders, labeled=5, unlabeled=6, val=2, size=96, seed=0)
    # The trainer's seeds of a step have nothing to do with each other, those of a short loop are its number.
    for name in ("fit", "norm"):
        monkeypatch.setattr(
            f"gmix.training.{name}.step_seed", lambda seed, step, stream, part=0: step
        )
    assert thin.DECIDING_BATCHES == DECIDING
    monkeypatch.setattr(thin, "DECIDING_BATCHES", 2)
    monkeypatch.setattr("gmix.training.session.DECIDING", 2)
    monkeypatch.setattr(thin, "NORM_BATCHES", 2)
    config = demo_config(tmp_path, folders, "guidedmix", 2, seed=0)
    train(replace(config, norm_batches=2, trackers="none", report="none"))
    capsys.readouterr()
    net, _ = thin.train(folders, 2)
    assert_shown(EXAMPLE, capsys.readouterr().out)
    trained = load_file(tmp_path / "guidedmix" / "model" / "model.safetensors")
    state = net.model.state_dict()
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], trained[name]) for name in trained)
