"""The public names: there, documented, typed, and cheap to list."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_origin

import pytest

import gmix


@pytest.mark.parametrize("name", gmix.__all__)
def test_every_exported_name_exists_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(gmix, name))


@pytest.mark.parametrize(
    "module", ["compare", "data", "demo", "evaluation", "functional", "methods", "report", "splits"]
)
def test_every_name_a_module_lists_exists_and_is_documented(module: str) -> None:
    found = import_module(f"gmix.{module}")
    assert found.__all__ and len(set(found.__all__)) == len(found.__all__)
    for name in found.__all__:
        value = getattr(found, name)
        # Python 3.10 takes an alias such as Predict for a class.
        if get_origin(value) is None and (inspect.isclass(value) or inspect.isfunction(value)):
            assert inspect.getdoc(value), name


def test_what_type_checkers_see_is_what_is_there() -> None:
    tree = ast.parse(Path(gmix.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name: node.module for node in block.body for a in node.names}  # type: ignore[attr-defined]
    assert sorted(seen) == sorted(gmix.__all__)
    for name, module in seen.items():
        if module != "gmix":
            assert getattr(gmix, name) is getattr(sys.modules[module], name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        gmix.nonsense  # noqa: B018


def test_import_gmix_waits_for_torch_until_a_part_is_used() -> None:
    code = "import gmix, sys; assert 'torch' not in sys.modules; gmix.SoftDecoupler; import torch"
    subprocess.run([sys.executable, "-c", code], check=True)
