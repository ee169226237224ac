"""What type checkers tell users: their parts fit, their mistakes are errors, and no public name is `Any`."""

import inspect
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from test_docs import blocks
from torch import nn

import gmix
from gmix import protocols

pytest.importorskip("mypy", reason='mypy checks these: pip install "gmix[test]"')

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "tests" / "typing"
MODULES = ["gmix", *(f"gmix.{name}" for name in ("data", "evaluation", "functional", "methods"))]
MODULES += ["gmix.protocols"]
# As people write examples: functions without types, and a package without any.
RELAXED = '# mypy: check-untyped-defs, disable-error-code="no-untyped-def,no-untyped-call,import-untyped"\n'


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """By file, each line that mypy complains of or reveals, and what it says; one run, most of it reads torch."""
    folder = tmp_path_factory.mktemp("typed")
    examples = "".join(text for _, text in blocks(ROOT / "docs" / "extending.md", "python"))
    (folder / "extending.py").write_text(RELAXED + examples, encoding="utf-8")
    names = [f"{module}.{name}" for module in MODULES for name in import_module(module).__all__]
    lines = [
        *(f"import {module}" for module in MODULES),
        *(f"reveal_type({name})" for name in names),
    ]
    (folder / "names.py").write_text("\n".join(lines), encoding="utf-8")
    files = [*FILES.glob("*.py"), *folder.glob("*.py")]
    flags = ["--strict", "--config-file=", "--follow-imports=silent", "--hide-error-context"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            *flags,
            "--cache-dir",
            os.devnull,  # writing it takes longer than it saves
            *map(str, files),
        ],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    found: dict[str, list[tuple[int, str]]] = {path.stem: [] for path in files}
    for name, line, text in re.findall(
        r"(\w+)\.py:(\d+): (error: .*|note: Revealed .*)", done.stdout
    ):
        found[name].append((int(line), text))
    return found


def test_what_a_user_writes_is_accepted(said: dict[str, list[tuple[int, str]]]) -> None:
    assert not said["uses_gmix"]


def test_what_a_user_writes_runs(tmp_path: Path) -> None:
    runpy.run_path(str(FILES / "uses_gmix.py"))["main"](tmp_path)


def test_mistakes_are_errors(said: dict[str, list[tuple[int, str]]]) -> None:
    lines = (FILES / "misuses_gmix.py").read_text(encoding="utf-8").splitlines()
    marked = {
        (number, mark[1])
        for number, line in enumerate(lines, 1)
        if (mark := re.search(r"# (\[[\w-]+\])$", line))
    }
    assert len(marked) > 20
    assert {(line, text.split()[-1]) for line, text in said["misuses_gmix"]} == marked


def test_the_examples_of_the_documentation_are_accepted(
    said: dict[str, list[tuple[int, str]]],
) -> None:
    assert not said["extending"]


def test_no_public_name_is_any(said: dict[str, list[tuple[int, str]]]) -> None:
    names = [name for module in MODULES for name in import_module(module).__all__]
    assert len(said["names"]) == len(names)
    untyped = {
        name
        for (_, text), name in zip(said["names"], names, strict=True)
        if re.fullmatch(r'note: Revealed type is "(def \(.*\) -> )?Any"', text)
    }
    assert untyped == {"eval_transform", "read_image", "read_mask"}  # torchvision has no types


@pytest.mark.parametrize(
    ("part", "role"),
    [
        (gmix.SimilarPairSelector, protocols.PairSelector),
        (gmix.RandomPairSelector, protocols.PairSelector),
        (gmix.LabeledUnlabeledMixer, protocols.Mixer),
        (gmix.SoftDecoupler, protocols.Decoupler),
        (gmix.StrongColor, protocols.Augmentation),
        (gmix.GaussianBlur, protocols.Augmentation),
        (gmix.CutMix, protocols.BoxSampler),
        (gmix.ClassPaste, protocols.RegionSampler),
    ],
)
def test_a_part_is_called_as_it_says(part: type[nn.Module], role: type) -> None:
    assert part.__annotations__["__call__"] == role.__name__
    assert inspect.signature(part.forward) == inspect.signature(role.__call__)
