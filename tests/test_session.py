"""A session is the training that `gmix train` does, put together but not begun."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import tiny_config

from gmix.builders.data import find_data
from gmix.runs.checkpoint import list_checkpoints
from gmix.training.session import look_back, open_session
from gmix.training.train import train

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SMALL = {
    "encoder": "tu-test_resnet",
    "model_args": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    "norm_batches": 1,
    "ema": 0.9,
    "steps": 3,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    train(tiny_config(data, out, **SMALL))
    return out


def test_its_steps_are_those_of_a_run_and_nothing_is_written(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    session = open_session(tiny_config(data, tmp_path / "out", **SMALL))
    session.remember_labeled()
    batches = session.load(session.stream, range(3))
    reports = list(session.fit(batches, report_when=lambda step: True))
    assert [report.step for report in reports] == [1, 2, 3]
    saved = load_file(finished / "checkpoint-00000003" / "method.safetensors")
    state = session.state.method.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    finished_net = session.finished_net(print).model.state_dict()
    deployed = load_file(finished / "model" / "model.safetensors")
    assert all(torch.equal(finished_net[name], deployed[name]) for name in deployed)
    assert not list(tmp_path.iterdir())


def test_one_is_taken_up_where_a_run_stopped(data: Path, finished: Path) -> None:
    config = tiny_config(data, finished, **SMALL)
    session = open_session(config)
    assert session.resume(list_checkpoints(finished)[0]) == []
    batches = (session.stream[step] for step in (2,))
    *_, report = session.fit(batches, start=2, report_when=lambda step: False)
    assert report.step == 3
    for name, module in session.state.modules.items():
        saved = load_file(finished / "checkpoint-00000003" / f"{name}.safetensors")
        state = module.state_dict()
        assert all(torch.equal(state[key], saved[key]) for key in saved)


def test_who_looks_back_disturbs_nothing(data: Path, finished: Path) -> None:
    # What runs on GPUs with several processes can be looked at on a CPU.
    config = tiny_config(data, finished, **SMALL, sync_norm=True)
    before = torch.random.get_rng_state()
    session = look_back(config, list_checkpoints(finished)[0], find_data(config), CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    assert session.state.average is None
    saved = load_file(finished / "checkpoint-00000002" / "method.safetensors")
    state = session.state.method.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)


def test_a_training_is_put_together_in_one_place() -> None:
    callers = {
        path.name
        for path in (ROOT / "gmix").rglob("*.py")
        if re.search(
            r"(?<!def )\b(build_state|build_method|fit_settings|check_batch_sizes)\(",
            path.read_text(),
        )
    }
    assert callers <= {"session.py", "state.py", "pairs.py"}
