"""Draw the house: which room of gmix/ imports from which.

    python benchmarks/house.py --table
    python benchmarks/house.py docs/pictures/house.png

The floors are computed from the imports in the code: a room stands on the floor above the highest room that it
imports from.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

GMIX = Path(__file__).resolve().parents[1] / "gmix"


@cache
def modules() -> dict[str, str]:
    """The source of every module, by its name."""
    found = {}
    for path in sorted(GMIX.rglob("*.py")):
        words = path.relative_to(GMIX.parent).with_suffix("").parts
        found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path.read_text("utf-8")
    return found


def room(module: str) -> str:
    """The folder or single file of the package that a module is in."""
    return module.split(".")[1] if "." in module else "gmix"


def imported(name: str, known: dict[str, str], *, types: bool = True) -> Iterator[str]:
    """The modules of gmix that a module imports, anywhere in it, with or without those for types only."""
    tree = ast.parse(known[name])
    skipped: set[ast.AST] = set()
    if not types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "gmix")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            module = node.module or ""
            if module.split(".")[0] == "gmix":
                names = [f"{module}.{alias.name}" for alias in node.names]
                yield from (full if full in known else module for full in names)


@cache
def rooms() -> dict[str, set[str]]:
    """The rooms, and those that each of them imports from when it runs."""
    known = modules()
    found: dict[str, set[str]] = {room(name): set() for name in known}
    for name in known:
        found[room(name)] |= {room(other) for other in imported(name, known, types=False)}
    doors = {"gmix", "__main__"}  # they hold a version and names
    return {name: others - doors - {name} for name, others in found.items() if name not in doors}


def floors() -> list[list[str]]:
    """The rooms from the ground up, those of a floor in the order of the alphabet."""
    graph = rooms()
    levels: dict[str, int] = {}
    while len(levels) < len(graph):
        for name in sorted(graph.keys() - levels.keys()):
            if graph[name] <= levels.keys():
                levels[name] = 1 + max((levels[other] for other in graph[name]), default=-1)
    return [sorted(n for n in levels if levels[n] == i) for i in range(max(levels.values()) + 1)]


def holds(name: str) -> str:
    """What a room says it holds."""
    said = ast.get_docstring(ast.parse(modules()[f"gmix.{name}"])) or ""
    return said.splitlines()[0]


def table() -> str:
    """The rooms from the top floor down, with what they hold and import."""
    lines = ["| room | holds | imports from |", "|---|---|---|"]
    for floor in reversed(floors()):
        for name in floor:
            place = f"gmix/{name}/" if (GMIX / name).is_dir() else f"gmix/{name}.py"
            below = ", ".join(sorted(rooms()[name])) or "nothing"
            lines.append(f"| `{place}` | {holds(name)} | {below} |")
    return "\n".join(lines)


def draw(out: Path) -> None:
    """Draw the floors, the ground floor at the bottom."""
    import textwrap

    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from PIL import Image

    levels = floors()
    figure = Figure(figsize=(8, 0.55 * len(levels)), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for height, floor in enumerate(levels):
        width = 12 / len(floor)
        for place, name in enumerate(floor):
            left = place * width
            axes.add_patch(
                Rectangle((left, height), width, 1, facecolor="#e8eefc", edgecolor="white", lw=3)
            )
            said = textwrap.shorten(holds(name).replace("`", ""), int(10 * width), placeholder=" …")
            axes.text(left + 0.15, height + 0.64, name, va="center", fontsize=10, weight="bold")
            axes.text(left + 0.15, height + 0.3, said, va="center", fontsize=7, color="#374151")
    axes.set(xlim=(0, 12), ylim=(0, len(levels)))
    axes.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(16).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="the picture to draw")
    parser.add_argument("--table", action="store_true", help="print the table of docs/house.md")
    args = parser.parse_args()
    if args.table:
        print(table())
    if args.out is not None:
        draw(args.out)


if __name__ == "__main__":
    main()
