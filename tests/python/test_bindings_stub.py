"""_core.pyi is what the extension module holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metal_sdpa
from metal_sdpa import _core
from parameter_table import parameter_texts

STUB = Path(metal_sdpa.__file__).with_name("_core.pyi")


def signatures(tree: ast.Module) -> list[str]:
    """Every function and class with its arguments, without docstrings and imports."""
    found = []
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.Module | ast.ClassDef):
            continue
        name = getattr(scope, "name", "")
        found += [f"{name}: {ast.unparse(base)}" for base in getattr(scope, "bases", [])]
        for node in scope.body:
            if isinstance(node, ast.FunctionDef):
                returns = ast.unparse(node.returns) if node.returns else ""
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                arguments = ast.unparse(node.args)
                found.append(f"{name}.{node.name}({arguments}) -> {returns} {marks}")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                found.append(f"{name}: {ast.unparse(node)}")
    return sorted(found)


def test_the_stub_is_what_stubgen_makes(tmp_path: Path) -> None:
    pytest.importorskip("nanobind")
    made = tmp_path / "_core.pyi"
    patterns = tmp_path / "stub.pat"
    patterns.write_text(parameter_texts().stub_patterns())
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "_core"]
    command += ["-i", str(Path(_core.__file__).parent), "-p", str(patterns), "-o", str(made)]
    subprocess.run(command, check=True)
    assert signatures(ast.parse(STUB.read_text())) == signatures(ast.parse(made.read_text()))


def test_every_name_of_the_module_is_in_the_stub() -> None:
    tree = ast.parse(STUB.read_text())
    named = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    public = {name for name in vars(_core) if not name.startswith("_")}
    assert public == named


def test_every_public_name_has_a_docstring() -> None:
    missing = [
        name
        for name in metal_sdpa.__all__
        if name != "__version__" and not getattr(metal_sdpa, name).__doc__
    ]
    assert not missing


def test_the_package_is_typed() -> None:
    assert STUB.with_name("py.typed").exists()
