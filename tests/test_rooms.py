"""Rooms import one way: each only from those below it, and none in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from house import imported, modules, room  # benchmarks/house.py

# From the ground floor up. What a room holds is the first line of its `__init__.py`, and in docs/house.md.
ROOMS = (
    *("errors", "runtime", "functional", "protocols", "nn", "data", "evaluation", "methods"),
    *("config", "builders", "runs", "deploy", "training"),
    *("compare", "splits", "report", "demo", "cli"),
)
# These name the types of rooms above them for type checkers only.
NAMES_TYPES = ("gmix", "gmix.protocols")

MODULES = modules()


def upward(known: dict[str, str]) -> list[str]:
    """Imports that go to a room above."""
    wrong = []
    for name in known:
        for other in imported(name, known, types=name not in NAMES_TYPES):
            here, there = room(name), room(other)
            if "gmix" in (here, there) or here == "__main__":
                continue  # `gmix` itself is the door: it holds a version, and names
            if ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{name} imports {other}")
    return wrong


def circle(known: dict[str, str]) -> list[str]:
    """Modules that import each other when they run, if there are such."""
    graph = {name: set(imported(name, known, types=False)) - {name} for name in known}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_is_in_a_room() -> None:
    assert {room(name) for name in MODULES} == {*ROOMS, "gmix", "__main__"}


def test_no_room_imports_from_one_above() -> None:
    assert upward(MODULES) == []


def test_no_modules_import_each_other() -> None:
    assert circle(MODULES) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gmix.functional.masks", "from gmix.nn.views import CutMix"),
        ("gmix.deploy.predict", "import gmix.training.fit"),
        ("gmix.data.images", "from gmix import cli"),
        ("gmix.nn.mixer", "def late():\n    from gmix.methods.cps import CPS"),
        ("gmix.runs.card", "if TYPE_CHECKING:\n    from gmix.training.session import Session"),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str) -> None:
    (wrong,) = upward({**MODULES, module: f"{MODULES[module]}\n{line}\n"})
    assert wrong.startswith(f"{module} imports gmix.")


def test_a_circle_is_found() -> None:
    changed = f"{MODULES['gmix.data.classes']}\nfrom gmix.data.masks import read_mask\n"
    assert {"gmix.data.classes", "gmix.data.masks"} <= {
        *circle({**MODULES, "gmix.data.classes": changed})
    }


def test_every_room_says_what_it_holds() -> None:
    for name in ROOMS:
        said = ast.get_docstring(ast.parse(MODULES[f"gmix.{name}"]))
        assert said and len(said.splitlines()[0]) > 20, name


def test_the_trainer_is_thin() -> None:
    lines = [source.count("\n") for name, source in MODULES.items() if room(name) == "training"]
    assert sum(lines) <= 2000
