"""Every example runs, as a person would run it: by itself, somewhere else."""

import re
from importlib.util import find_spec
from pathlib import Path

import forked
import pytest

from gmix import demo

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
# What an example needs beyond the extras of gmix that the tests bring.
OPTIONAL = {"lightning_module": "pytorch_lightning", "accelerate_loop": "accelerate"}


def with_few_scenes(path: Path, *words: str) -> None:
    """Run an example on a quarter of its scenes."""
    compose = demo.compose_scenes
    demo.compose_scenes = lambda source, n, **how: compose(source, max(1, n // 4), **how)
    forked.script(path, *words)


def run(folder: Path, path: Path, *words: str, count: int = 1) -> str:
    """What `python path words` prints, in an empty folder."""
    work = with_few_scenes if count == 1 else forked.script
    done = forked.run(work, path, *words, folder=folder, count=count)
    assert done.codes == count * [0], done.err
    return done.out


def require(stem: str) -> None:
    name = OPTIONAL.get(stem)
    if name is not None and find_spec(name) is None:
        pytest.skip(f'{stem}.py needs {name}: run `pip install "gmix[test]"`')


OTHERS = [path for path in EXAMPLES if path.stem != "thin_trainer"]  # test_thin_trainer.py runs it


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_example_runs_and_prints_what_the_docs_say(path: Path, tmp_path: Path) -> None:
    require(path.stem)
    steps = "1" if path.stem == "ablation" else "2"  # ten networks
    printed = run(tmp_path, path, steps)
    assert not re.search(r"\bnan\b", printed.lower())
    assert not list(tmp_path.iterdir()), "it leaves files behind"
    assert_shown(path, printed)


def assert_shown(path: Path, printed: str) -> None:
    """An example printed the lines that the docs show of it, but for their numbers."""
    row = re.search(rf"^\| `{path.name}` \|.*\|(.*)\|$", PAGE, re.MULTILINE)
    assert row, f"{path.name} is not in docs/examples.md"
    said = re.findall(r"`([^`]+)`", row[1])
    assert said and all(shape(line) in shape(printed) for line in said), printed


def shape(text: str) -> str:
    """Without the numbers, which the next version of torch may change."""
    return re.sub(r"\d+(\.\d+)?", "#", " ".join(text.split()))


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    require("accelerate_loop")
    printed = run(tmp_path, ROOT / "examples" / "accelerate_loop.py", "2", count=2)
    assert printed.count("step   0") == 1, "only one process is to print"
    assert "mIoU on 32 new scenes, 2 process(es)" in printed  # none counted twice


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_says_what_it_needs(path: Path) -> None:
    about = path.read_text(encoding="utf-8").split('"""')[1]
    for said in ("Needs `pip install", "seconds on one core", "Settings, honestly:", path.name):
        assert said in about, f"the docstring of {path.name} does not say: {said}"


def test_the_docs_list_no_other_example() -> None:
    assert set(re.findall(r"^\| `(\w+\.py)` \|", PAGE, re.MULTILINE)) == {
        path.name for path in EXAMPLES
    }
