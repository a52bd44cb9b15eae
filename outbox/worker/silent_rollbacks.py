"""Transactions that cannot commit although their handler returned.

Django's `Atomic.__exit__` rolls a transaction back without an error if a statement failed and the handler
caught the error. PostgreSQL answers the COMMIT of an aborted transaction with a rollback, again without an
error.
"""

from __future__ import annotations

from enum import IntEnum
from types import TracebackType
from typing import Any

from django.db.transaction import Atomic

from outbox.errors import TransactionRolledBack

_CATCH_OUTSIDE = "let the error leave the handler, or catch it outside a nested transaction.atomic()"


class ServerState(IntEnum):
    """The state of a transaction on the server; the numbers of libpq."""

    NONE = 0
    OPEN = 2
    ABORTED = 3
    UNKNOWN = 4


class TransactionGuard:
    """Guards the body of an atomic block: raises an error at its end if the block cannot commit.

    Args:
        connection: the connection, inside the block.
        handler: the name of the handler, for the error.
    """

    def __init__(self, connection: Any, handler: str) -> None:
        self._connection = connection
        self._handler = handler
        self._block: Atomic = connection.atomic_blocks[-1]
        # Django never resets this attribute.
        self._earlier_error: BaseException | None = connection.rollback_exc
        self._state = _server_state(connection)

    def __enter__(self) -> None:
        """Begin to guard."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Check that the block can commit.

        Raises:
            TransactionRolledBack: if it cannot, and there is no other error.
        """
        refusal = None
        if error is None and (reason := self._reason()):
            refusal = error = TransactionRolledBack(f"the transaction of handler {self._handler!r} {reason}")
        self._end_open_blocks(error)
        if refusal is not None:
            raise refusal from self._cause()

    def _reason(self) -> str:
        """Return the reason why the block cannot commit, and the remedy; an empty string if it can."""
        connection, cause = self._connection, self._cause()
        if connection.closed_in_transaction:
            return "was rolled back, as the handler closed its connection; leave the connection open"
        if connection.needs_rollback and cause is not None:
            return f"was marked for rollback by {type(cause).__name__}: {cause}; {_CATCH_OUTSIDE}"
        if connection.needs_rollback:
            return (
                "was marked for rollback by transaction.set_rollback(True), or by an error that the handler "
                "caught outside atomic(savepoint=False); raise an error to roll back"
            )
        state = _server_state(connection)
        if state == ServerState.ABORTED:
            return f"was aborted by a failed statement ({_last_message(connection)}); {_CATCH_OUTSIDE}"
        if state == ServerState.NONE != self._state:
            return "has ended, as the handler ended it with COMMIT or ROLLBACK; leave the end to the outbox"
        if self._block not in connection.atomic_blocks[-1:]:
            return "cannot end, as a transaction.atomic() of the handler is still open; use it in a with"
        if connection.atomic_blocks[0] is self._block and not connection.commit_on_exit:
            return "does not commit, as AUTOCOMMIT is off in DATABASES; turn it on"
        return ""

    def _cause(self) -> BaseException | None:
        error: BaseException | None = self._connection.rollback_exc
        return None if error is self._earlier_error else error

    def _end_open_blocks(self, error: BaseException | None) -> None:
        """Leave the blocks that the handler left open, as the thread's next run would be inside them."""
        blocks = self._connection.atomic_blocks
        while self._block in blocks and blocks[-1] is not self._block:
            blocks[-1].__exit__(type(error), error, None)


def _server_state(connection: Any) -> int:
    """Return the state of the transaction on the server, without a query."""
    driver = connection.connection
    if driver is None:
        return ServerState.UNKNOWN
    if connection.vendor == "sqlite":
        return ServerState.OPEN if driver.in_transaction else ServerState.NONE
    return int(driver.info.transaction_status)


def _last_message(connection: Any) -> str:
    """Return the last error that libpq keeps, on one line."""
    pgconn = getattr(connection.connection, "pgconn", None)
    message: bytes = getattr(pgconn, "error_message", b"")
    return " ".join(message.decode(errors="replace").split()) or "its error is unknown"
