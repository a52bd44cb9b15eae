"""The reference lists exactly the names that the code has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandParser, load_command_class
from django.dispatch import Signal

import outbox
from outbox import ReceivedEvent, brokers, errors, models, testing
from outbox.conf import OutboxSettings, _build
from outbox.contrib import opentelemetry, prometheus, sentry, tasks
from outbox.observability import telemetry
from outbox.operations import doctor
from outbox.operations.doctor.finding import FINDINGS
from outbox.operations.health_report import ProblemKind
from tests.conftest import ROOT

REFERENCE = ROOT / "docs" / "reference"
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(?:python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# The options of every Django command.
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
    """Return the text below a heading, up to the next heading of any level."""
    # A comment in an example would look like a heading.
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no heading {title!r}"
    return found[1]


def first_cells(text: str) -> list[str]:
    """Return the code in the first cell of each table row; headers contain no code."""
    rows = re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def page(name: str) -> str:
    """Return a page of the reference."""
    return (REFERENCE / f"{name}.md").read_text()


def parameters(function: Callable[..., Any]) -> set[str]:
    """Return the names of a function's parameters."""
    return set(inspect.signature(function).parameters)


# ---------------------------------------------------------------- settings and checks


def test_the_settings_page_lists_all_settings_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^|]+)` \|", page("settings"), re.MULTILINE)
    assert [key.lower() for key, _default in rows] == list(OutboxSettings.__dataclass_fields__)
    defaults = {key: eval(default, {"timedelta": timedelta}) for key, default in rows}
    assert _build(defaults) == OutboxSettings()


def test_the_checks_page_lists_all_checks() -> None:
    modules = ("checks.py", "contrib/tasks/configuration.py")
    source = "".join((ROOT / "outbox" / module).read_text() for module in modules)
    raised = re.findall(r'id="(outbox\.[EIW]\d{3})"', source)
    listed = re.findall(r"^(outbox\.[EIW]\d{3})  ", source, re.MULTILINE)
    assert first_cells(page("checks")).count("outbox.E001") == 1
    documented = [name for name in first_cells(page("checks")) if name.startswith("outbox.")]
    assert documented == sorted(documented) == sorted(set(raised)) == sorted(listed)


# ---------------------------------------------------------------- commands


def commands() -> list[str]:
    """Return the names of the commands."""
    folder = ROOT / "outbox" / "management" / "commands"
    return sorted(path.stem for path in folder.glob("[a-z]*.py"))


def options_of(command: str) -> set[str]:
    """Return a command's options, without Django's, and the names of its arguments."""
    parser: CommandParser = load_command_class("outbox", command).create_parser("manage.py", command)
    return {
        action.option_strings[-1] if action.option_strings else action.dest for action in parser._actions
    } - DJANGO_OPTIONS


def test_every_command_has_a_section() -> None:
    titles = re.findall(r"^## `(\w+)`$", page("commands"), re.MULTILINE)
    assert sorted(titles) == commands()


@pytest.mark.parametrize("command", commands())
def test_the_section_of_a_command_lists_all_its_options(command: str) -> None:
    assert set(first_cells(section(page("commands"), f"`{command}`"))) == options_of(command)


# ---------------------------------------------------------------- the interface


def test_all_arguments_of_publish_are_documented() -> None:
    table = section(page("publishing"), "`publish`")
    assert set(first_cells(table)) == parameters(outbox.publish)
    assert set(outbox.EventData._fields) == parameters(outbox.publish) - {"using"}


def test_all_arguments_of_the_decorators_are_documented() -> None:
    text = page("handlers")
    handler_cells = first_cells(section(text, "`@handler`"))
    event_attributes = [
        name for name in dir(ReceivedEvent) if not name.startswith("_") and name != "from_message"
    ]
    assert set(handler_cells) == parameters(outbox.handler) | set(event_attributes)
    assert set(first_cells(section(text, "`@receiver`"))) == parameters(outbox.receiver)


def test_every_error_is_documented() -> None:
    names = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.OutboxError)
    }
    text = section(page("publishing"), "Errors")
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(path.read_text() for path in REFERENCE.glob("*.md"))
    words = set(re.findall(r"\w+", text))
    assert [name for name in outbox.__all__ if name not in words] == []


def test_the_api_page_lists_all_public_objects() -> None:
    listed = re.findall(r"^- `([\w.]+)`$", page("api"), re.MULTILINE)
    error_names = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.OutboxError)
    }
    signals = {name for name, found in vars(telemetry).items() if isinstance(found, Signal)}
    public = {
        "outbox": set(outbox.__all__),
        "outbox.brokers": set(brokers.__all__),
        "outbox.contrib.health_check": {"OutboxHealthCheck"},
        "outbox.contrib.opentelemetry": set(opentelemetry.__all__),
        "outbox.contrib.prometheus": set(prometheus.__all__),
        "outbox.contrib.sentry": set(sentry.__all__),
        "outbox.contrib.tasks": set(tasks.__all__),
        "outbox.endpoints": {"live", "ready"},
        "outbox.errors": error_names,
        "outbox.http": {"OutboxContextMiddleware"},
        "outbox.observability.telemetry": signals,
        "outbox.operations.doctor": set(doctor.__all__),
        "outbox.operations.health": {"get_health"},
        "outbox.testing": set(testing.__all__),
    }
    assert sorted(listed) == sorted(f"{module}.{name}" for module in public for name in public[module])


def test_the_tables_page_lists_all_columns() -> None:
    text = page("tables")
    tables = [getattr(models, name) for name in models.__all__ if hasattr(getattr(models, name), "_meta")]
    titles = set(re.findall(r"^## `(\w+)`$", text, re.MULTILINE))
    assert titles == {model._meta.db_table for model in tables}
    for model in tables:
        table = section(text, f"`{model._meta.db_table}`")
        assert set(first_cells(table)) == {
            field.name for field in model._meta.get_fields(include_hidden=False) if field.concrete
        }, model


def test_all_kinds_of_encoded_values_are_documented() -> None:
    from outbox.serialization.decoding import _BY_TAG

    text = section(page("handlers"), "How a send is stored")
    kinds = first_cells(text[text.index("| `$` |") :])[1:]
    assert set(kinds) == set(_BY_TAG) | {"field"}


# ---------------------------------------------------------------- examples and promises


def examples() -> Iterable[Any]:
    """Return the Python blocks of all documents, each with its file and line."""
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
    """Return the tests that the documents link, each with its file."""
    linked = {
        (document.parent / path, name)
        for document in DOCUMENTS
        for name, path in re.findall(r"\[`(test_\w+)`\]\(([\w/.-]+)\)", document.read_text())
    }
    return [pytest.param(path, name, id=name) for path, name in sorted(linked)]


@pytest.mark.parametrize(("path", "name"), promises())
def test_every_linked_test_exists(path: Path, name: str) -> None:
    assert re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE)


def test_every_promise_links_a_test() -> None:
    rows = re.findall(r"^\| .* \|$", section(page("guarantees"), "Promised"), re.MULTILINE)
    promised = rows[2:]
    assert promised
    assert [row for row in promised if "](../../tests/" not in row] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_a_path_of_a_developers_machine(document: Path) -> None:
    # Examples name paths that a package manager would choose.
    found = re.findall(r"(?:(?<=[\s`\"'(=])|^)/(?:home|root|tmp|work|Users)/\S*", document.read_text())
    assert found == []


def test_the_page_about_the_doctor_lists_all_findings_with_their_remedies() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| .+? \| ([^|]+) \|$", page("doctor"), re.MULTILINE)
    found = {name: (kind.severity.value, kind.remedy) for name, kind in FINDINGS.items()}
    assert {name: (severity, remedy) for name, severity, remedy in rows} == found


def test_the_runbook_has_a_section_for_each_kind_of_problem_the_worst_first() -> None:
    text = (ROOT / "docs" / "how-to" / "runbook.md").read_text()
    assert re.findall(r"^## .+\n\n`(\w+)`\n\n> ", text, re.MULTILINE) == [kind.value for kind in ProblemKind]
