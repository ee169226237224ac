"""What README and docs say is true: their Python runs, their flags, tests and names exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import gmix
from gmix.training.config import (
    CompareConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PseudoLabelConfig,
    ReportConfig,
    SplitsAuditConfig,
    SplitsMakeConfig,
    TrainConfig,
    flag,
)
from gmix.training.flags import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "pseudo-label": PseudoLabelConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "demo": DemoConfig,
    "splits make": SplitsMakeConfig,
    "splits audit": SplitsAuditConfig,
}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of one language: the line each starts on, and its text."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, language)]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Every `gmix ...` command of a page: its name, of two words for `gmix splits`, and flags."""
    lines = [
        part.strip()
        for _, text in blocks(page, "bash")
        for line in text.replace("\\\n", " ").splitlines()
        for part in line.split("&&")
    ]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("gmix")]
    sizes = [3 if words[1] == "splits" else 2 for words in found]
    return [
        (" ".join(words[1:size]), words[size:]) for words, size in zip(found, sizes, strict=True)
    ]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        # The only change: tests download nothing.
        code = text.replace('encoder_weights="imagenet"', "encoder_weights=None")
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_are_understood(page: Path) -> None:
    for command, words in commands(page):
        if "--config" in words:  # the file exists on the reader's machine
            at = words.index("--config")
            del words[at : at + 2]
        while command == "report" and words and not words[0].startswith("-"):
            del words[0]  # the runs
        parse(COMMANDS[command], f"gmix {command}", "", words)


def test_there_are_commands_to_check() -> None:
    assert {command for page in PAGES for command, _ in commands(page)} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_in_the_text_exist(page: Path) -> None:
    known = {flag(item.name) for kind in COMMANDS.values() for item in fields(kind)}
    known |= {"--config", "--help", "--debug", "--version"}
    known |= {flag(f"no_{item.name}") for item in fields(TrainConfig) if item.default is True}
    mentioned = set(
        re.findall(r"`(?:gmix [\w ]+ )?(--[a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    )
    assert mentioned <= known


def test_every_flag_of_train_is_in_the_quickstart() -> None:
    text = (ROOT / "docs" / "quickstart-runner.md").read_text(encoding="utf-8")
    table = text[text.index("## All flags") :]
    assert not [item.name for item in fields(TrainConfig) if f"`{flag(item.name)}" not in table]


def test_defaults_in_the_quickstart_are_the_real_ones() -> None:
    text = (ROOT / "docs" / "quickstart-runner.md").read_text(encoding="utf-8")
    real = {flag(item.name): getattr(TrainConfig(), item.name) for item in fields(TrainConfig)}
    checked = 0
    for row in re.findall(r"^\| `--.*", text, re.MULTILINE):
        _, flags, defaults, *_ = row.split("|")
        names = re.findall(r"`(--[a-z-]+)", flags)
        for name, said in zip(names, map(str.strip, defaults.split(",")), strict=False):
            if real[name]:  # the others are described in words
                is_number = type(real[name]) in (int, float)
                default = "on" if real[name] is True else real[name]
                assert (float(said) if is_number else said) == default, name
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_blocks_are_configurations(page: Path) -> None:
    for _, text in blocks(page, "yaml"):
        TrainConfig(**{key.replace("-", "_"): value for key, value in yaml.safe_load(text).items()})


def test_tests_named_in_the_docs_exist() -> None:
    named = {
        match
        for page in PAGES
        for match in re.findall(r"(tests/\w+\.py)::(\w+)", page.read_text(encoding="utf-8"))
    }
    assert named
    for file, name in sorted(named):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_every_public_name_is_in_the_api() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in gmix.__all__:
        assert re.search(rf"^::: gmix\.{name}$", text, re.MULTILINE), name
    members = re.search(r"^::: gmix\.methods\n(?: .*\n)* +members: \[(.*)\]", text, re.MULTILINE)
    assert members and set(members[1].split(", ")) == set(gmix.methods.__all__)


def test_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links), links
