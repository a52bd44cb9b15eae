"""Kinds of database errors: an outage, or a conflict with another transaction."""

from __future__ import annotations

from django.db import Error, InterfaceError, OperationalError

# psycopg does not count these errors as operational: read_only_sql_transaction (a hot standby, or a server
# after a failover), idle_in_transaction_session_timeout and transaction_timeout (the session has ended).
_OUTAGES = frozenset({"25006", "25P03", "25P04"})

# serialization_failure and deadlock_detected: the transaction may succeed at once when it is repeated.
_CONFLICTS = frozenset({"40001", "40P01"})


def is_outage(error: BaseException) -> bool:
    """Return whether the database cannot be used now, so that the work waits and is tried again."""
    return isinstance(error, OperationalError | InterfaceError) or _sqlstate(error) in _OUTAGES


def is_conflict(error: BaseException) -> bool:
    """Return whether a transaction failed because of a concurrent one."""
    return isinstance(error, Error) and _sqlstate(error) in _CONFLICTS


def _sqlstate(error: BaseException) -> str:
    return getattr(error.__cause__, "sqlstate", None) or ""
