"""Make single mistakes in the code, one at a time, and count those that the tests find.

    python benchmarks/mutations.py --sample 72 --seed 0 --out before.jsonl
    python benchmarks/mutations.py --again before.jsonl --out after.jsonl   # the same mistakes, after tests changed

Each mistake is made in a copy of the repository. Then run the doctests of its file and the test files that mention most
of the file's names, until a test fails or `--seconds` of CPU are spent. Needs `os.fork`: torch is imported once.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("functional", "nn", "methods", "evaluation", "data", "runs")
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


class Mutation(NamedTuple):
    """Replace the text `old` between two byte offsets of a file with `new`."""

    path: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def fits(self, source: bytes) -> bool:
        """Whether the text is still there."""
        return source[self.start : self.end] == self.old.encode()

    def apply(self, source: bytes) -> bytes:
        """Return the source with the mistake in it."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def changed(node: ast.AST) -> ast.AST | None:
    """Return a node that computes something else, None if there is none for this kind."""
    match node:
        case ast.Compare(left, [op], right) if type(op) in SWAPS:
            return ast.Compare(left, [SWAPS[type(op)]()], right)  # type: ignore[list-item]
        case ast.BinOp(left, op, right) if type(op) in SWAPS:
            return ast.BinOp(left, SWAPS[type(op)](), right)  # type: ignore[arg-type]
        case ast.BoolOp(op, values):
            return ast.BoolOp(SWAPS[type(op)](), values)  # type: ignore[arg-type]
        case ast.UnaryOp(ast.Not(), value):
            return value
        case ast.Constant(bool(value)):
            return ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            return ast.Constant(value + 1)
        case ast.IfExp(test, one, other):
            return ast.IfExp(ast.UnaryOp(ast.Not(), test), one, other)
        case ast.Return(value) if value is not None:
            return ast.Return(ast.Constant(None))
    return None


