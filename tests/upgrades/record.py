"""Record the rows, messages and statements of this release, to test the next release: `make record`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from example import services
from tests.conftest import ROOT


def main() -> None:
    """Record in a database of this process's own."""
    os.environ["OUTBOX_TEST_DATABASE_NAME"] = f"test_outbox_{uuid4().hex[:8]}"
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    with services.postgres() as url:
        os.environ["DATABASE_URL"] = url
        import django

        django.setup()
        from django.db import connection, connections

        connection.creation.create_test_db(verbosity=0)
        try:
            record()
        finally:
            connections.close_all()
            connection.creation.destroy_test_db("postgres", verbosity=0)


def record() -> None:
    """Publish, relay and work, and save the rows, messages, reads, outcomes and statements."""
    import dramatiq

    from tests.support.data_flow import flush, relay_all

    from . import recordings
    from .handlers import declared, publish_all
    from .reading import reads_of
    from .running import messages_sent, outcomes, work_all

    recordings.save("state", _state())
    with declared(), _unprepared(), _listening() as statements:
        publish_all()
        recordings.save_sql("rows", [one for one, _raw in statements if "INTO outbox_event " in one])
        relay_all()
        messages = messages_sent()
        _return_to_pending(redeliveries=1)
        relay_all()
        messages["upgrade_event redelivered"] = messages_sent()["upgrade_event"]
        recordings.save("messages", messages)
        recordings.save("reads", {name: reads_of(body) for name, body in messages.items()})
        dramatiq.get_broker().flush_all()
        _return_to_pending(redeliveries=0)
        work_all()
        recordings.save("outcomes", outcomes())
        _operate()
        flush()
        _save_statements(statements)


def _state() -> dict[str, Any]:
    from importlib.metadata import version

    from django.db.migrations.recorder import MigrationRecorder

    from outbox.versions import NEWEST
    from relay.claimed_delivery import ClaimedDelivery

    applied = MigrationRecorder.Migration.objects.filter(app="outbox").values_list("name", flat=True)
    return {
        "release": version("django-dramatiq-outbox"),
        "migration": max(applied),
        "claimed": list(ClaimedDelivery._fields),
        "newest_version": NEWEST,
    }


def _return_to_pending(*, redeliveries: int) -> None:
    from outbox.models import Delivery

    Delivery.objects.filter(state="dispatched").update(state="pending", redeliveries=redeliveries)


def _operate() -> None:
    """Run the statements of operators and of maintenance."""
    from django.core.management import call_command

    from outbox.models import Delivery, Event

    null = open(os.devnull, "w")  # noqa: SIM115  # lives as long as the process
    call_command("outbox_pause", "upgrade_event", stdout=null)
    call_command("outbox_resume", "upgrade_event", stdout=null)
    call_command("outbox_retry", "--all", stdout=null)
    call_command("outbox_status", stdout=null)
    call_command("outbox_stats", stdout=null)
    call_command("outbox_replay", "--topic", "upgrade.event", "--since", "1h", stdout=null)
    Event.objects.first().cancel()
    Delivery.objects.all().discard("enough")
    call_command("outbox_prune", stdout=null)


def _unprepared() -> AbstractContextManager[Any]:
    """Record whole claims, as no test could run the name of a prepared one."""
    from relay.claim.prepared import PreparedStatements

    return patch.object(PreparedStatements, "_run_prepared", return_value=False)


@contextmanager
def _listening() -> Iterator[list[tuple[str, str]]]:
    """Collect each statement of every connection, with its parameters and with its placeholders."""
    from django.db import connection, connections
    from django.db.backends.signals import connection_created

    statements: list[tuple[str, str]] = []

    def wrap(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if not many:
            statements.append((context["connection"].ops.compose_sql(sql, params), sql))
        return execute(sql, params, many, context)

    def listen(connection: Any, **kwargs: Any) -> None:
        if wrap not in connection.execute_wrappers:
            connection.execute_wrappers.append(wrap)

    connections.close_all()
    connection_created.connect(listen)
    try:
        yield statements
    finally:
        connection_created.disconnect(listen)
        connection.execute_wrappers.remove(wrap)


def _save_statements(statements: list[tuple[str, str]]) -> None:
    from . import recordings

    by_form: dict[str, str] = {}
    for one, raw in statements:
        if "outbox_" in raw and raw.split()[0] in _KINDS:
            # The shortest statement of each form: long ones contain tracebacks.
            by_form[raw] = min(by_form.get(raw, one), one, key=len)
    recordings.save_sql("statements", sorted(map(_without_machine, by_form.values())))
    # Not the claim of a batch: a batch that is redelivered runs one by one, with other effects.
    claims = [one for raw, one in by_form.items() if "SKIP LOCKED" in raw and "AND waits_for = '' AND" in raw]
    recordings.save_sql("claims", sorted(claims, key=len))
    # With its placeholders, since the tests fill in their own deliveries.
    recordings.save_sql("confirm", [raw for raw in by_form if "SKIP LOCKED" in raw and "JOIN outcome" in raw])


def _without_machine(text: str) -> str:
    """Return a statement without the host's name, and without the paths in the tracebacks of retries."""
    for path in (str(ROOT), sys.prefix, sys.base_prefix):
        text = text.replace(path, "")
    return text.replace(socket.gethostname(), "host")


_KINDS = {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}

if __name__ == "__main__":
    main()
