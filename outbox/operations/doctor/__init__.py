"""The doctor: examines the running system, and names settings that break a promise, each with its remedy.

Each examination reads settings, catalogs and statistics of a server, and no rows of the outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dramatiq
from django.db import Error, connections

from . import brokers, database, project
from .finding import Finding, Severity

__all__ = ["Finding", "Severity", "examine"]


def examine(alias: str) -> list[Finding]:
    """Return the findings about one database, the default broker and the project, the worst first.

    An area that cannot be examined is a finding too.

    Args:
        alias: the alias of the database.
    """
    broker = dramatiq.get_broker()
    areas: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("database", lambda: database.examine(connections[alias])),
        ("broker", lambda: brokers.examine(broker)),
        ("project", lambda: project.examine(alias, broker)),
    )
    found = [finding for area, run in areas for finding in _attempt(area, run)]
    return sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def _attempt(area: str, run: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from run()
    except (Error, OSError, brokers.redis_error()) as error:
        yield Finding.of("not-examined", f"the {area} could not be examined: {str(error).strip()}")
