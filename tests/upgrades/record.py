"""Record what this release writes and reads, for the next one to be tested with: `make record`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from example import services


def main() -> None:
    """Run a database of our own through all that is recorded."""
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
    """Publish, relay and work, and write down what that took."""
    import dramatiq

    from tests.helpers import flush, relay_all
    from tests.upgrades import recordings
    from tests.upgrades.handlers import declared, publish_all
    from tests.upgrades.reading import reads_of
    from tests.upgrades.running import messages_sent, outcomes, work_all

    recordings.save("state", _state())
    with declared(), _listening() as statements:
        publish_all()
        recordings.save_sql("rows", [one for one, _raw in statements if "INTO outbox_event " in one])
        relay_all()
        messages = messages_sent()
        _send_again(redeliveries=1)
        relay_all()
        messages["upgrade_event again"] = messages_sent()["upgrade_event"]
        recordings.save("messages", messages)
        recordings.save("reads", {name: reads_of(body) for name, body in messages.items()})
        dramatiq.get_broker().flush_all()
        _send_again(redeliveries=0)
        work_all()
        recordings.save("outcomes", outcomes())
        _operate()
        flush()
        _save_statements(statements)


def _state() -> dict[str, Any]:
    from importlib.metadata import version

    from django.db.migrations.recorder import MigrationRecorder

    from outbox.versions import NEWEST
    from relay.claimed import Claimed

    applied = MigrationRecorder.Migration.objects.filter(app="outbox").values_list("name", flat=True)
    return {
        "release": version("django-dramatiq-outbox"),
        "migration": max(applied),
        "claimed": list(Claimed._fields),
        "newest_version": NEWEST,
    }


def _send_again(*, redeliveries: int) -> None:
    from outbox.models import Delivery

    Delivery.objects.filter(status="dispatched").update(status="pending", redeliveries=redeliveries)


def _operate() -> None:
    """Do what operators and housekeeping do."""
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


@contextmanager
def _listening() -> Iterator[list[tuple[str, str]]]:
    """Collect each statement of every connection, with its parameters in place and without them."""
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
    from tests.upgrades import recordings

    by_form: dict[str, str] = {}
    for one, raw in statements:
        if "outbox_" in raw and raw.split()[0] in _KINDS:
            # Of each form the shortest, since the long ones hold tracebacks with paths of this machine.
            by_form[raw] = min(by_form.get(raw, one), one, key=len)
    host = socket.gethostname()
    recordings.save_sql("statements", sorted(one.replace(host, "host") for one in by_form.values()))
    claims = [one for raw, one in by_form.items() if "SKIP LOCKED" in raw and "e.payload" in raw]
    recordings.save_sql("claims", sorted(claims, key=len))
    # With its placeholders: which deliveries there are to confirm is for the tests to say.
    recordings.save_sql("confirm", [raw for raw in by_form if "SKIP LOCKED" in raw and "JOIN outcome" in raw])


_KINDS = {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}

if __name__ == "__main__":
    main()
