"""Files of others are read to their end, or not at all."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_data import tiny_config

from gmix.compare.board import HowFar, how_far
from gmix.config.yamlfile import read_settings, write_yaml
from gmix.report.collect import read_run
from gmix.runs.results import Metrics
from gmix.runtime.infile import plain_file, read_json, read_plain
from gmix.training.replay import read_step, replay

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")


@posix
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (plain_file, read_plain, read_json, lambda path: read_settings(path.parent)):
        with pytest.raises(ValueError, match=r"config\.yaml is no file"):
            read(path)


def test_links_to_files_are_files(tmp_path: Path) -> None:
    """A hub's cache is a folder of links."""
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "link.json").symlink_to(tmp_path / "blob")
    assert read_json(tmp_path / "link.json") == {"a": 1}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "gone.json")


def test_text_has_an_end_and_an_encoding(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"x" * 2**20)
    assert len(read_plain(path, most=2**20)) == 2**20
    with path.open("ab") as file:
        file.truncate(2**40)  # of holes, so it takes no room
    with pytest.raises(ValueError, match="text has more than 64 MiB"):
        read_plain(path)
    path.write_bytes("ä".encode("latin-1"))
    with pytest.raises(ValueError, match="text is no UTF-8 text"):
        read_plain(path)


DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, "{", "[]", "null", '{"step": 1} 2', "\0"])
def test_results_that_are_none_count_as_missing(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"results\.json (is no JSON|must hold)"):
        (tmp_path / "results.json").write_text(text)
        read_json(tmp_path / "results.json")
    write_yaml(tiny_config(tmp_path, tmp_path), tmp_path / "config.yaml")
    assert read_run(tmp_path).results == {}


@pytest.mark.parametrize("line", [DEEP, "[1]", '{"step": Infinity}', '{"step": {}}', "{}", "\0"])
def test_lines_that_are_none_are_passed_over(tmp_path: Path, line: str) -> None:
    good: dict[str, Any] = {"step": 3, "losses": {"total": 1.0}}
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{json.dumps(good)}\n")
    write_yaml(tiny_config(tmp_path, tmp_path), tmp_path / "config.yaml")
    assert read_run(tmp_path).rows == [good]
    assert how_far(tmp_path) == HowFar(3, None)
    Metrics(tmp_path / "metrics.jsonl", ["a"], start=3)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(good) + "\n"


@posix
def test_pipes_among_the_files_of_a_run_are_not_waited_for(tmp_path: Path) -> None:
    write_yaml(tiny_config(tmp_path, tmp_path), tmp_path / "config.yaml")
    for name in ("metrics.jsonl", "results.json"):
        os.mkfifo(tmp_path / name)
    run = read_run(tmp_path)
    assert (run.rows, run.results) == ([], {})
    assert how_far(tmp_path) == HowFar(0, None)


@pytest.mark.parametrize(
    ("settings", "tensors", "step", "why"),
    [
        ({"stepz": 3, "steps": "many"}, {}, "1", "steps must be int, got 'many'"),
        ({"lr": -1.0}, {}, "1", "--lr must be 0 or more"),
        ({}, {"x_labeled": 1}, "first", "invalid literal for int"),
        ({}, {"x": 1}, "1", "unexpected keyword argument 'x'"),
        ({}, {"x_labeled": 1}, "1", "missing 1 required positional argument: 'y_labeled'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_step_to_replay_that_is_none_is_named(
    tmp_path: Path, settings: dict[str, Any], tensors: dict[str, int], step: str, why: str
) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    named = {name: torch.zeros(size) for name, size in tensors.items()}
    save_file(named, tmp_path / "batch.safetensors", {"step": step})
    with pytest.raises(ValueError, match=f"cannot replay .*: .*{re.escape(why)}"):
        replay(tmp_path)
    (tmp_path / "config.yaml").write_text("steps: 7\n")
    good = {"x_labeled": torch.zeros(1), "y_labeled": torch.ones(1)}
    save_file(good, tmp_path / "batch.safetensors", {"step": "4"})
    config, number, batch = read_step(tmp_path)
    assert (config.steps, number, batch.x_unlabeled) == (7, 4, None)
    assert torch.equal(batch.y_labeled, good["y_labeled"])
