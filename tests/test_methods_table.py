"""One table drives everything that names methods: adding one is its file and its entry."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from tiny_data import tiny_config, words, write_data
from tiny_methods import BUILDERS

import gmix
from gmix.methods import METHODS, Method
from gmix.report.collect import group_runs, read_run

MINE = """
from gmix import functional as G
from gmix.methods import Method


class Mirrored(Method):
    def __init__(self, net, *, weight=1.0, mean=0.0):
        super().__init__(net)
        self.weight, self.mean = weight, mean

    def losses(self, step):
        supervised = self.supervised(self.net(step.x_labeled), step.y_labeled)
        target = G.probabilities(self.net(step.x_unlabeled)).detach().flip(-1)
        mirrored = G.soft_cross_entropy(self.net(step.x_unlabeled.flip(-1)), target)
        total = supervised + self.weight * mirrored
        return {"supervised": supervised, "mirrored": mirrored, "total": total}
"""
ENTRY = """
import json, sys
from gmix.methods import METHODS, Entry

METHODS["mine"] = Entry("mine:Mirrored", "My Method", "mirror images")

from gmix.cli.main import main

for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a method of one's own, which was trained and evaluated from the command line."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    data = write_data(folder / "data")
    settings = {"encoder": "tu-test_resnet", "method": "mine", "method_args": "{weight: 0.5}"}
    sizes = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    config = tiny_config(data, folder / "out", **settings, model_args=sizes, steps=2)
    commands = [["completion"], ["train", *words(config)], ["train", "--help"]]  # which exits
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, json.dumps(commands)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout, encoding="utf-8")
    return folder


def test_a_method_of_ones_own_trains_from_the_command_line(place: Path) -> None:
    results = json.loads((place / "out" / "results.json").read_text())
    assert results["steps"] == 2
    rows = [json.loads(line) for line in (place / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["losses"].keys() == {"supervised", "mirrored", "total"}
    half = rows[0]["losses"]["supervised"] + 0.5 * rows[0]["losses"]["mirrored"]
    assert rows[0]["losses"]["total"] == pytest.approx(half)
    assert "| method | mine |" in (place / "out" / "model" / "README.md").read_text()


def test_its_name_is_proposed_and_its_label_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = (place / "printed").read_text()
    others = ", ".join(name for name in METHODS if name != "guidedmix")
    assert f"--method NAME or {others}, mine [guidedmix]" in " ".join(printed.split())
    lines = printed.splitlines()
    (case,) = [line for line in lines if "--method)" in line]
    assert case.split('"')[1].split() == [*METHODS, "mine"]
    runs = [read_run(place / "out")]
    assert group_runs(runs)[0].label == "mine"  # nobody has told this process
    monkeypatch.setitem(METHODS, "mine", METHODS["cps"]._replace(label="My Method"))
    assert group_runs(runs)[0].label == "My Method"


def test_every_method_of_the_folder_is_in_the_table_and_told_as_it_is() -> None:
    folder = Path(gmix.__file__).parent / "methods"
    found = set()
    for file in folder.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            kind = getattr(import_module(f"gmix.methods.{file.stem}"), getattr(node, "name", ""), 0)
            # A base of methods has no losses.
            method = isinstance(node, ast.ClassDef) and issubclass(kind, Method)
            if method and kind.losses is not Method.losses:
                found.add(f"gmix.methods.{file.stem}:{node.name}")
    assert {entry.path for entry in METHODS.values()} == found
    for entry in METHODS.values():
        kind = entry.load()
        assert entry.unlabeled == kind.needs_unlabeled
        assert getattr(gmix.methods, kind.__name__) is kind
    assert len({entry.label for entry in METHODS.values()}) == len(METHODS)


def test_every_method_has_its_tester() -> None:
    files = (Path(__file__).parent / "methods").glob("test_*.py")
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert sorted(re.findall(r'^    name = "(.*)"$', text, re.MULTILINE)) == sorted(BUILDERS)


def test_type_checkers_see_what_is_there() -> None:
    tree = ast.parse(Path(gmix.methods.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {a.asname for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == set(gmix.methods.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        gmix.methods.nonsense  # noqa: B018
