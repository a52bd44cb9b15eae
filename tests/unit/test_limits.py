"""`make lint` reports modules and functions that are too long."""

from __future__ import annotations

from pathlib import Path

from tests.support.limits import MAX_FUNCTION_LINES, MAX_MODULE_LINES, checked_modules, too_long


def function_of(lines: int, docstring: str = "") -> str:
    body = [f'    """{docstring}"""'] if docstring else []
    return "\n".join(["def work():", *body, *["    pass"] * (lines - 1), ""])


def test_a_long_function_is_reported_with_file_line_length_and_limit(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("\n" + function_of(MAX_FUNCTION_LINES + 1))
    (problem,) = too_long(module)
    assert problem == (
        f"{module}:2: the function 'work' has {MAX_FUNCTION_LINES + 1} lines without its docstring, "
        f"and the limit is {MAX_FUNCTION_LINES}; split it"
    )


def test_a_long_module_is_reported_with_file_length_and_limit(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("\n" * (MAX_MODULE_LINES + 1))
    (problem,) = too_long(module)
    assert problem == (
        f"{module}:1: the module has {MAX_MODULE_LINES + 1} lines, "
        f"and the limit is {MAX_MODULE_LINES}; split it"
    )


def test_lines_within_the_limits_and_docstrings_are_not_reported(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(function_of(MAX_FUNCTION_LINES, docstring="One line.\n\n    Another line.\n    "))
    assert list(too_long(module)) == []


def test_the_modules_of_both_packages_are_checked_without_migrations() -> None:
    checked = {str(path) for path in checked_modules()}
    assert {"outbox/conf.py", "relay/publishers/redis.py"} <= checked
    assert not [path for path in checked if "migrations" in path]
