"""The same bits from the same flags, in any process; and nothing of it stays behind."""

import json
import os
from pathlib import Path

import forked
import pytest
import torch
from tiny_data import tiny_config, words, write_data

from gmix.cli.main import main
from gmix.runtime.deterministic import deterministic


def settings() -> tuple[object, ...]:
    return (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("workspace", [None, ":16:8"])
@pytest.mark.parametrize("mode", [0, 1])
def test_all_is_set_inside_and_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch, workspace: str | None, mode: int
) -> None:
    if workspace is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        torch.set_deterministic_debug_mode(mode)
        before = settings()
        with pytest.raises(KeyError), deterministic():
            assert settings() == (2, False, workspace or ":4096:8")
            raise KeyError
        assert settings() == before
        with deterministic(enabled=False):
            assert settings() == before
    finally:
        torch.set_deterministic_debug_mode(0)


def test_inside_torch_refuses_what_cannot_be_repeated() -> None:
    with deterministic(), pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def test_two_processes_give_the_same_bits_with_any_number_of_loaders(tmp_path: Path) -> None:
    data, found = write_data(tmp_path / "data"), []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        config = tiny_config(
            data,
            out,
            steps=3,
            eval_every=2,
            workers=workers,
            deterministic=True,
        )
        done = forked.run(main, ["train", *words(config)])
        assert done.codes == [0], done.err
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        for line in metrics:
            line.pop("seconds_per_step", None), line.pop("images_per_second", None)
        found.append((metrics, (out / "model" / "model.safetensors").read_bytes()))
    assert found[0] == found[1]
    assert len(found[0][0]) == 5  # three reports, two validations
