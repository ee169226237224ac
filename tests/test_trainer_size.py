"""The trainer is read by people: its two functions stay on a screen each."""

import ast
from pathlib import Path

import pytest

TRAINING = Path(__file__).resolve().parents[1] / "gmix" / "training"


def function(file: str, name: str) -> ast.FunctionDef:
    tree = ast.parse((TRAINING / file).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(found) == 1
    return found[0]


def lines(first: ast.stmt, last: ast.stmt) -> int:
    assert last.end_lineno is not None
    return last.end_lineno - first.lineno + 1


def test_train_is_one_screen() -> None:
    train = function("train.py", "train")
    assert lines(train, train) < 70


@pytest.mark.parametrize(("file", "name"), [("fit.py", "fit"), ("train.py", "take_steps")])
def test_a_loop_is_one_screen_and_takes_few_arguments(file: str, name: str) -> None:
    loop = function(file, name)
    body = loop.body[1:]  # without its docstring
    assert lines(body[0], body[-1]) < 50
    assert len(loop.args.args) + len(loop.args.kwonlyargs) <= 9
