"""Runnable experiments, one readable file each: `verim recipe run NAME`, or `python -m verim.recipes.<name> --help`.

A module here that defines `main` is a recipe; its name on the command line has hyphens, and its docstring's first
line says what it is.
"""

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path

from verim.errors import InputError


def recipes() -> dict[str, str]:
    """What each recipe is, by name. Reads the modules without running them."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")
    return found


def run_recipe(name: str, options: Sequence[str]) -> None:
    """Runs the recipe's `main` with its own command line options. Raises `InputError` for an unknown name."""
    if name not in recipes():
        raise InputError(f"unknown recipe {name!r}: expected one of {', '.join(recipes())}")
    importlib.import_module(f"verim.recipes.{name.replace('-', '_')}").main(list(options))
