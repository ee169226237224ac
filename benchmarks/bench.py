"""Every method on every set of the bench, and one table: how far above supervised training, and where not.

    python benchmarks/bench.py --data DIR --out runs/bench --jobs 2
    python benchmarks/bench.py --data DIR --out runs/bench --methods guidedmix --try "low={criterion: {threshold: 0.8}}"
    python benchmarks/bench.py --out runs/bench --table report --chart bench.png

`bench.yaml` beside this file has the sets, the label counts and what all runs share. A run that is done is a
line of `OUT/bench.jsonl`; the others go on from their last checkpoint. Last weights only, scored on two halves
that are kept apart: `choose` for every decision about a setting, `report` for what is said of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
import yaml

HERE = Path(__file__).resolve().parent
PATHS = ("images", "masks", "unlabeled", "val_images", "val_masks", "voc", "data")
DIGITS = {"labeled": 48, "unlabeled": 400, "val": 160, "seed": 0}


class Run(NamedTuple):
    """One training: a name of the row, and what `gmix train` is told."""

    set: str
    labels: int
    row: str  # a method, or METHOD:NAME for a change of it
    method: str
    args: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.set}-{self.labels}-{self.row.replace(':', '+')}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="runs, and bench.jsonl")
    parser.add_argument("--data", type=Path, help="the folder that holds the sets")
    parser.add_argument("--sets", default="", help="some of them, NAME,NAME (default: all)")
    parser.add_argument("--labels", choices=["few", "many", "both"], default="both")
    parser.add_argument(
        "--methods", default="", help="any of gmix's, NAME,NAME (default: of the table)"
    )
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="NAME=YAML")
    parser.add_argument("--seeds", default="0,1,2", help="N,N")
    parser.add_argument("--steps", type=int, help="instead of those in bench.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--table", choices=["choose", "report"], help="print it, and train nothing")
    parser.add_argument(
        "--chart", type=Path, help="with --table: also draw the gains into this file"
    )
    args = parser.parse_args()
    bench = yaml.safe_load((HERE / "bench.yaml").read_text())
    lines = args.out / "bench.jsonl"
    if args.table:
        print(table(read(lines), args.table))
        if args.chart is not None:
            chart(read(lines), args.table, args.chart)
        return
    if args.data is None:
        parser.error("--data names the folder that holds the sets")
    runs = list(plan(bench, args))
    done = {(line["name"], line["steps"]) for line in read(lines)}
    args.out.mkdir(parents=True, exist_ok=True)
    write_digits(args.out / "digits")

    def work(run: Run) -> None:
        steps = args.steps or bench["shared"]["steps"]
        if (run.name, steps) in done:
            return
        line = train(run, bench, args.data.resolve(), args.out.resolve(), steps)
        with lines.open("a") as file:  # one write of one line
            file.write(json.dumps(line) + "\n")
        print(f"{run.name}: {line['choose']:.1f} / {line['report']:.1f}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, runs))


def plan(bench: dict[str, Any], args: argparse.Namespace) -> Iterator[Run]:
    """All runs asked for, seed by seed, so that an early table has every set."""
    methods = args.methods.split(",") if args.methods else list(bench["methods"])
    sets = args.sets.split(",") if args.sets else list(bench["sets"])
    # A method that is not in the table has gmix's own settings.
    rows = [(name, name, bench["methods"].get(name, {})) for name in methods]
    if args.tries:  # changes of the methods instead of the methods
        changes = {
            name: yaml.safe_load(text) for name, _, text in (t.partition("=") for t in args.tries)
        }
        rows = [
            (f"{row}:{name}", method, {**given, **change})
            for (row, method, given), (name, change) in product(rows, changes.items())
        ]
    which = {"few": slice(0, 1), "many": slice(1, 2), "both": slice(0, 2)}[args.labels]
    for seed, place in product(map(int, args.seeds.split(",")), range(2)[which]):
        for (row, method, given), name in product(rows, sets):
            yield Run(name, bench["sets"][name]["labels"][place], row, method, given, seed)


def train(run: Run, bench: dict[str, Any], data: Path, out: Path, steps: int) -> dict[str, Any]:
    """Train, go on, or only measure again; then score the model on both halves."""
    known, folder = bench["sets"][run.set], out / run.name
    where = [
        located(part, data, out) for part in (known["flags"], known["report"], known["choose"])
    ]
    flags = {**bench["shared"], **where[0], **where[1], "labels": run.labels, "steps": steps}
    flags |= {"method": run.method, "method_args": run.args, "seed": run.seed}
    gmix("train", **flags, out=folder, resume=folder.is_dir())
    scores = {}
    for half, part in zip(("report", "choose"), where[1:], strict=True):
        aside = folder / f"{half}.json"
        gmix("evaluate", model=folder, **judged_on(where[0], part), threads=1, out=aside)
        scores[half] = 100 * json.loads(aside.read_text())["miou"]
    result = json.loads((folder / "results.json").read_text())
    return {
        "name": run.name,
        "set": run.set,
        "labels": run.labels,
        "row": run.row,
        "seed": run.seed,
        "steps": steps,
        **{half: round(score, 2) for half, score in scores.items()},
        "minutes": result.get("minutes"),
        "image_passes": result.get("image_passes_per_step"),
        "args": run.args,
        "machine": f"{platform.machine()} {cpu()}, torch {torch.__version__}",
    }


def judged_on(flags: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The flags of `gmix evaluate` for a half: folders given anew need both, a part of the run's own list does not."""
    if "val_part" in part and "val_images" in flags:
        return {**part, **{name: flags[name] for name in ("val_images", "val_masks")}}
    return part


