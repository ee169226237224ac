"""Docstrings of functions begin with a verb; ruff checks the rest of their style."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Words that begin a noun phrase or a clause. Ruff's D401 knows only some of them.
NON_VERBS = {
    *("What", "Which", "How", "Whether", "Where", "Why", "As", "After", "Before"),
    *("The", "A", "An", "Of", "All", "One", "Those", "Each", "Every", "This", "It", "Its"),
}
SECTIONS = ("Args:", "Attributes:", "Raises:")


def not_verbs(source: str) -> list[str]:
    """List functions whose docstring begins with another word than a verb."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if words and words[0].strip("`,:;") in NON_VERBS:
                found.append(f"line {node.lineno}: {node.name}: {' '.join(words[:6])}")
    return found


def sloppy_entries(source: str) -> list[str]:
    """List entries of docstring sections that lack a capital letter or a full stop."""
    found = []
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in ast.walk(ast.parse(source)):
        section = ""
        entries: list[str] = []
        for line in (ast.get_docstring(node) or "").splitlines() if isinstance(node, kinds) else []:
            if line and not line.startswith(" "):
                section = line
            elif section in SECTIONS and line.startswith("     "):
                entries[-1] += line
            elif section in SECTIONS and line:
                entries.append(line.strip())
        for entry in entries:
            text = entry.partition(": ")[2].strip()
            first = text.split(" ")[0]
            plain = first.isalpha() and first.islower()
            if not text or plain or not text.endswith((".", "!", "?")):
                found.append(f"line {node.lineno}: {node.name}: {entry[:60]}")
    return found


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "gmix").rglob("*.py")),
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_docstrings_begin_with_a_verb_and_their_entries_are_sentences(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not_verbs(source) == []
    assert sloppy_entries(source) == []


@pytest.mark.parametrize("word", ["What", "`The`", "Whether,", "All"])
def test_another_word_is_found(word: str) -> None:
    source = f'class C:\n    async def f(self):\n        """{word} it gives."""\n'
    assert not_verbs(source) == [f"line 2: f: {word} it gives."]
    assert not_verbs(source.replace(word, "Return what")) == []


@pytest.mark.parametrize("entry", ["x: a number.", "x: A number", "x: A\n            number"])
def test_a_sloppy_entry_is_found(entry: str) -> None:
    source = f'def f(x):\n    """Return `x`.\n\n    Args:\n        {entry}\n    """\n'
    assert len(sloppy_entries(source)) == 1
    assert sloppy_entries(source.replace(entry, "x: A\n            number.")) == []
