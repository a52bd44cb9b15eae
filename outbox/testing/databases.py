"""The databases that a test may use."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections
from django.test.testcases import DatabaseOperationForbidden  # type: ignore[attr-defined]  # not in the stubs

from outbox.conf import get_settings


def databases_of_test(using: str | None = None) -> Sequence[str]:
    """Return the databases with an outbox that the test may use; it cannot have published to others.

    Raises:
        AssertionError: Django's own, if the test may use none of them.
    """
    if using is not None:
        return (using,)
    served = get_settings().databases
    allowed = [database for database in served if _is_allowed(database)]
    if not allowed:
        connections[served[0]].ensure_connection()
    return allowed


def _is_allowed(database: str) -> bool:
    try:
        connections[database].ensure_connection()
    except DatabaseOperationForbidden:
        return False
    return True