def located(flags: dict[str, Any], data: Path, out: Path) -> dict[str, Any]:
    """Flags whose paths lie in the folders of this machine."""

    def locate(name: str, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("DIGITS/"):
            return str(out / "digits" / value.removeprefix("DIGITS/"))
        inside = name in PATHS or (name == "classes" and isinstance(value, str))
        return str(data / value) if inside else value

    return {name: locate(name, value) for name, value in flags.items()}


def gmix(command: str, **flags: Any) -> None:
    """Run a command of gmix in a process of its own.

    Raises:
        RuntimeError: If it fails, with the end of what it said.
    """
    words = [sys.executable, "-m", "gmix", *words_of(command, **flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{(done.stdout + done.stderr)[-2000:]}")


def words_of(command: str, **flags: Any) -> list[str]:
    """A command of gmix as words of a command line."""
    words = [command]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not False:
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            words += [flag, text]
    return words


def write_digits(folder: Path) -> None:
    """The demo's scenes; `--labels` keeps some of their masks."""
    from gmix.demo import write_scenes
    from gmix.demo.scenes import Folders

    if not (folder / "done").exists():
        write_scenes(Folders.inside(folder), **DIGITS)
        (folder / "done").touch()


def cpu() -> str:
    """The processor, since a seed ends elsewhere on another."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def read(lines: Path) -> list[dict[str, Any]]:
    """The lines so far; the last may have been cut by a kill."""
    found = []
    for text in lines.read_text().splitlines() if lines.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


Cell = tuple[str, int]


def by_row(lines: list[dict[str, Any]], half: str) -> dict[str, dict[Cell, dict[int, float]]]:
    """Scores by row, then set and label count, then seed."""
    scores: dict[str, dict[Cell, dict[int, float]]] = {}
    for line in lines:
        cell = scores.setdefault(line["row"], {}).setdefault((line["set"], line["labels"]), {})
        cell[line["seed"]] = line[half]
    return scores


def gains(
    row: dict[Cell, dict[int, float]], base: dict[Cell, dict[int, float]]
) -> dict[Cell, list[float]]:
    """Differences to supervised training of the same set, label count and seed."""
    found = {
        cell: [value - base[cell][seed] for seed, value in seeds.items() if seed in base[cell]]
        for cell, seeds in row.items()
        if cell in base
    }
    return {cell: values for cell, values in found.items() if values}


def table(lines: list[dict[str, Any]], half: str) -> str:
    """mIoU per set, and what counts: mean gain over supervised training, worst gain, sets won.

    Won is a set and label count where no row has a higher mean.
    """
    scores = by_row(lines, half)
    cells = sorted({cell for row in scores.values() for cell in row})
    base = scores.get("supervised", {})
    best = {
        cell: max((mean(row[cell].values()), name) for name, row in scores.items() if cell in row)[
            1
        ]
        for cell in cells
    }
    head = [f"{name}, {labels}" for name, labels in cells]
    rows = [["", *head, "mean gain", "worst gain", "won"], ["---"] * (len(cells) + 4)]
    for name, row in scores.items():
        gained = [mean(values) for values in gains(row, base).values()]
        summary = ["", "", ""]
        if gained:
            won = sum(best[cell] == name for cell in row)
            summary = [f"{mean(gained):+.1f}", f"{min(gained):+.1f}", f"{won} of {len(row)}"]
        rows.append([name, *(spread(list(row.get(cell, {}).values())) for cell in cells), *summary])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def chart(lines: list[dict[str, Any]], half: str, path: Path) -> None:
    """Draw the points above supervised training per set, with standard errors."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    scores = by_row(lines, half)
    base = scores.pop("supervised")
    cells = sorted(base)
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for place, (name, row) in enumerate(scores.items()):
        found = gains(row, base)
        x = [
            cells.index(cell) + (place - len(scores) / 2 + 0.5) * 0.8 / len(scores)
            for cell in found
        ]
        errors = [stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0 for v in found.values()]
        axes.errorbar(x, [mean(v) for v in found.values()], errors, fmt="o", capsize=3, label=name)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xticks(range(len(cells)), [f"{name}\n{labels} masks" for name, labels in cells])
    axes.set_ylabel("mIoU points above supervised")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def spread(values: list[float]) -> str:
    """The mean, with its standard error where there are two values or more, and their number."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f} (1)"
    return f"{mean(values):.1f} ± {stdev(values) / len(values) ** 0.5:.1f} ({len(values)})"


if __name__ == "__main__":
    main()
