"""Draw the house: which room of gmix/ imports from which.

    python benchmarks/house.py --table
    python benchmarks/house.py docs/pictures/house.png

The floors are computed from the imports in the code: a room stands on the floor above the highest room that it
imports from.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

GMIX = Path(__file__).resolve().parents[1] / "gmix"


def rooms() -> dict[str, Path]:
    """Folders and single files of the package, by name."""
    found = {path.stem: path for path in GMIX.glob("*.py") if not path.stem.startswith("__")}
    found |= {path.parent.name: path.parent for path in GMIX.glob("*/__init__.py")}
    return found


def uses(path: Path) -> set[str]:
    """The rooms that one imports when it runs."""
    files = [path] if path.is_file() else path.rglob("*.py")
    found = set()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for_types = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if node in for_types:
                continue
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                whole = module == "gmix"
                names = [f"{module}.{alias.name}" for alias in node.names] if whole else [module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            found |= {name.split(".")[1] for name in names if name.startswith("gmix.")}
    return (found & rooms().keys()) - {path.stem}


def floors() -> list[list[str]]:
    """The rooms from the ground up, those of a floor in the order of the alphabet."""
    graph = {name: uses(path) for name, path in rooms().items()}
    levels: dict[str, int] = {}
    while len(levels) < len(graph):
        for name in sorted(graph.keys() - levels.keys()):
            if graph[name] <= levels.keys():
                levels[name] = 1 + max((levels[other] for other in graph[name]), default=-1)
    return [sorted(n for n in levels if levels[n] == i) for i in range(max(levels.values()) + 1)]


def holds(path: Path) -> str:
    """What a room says it holds."""
    file = path if path.is_file() else path / "__init__.py"
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.splitlines()[0]


def table() -> str:
    """The rooms from the top floor down, with what they hold and import."""
    lines = ["| room | holds | imports from |", "|---|---|---|"]
    for floor in reversed(floors()):
        for name in floor:
            path = rooms()[name]
            place = f"gmix/{name}.py" if path.is_file() else f"gmix/{name}/"
            below = ", ".join(sorted(uses(path))) or "nothing"
            lines.append(f"| `{place}` | {holds(path)} | {below} |")
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
            said = textwrap.shorten(
                holds(rooms()[name]).replace("`", ""), int(10 * width), placeholder=" …"
            )
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
