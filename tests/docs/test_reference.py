"""The reference lists what the code has: no more, and no less."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandParser, load_command_class

import outbox
from outbox import ReceivedEvent, errors, models
from outbox.conf import OutboxSettings, _build
from tests.conftest import ROOT

REFERENCE = ROOT / "docs" / "reference"
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(?:python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What each command has from Django.
DJANGO_OPTIONS = {
    "--help",
    "--version",
    "--verbosity",
    "--settings",
    "--pythonpath",
    "--traceback",
    "--no-color",
    "--force-color",
    "--skip-checks",
}


def section(text: str, title: str) -> str:
    """Return what stands below a heading, up to the next one of any level."""
    # A comment in an example looks like a heading.
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no heading {title!r}"
    return found[1]


def first_cells(text: str) -> list[str]:
    """Return the code in the first cell of each row of the tables in a text; headers have none."""
    rows = re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def page(name: str) -> str:
    """Return a page of the reference."""
    return (REFERENCE / f"{name}.md").read_text()


def parameters(function: Callable[..., Any]) -> set[str]:
    """Return the names of a function's parameters."""
    return set(inspect.signature(function).parameters)


# ---------------------------------------------------------------- settings and checks


def test_the_settings_are_those_of_the_code_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^|]+)` \|", page("settings"), re.MULTILINE)
    assert [key.lower() for key, _default in rows] == list(OutboxSettings.__dataclass_fields__)
    defaults = {key: eval(default, {"timedelta": timedelta}) for key, default in rows}
    assert _build(defaults) == OutboxSettings()


def test_the_checks_are_those_of_the_code() -> None:
    source = (ROOT / "outbox" / "checks.py").read_text()
    raised = re.findall(r'id="(outbox\.[EW]\d{3})"', source)
    listed = re.findall(r"^(outbox\.[EW]\d{3})  ", source, re.MULTILINE)
    assert first_cells(page("checks")).count("outbox.E001") == 1
    documented = [name for name in first_cells(page("checks")) if name.startswith("outbox.")]
    assert documented == sorted(documented) == sorted(set(raised)) == sorted(listed)


# ---------------------------------------------------------------- commands


def commands() -> list[str]:
    """Return the names of the commands."""
    folder = ROOT / "outbox" / "management" / "commands"
    return sorted(path.stem for path in folder.glob("[a-z]*.py"))


def options_of(command: str) -> set[str]:
    """Return the options of a command beside Django's own, and the names of its arguments."""
    parser: CommandParser = load_command_class("outbox", command).create_parser("manage.py", command)
    return {
        action.option_strings[-1] if action.option_strings else action.dest for action in parser._actions
    } - DJANGO_OPTIONS


def test_every_command_has_its_section() -> None:
    titles = re.findall(r"^## `(\w+)`$", page("commands"), re.MULTILINE)
    assert sorted(titles) == commands()


@pytest.mark.parametrize("command", commands())
def test_the_options_of_a_command_are_those_of_its_help(command: str) -> None:
    assert set(first_cells(section(page("commands"), f"`{command}`"))) == options_of(command)


# ---------------------------------------------------------------- the interface


def test_the_arguments_of_publish_are_documented() -> None:
    table = section(page("publishing"), "`publish`")
    assert set(first_cells(table)) == parameters(outbox.publish)
    assert set(outbox.EventData._fields) == parameters(outbox.publish) - {"using"}


def test_the_arguments_of_the_decorators_are_documented() -> None:
    text = page("handlers")
    of_handler = first_cells(section(text, "`@handler`"))
    of_event = [name for name in dir(ReceivedEvent) if not name.startswith("_") and name != "from_message"]
    assert set(of_handler) == parameters(outbox.handler) | set(of_event)
    assert set(first_cells(section(text, "`@receiver`"))) == parameters(outbox.receiver)


def test_every_error_is_documented() -> None:
    names = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.OutboxError)
    }
    text = section(page("publishing"), "Errors")
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_every_public_name_is_documented_somewhere() -> None:
    text = "".join(path.read_text() for path in REFERENCE.glob("*.md"))
    words = set(re.findall(r"\w+", text))
    assert [name for name in outbox.__all__ if name not in words] == []


def test_the_columns_are_those_of_the_models() -> None:
    text = page("tables")
    tables = [getattr(models, name) for name in models.__all__ if hasattr(getattr(models, name), "_meta")]
    titles = set(re.findall(r"^## `(\w+)`$", text, re.MULTILINE))
    assert titles == {model._meta.db_table for model in tables}
    for model in tables:
        table = section(text, f"`{model._meta.db_table}`")
        assert set(first_cells(table)) == {
            field.name for field in model._meta.get_fields(include_hidden=False) if field.concrete
        }, model


def test_the_words_for_encoded_values_are_those_of_the_decoder() -> None:
    from outbox.serialization.decoding import _BY_TAG

    text = section(page("handlers"), "How a send is stored")
    kinds = first_cells(text[text.index("| `$` |") :])[1:]
    assert set(kinds) == set(_BY_TAG) | {"field"}


# ---------------------------------------------------------------- examples and promises


def examples() -> Iterable[Any]:
    """Return the Python blocks of all documents, each with its place."""
    for document in DOCUMENTS:
        text = document.read_text()
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield pytest.param(found[1], id=f"{document.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("code", list(examples()))
def test_every_example_is_python(code: str) -> None:
    if code.lstrip().startswith(">>>"):
        pytest.skip("executed by the test of the tutorial")
    if re.fullmatch(r"\w+\(.*\)\n", code) and "*" in code:
        code = f"def {code.strip()}: ..."  # a signature
    compile(code, "example", "exec", dont_inherit=True)


def promises() -> list[Any]:
    """Return the tests that the README links, each with its file."""
    found = re.findall(r"\[`(test_\w+)`\]\(([\w/.]+)\)", (ROOT / "README.md").read_text())
    return [pytest.param(path, name, id=name) for name, path in found]


@pytest.mark.parametrize(("path", "name"), promises())
def test_every_promise_has_its_test(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_every_row_of_promises_names_a_test() -> None:
    rows = re.findall(r"^\| .* \|$", section((ROOT / "README.md").read_text(), "Promised"), re.MULTILINE)
    assert [row for row in rows[2:] if "](tests/" not in row] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_a_path_of_some_machine(document: Path) -> None:
    # Where an example has to name one, it is a place that a package manager would choose.
    found = re.findall(r"(?:(?<=[\s`\"'(=])|^)/(?:home|root|tmp|work|Users)/\S*", document.read_text())
    assert found == []