def computed(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what is computed: no annotations, decorators, texts, errors, or blocks for type checkers."""
    checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    if checked or isinstance(node, ast.Raise | ast.JoinedStr):
        return
    yield node
    skipped = {"annotation", "returns", "decorator_list"}
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in skipped:
                yield from computed(child)


def mutations(path: Path) -> Iterator[Mutation]:
    """Every mistake that can be made in a file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in computed(ast.parse(source)):
        places = [(node, changed(node))]
        if isinstance(node, ast.If | ast.While):
            places.append((node.test, ast.UnaryOp(ast.Not(), node.test)))
        for place, new in places:
            if new is not None:
                start = starts[place.lineno - 1] + place.col_offset  # type: ignore[attr-defined]
                end = starts[place.end_lineno - 1] + place.end_col_offset  # type: ignore[attr-defined]
                text = ast.unparse(ast.fix_missing_locations(new))
                text = text if isinstance(place, ast.stmt) else f"({text})"
                name = path.relative_to(ROOT).as_posix()
                yield Mutation(
                    name,
                    place.lineno,
                    start,
                    end,
                    source[start:end].decode(),
                    text,  # type: ignore[attr-defined]
                )


def tests_of(path: str) -> list[str]:
    """The file for its doctests, the test file of its name, then those that mention most names."""
    tree = ast.parse((ROOT / path).read_bytes())
    names = {getattr(node, "name", None) or "_" for node in ast.walk(tree)}
    names = {name for name in names if not name.startswith("_")} | {Path(path).stem}
    module = path.removesuffix(".py").replace("/", ".")
    scores: Counter[str] = Counter()
    for file in (ROOT / "tests").rglob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        mentioned = len(names & set(re.findall(r"\w+", text))) + 2 * text.count(module)
        own = file.stem.endswith(Path(path).stem)
        if mentioned or own:
            scores[file.relative_to(ROOT).as_posix()] = mentioned + 1000 * own
    return [path, *(name for name, _ in scores.most_common())]


def cpu_seconds() -> float:
    used = os.times()
    return sum(used[:4])


class Budget:
    """Stop pytest after the first failure or when the CPU time is spent; keep the failed test."""

    def __init__(self, seconds: float) -> None:
        self.end = cpu_seconds() + seconds
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the name of a test that failed."""
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """Keep the name of a file that can no longer be imported."""
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_runtest_teardown(self, item: Any) -> None:
        """Stop when the time is spent."""
        if cpu_seconds() > self.end:
            item.session.shouldstop = "the time is spent"


def run(copy: Path, tests: list[str], seconds: float, skip: list[str]) -> tuple[str, str, float]:
    """Run tests in a fork: "killed", "survived" or "timeout", the failed test, and the CPU seconds."""
    read, write = os.pipe()
    before = cpu_seconds()
    child = os.fork()
    if child == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds * 2) + 30, int(seconds * 2) + 60))
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "benchmarks")]
        os.environ["PYTHONPATH"] = str(copy)
        sys.dont_write_bytecode = True
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        budget = Budget(seconds)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--doctest-modules"]
        options += ["-o", "addopts=", *(f"--deselect={name}" for name in skip)]
        status = pytest.main([*options, *tests], plugins=[budget])
        found = "survived" if status == 0 or not budget.failed else "killed"
        os.write(write, json.dumps([found, budget.failed]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    status, failed = json.loads(text) if text else ("timeout", "")
    return status, failed, cpu_seconds() - before


def judge(mutation: Mutation, copy: Path, seconds: float, files: int, sick: set[str]) -> Any:
    """Find out whether a test fails by this mistake; a test that fails without it is not asked again."""
    place = copy / mutation.path
    source, times = place.read_bytes(), place.stat()
    tests = tests_of(mutation.path)[:files]
    while True:
        place.write_bytes(mutation.apply(source))
        try:
            status, failed, used = run(copy, tests, seconds, sorted(sick))
        finally:
            place.write_bytes(source)
            os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
        known = failed in sick or "::" not in failed
        if known or run(copy, [failed], seconds, [])[0] != "killed":
            return {"status": status, "failed": failed, "seconds": round(used, 1), "tests": tests}
        sick.add(failed)


def main() -> None:
    """Draw the mistakes, or read them; judge each; print those that survived."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=72, help="how many, in equal parts of rooms")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, help="folders or files of gmix/")
    parser.add_argument("--seconds", type=float, default=60, help="CPU time for each")
    parser.add_argument("--files", type=int, default=8, help="files of tests for each")
    parser.add_argument("--again", type=Path, help="results whose mistakes are made again")
    parser.add_argument("--only", default="", help="with --again, those of this status")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.again:
        rows = [json.loads(line) for line in given.again.read_text().splitlines()]
        chosen = [Mutation(*row["mutation"]) for row in rows if given.only in row["status"]]
    else:
        draw, chosen = random.Random(given.seed), []
        for room in given.rooms:
            place = ROOT / "gmix" / room
            files = [place] if place.is_file() else sorted(place.rglob("*.py"))
            every = [mutation for file in files for mutation in mutations(file)]
            chosen += draw.sample(every, given.sample // len(given.rooms))
        draw.shuffle(chosen)

    import segmentation_models_pytorch  # noqa: F401  (imported once, for all forks)

    counts: Counter[str] = Counter()
    sick: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis", "shared")
        shutil.copytree(ROOT, copy, ignore=ignored)
        compileall.compile_dir(copy / "gmix", quiet=1)
        for mutation in chosen:
            if not mutation.fits((copy / mutation.path).read_bytes()):
                counts["changed since"] += 1
                continue
            row = judge(mutation, copy, given.seconds, given.files, sick)
            counts[row["status"]] += 1
            with given.out.open("a") as file:
                file.write(json.dumps({"mutation": mutation, **row}) + "\n")
            new = " ".join(mutation.new.split())
            found = row["failed"] or row["status"].upper()
            place = f"{mutation.path}:{mutation.line}"
            print(f"{place}: {mutation.old!r} -> {new!r}: {found} ({row['seconds']} s)", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
