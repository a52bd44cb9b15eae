"""Check the length of modules and functions: `python -m tests.support.limits`, as `make lint` does."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_MODULE_LINES = 250
MAX_FUNCTION_LINES = 45

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("outbox", "relay")


def too_long(path: Path) -> Iterator[str]:
    """Yield a message if a module is too long, and for each function in it that is."""
    source = path.read_text()
    lines = len(source.splitlines())
    if lines > MAX_MODULE_LINES:
        yield f"{path}:1: the module has {lines} lines, and the limit is {MAX_MODULE_LINES}; split it"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = code_lines(node)
        if lines > MAX_FUNCTION_LINES:
            yield (
                f"{path}:{node.lineno}: the function {node.name!r} has {lines} lines without its docstring, "
                f"and the limit is {MAX_FUNCTION_LINES}; split it"
            )


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, without its docstring: arguments may need long descriptions."""
    first = function.body[0]
    docstring = first if ast.get_docstring(function) is not None else None
    return _height(function) - (_height(docstring) if docstring else 0)


def _height(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def checked_modules() -> list[Path]:
    """Return the modules with limits: all of the packages but migrations."""
    modules = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(path for path in modules if "migrations" not in path.parts)


if __name__ == "__main__":
    problems = [problem for path in checked_modules() for problem in too_long(path)]
    print("\n".join(problems) or "no module and no function is too long")  # noqa: T201 - the result
    sys.exit(bool(problems))
