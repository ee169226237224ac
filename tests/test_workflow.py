"""What is checked elsewhere is what pyproject.toml promises, by actions that nobody can change."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return workflow


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_may_only_read(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_all_pythons_and_systems_are_tried() -> None:
    matrix = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["newest"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu", "macos", "windows"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert matrix["python"] == re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    assert f'requires-python = ">={matrix["python"][0]}"' in project


def test_what_a_workflow_runs_is_here() -> None:
    scripts = [step["run"] for path in WORKFLOWS for step in steps(path) if "run" in step]
    ours = [line.split()[0] for line in scripts if line.startswith(".ci/")]
    assert {".ci/least", ".ci/check-package"} <= set(ours)
    assert all((ROOT / name).is_file() for name in ours)
