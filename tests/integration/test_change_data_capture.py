"""The publication of docs/how-to/change-data-capture.md, read with PostgreSQL's plugin `pgoutput`."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from example.services import EmbeddedPostgres
from tests.conftest import ROOT

pytestmark = [pytest.mark.postgres, pytest.mark.server, pytest.mark.slow, pytest.mark.processes]

PAGE = ROOT / "docs" / "how-to" / "change-data-capture.md"
CREATE_PUBLICATION, CREATE_SLOT, FILTER, KEPT_LOG = re.findall(
    r"^```sql\n(.*?)^```$", PAGE.read_text(), re.M | re.S
)
CHANGES = """
    SELECT data FROM pg_logical_slot_get_binary_changes(
        'outbox_events', NULL, NULL, 'proto_version', '1', 'publication_names', 'outbox_events'
    )
"""

PUBLISH = """
import django
django.setup()
from datetime import timedelta
from django.db import transaction
from outbox import EventData, publish, publish_many
from outbox.models import Event

class Undo(Exception):
    pass

with transaction.atomic():
    publish("shop.order_paid", {"order": 7, "lines": ["é"]}, key="order-7", headers={"origin": "test"})
    publish("shop.later", delay=timedelta(days=1))
try:
    with transaction.atomic():
        publish("shop.rolled_back")
        raise Undo
except Undo:
    pass
with transaction.atomic():
    # By COPY.
    publish_many(EventData("shop.many", {"number": number}) for number in range(6))
with transaction.atomic():
    recorded = publish("test.recorded", {"number": 1})
recorded.cancel()
Event.objects.filter(topic="shop.many").delete()
"""


class LogicalPostgres(EmbeddedPostgres):
    """A server whose write-ahead log can be decoded."""

    _settings = {**EmbeddedPostgres._settings, "wal_level": "logical"}


@pytest.fixture(scope="module")
def server() -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to a server with the outbox's tables and the publication."""
    with LogicalPostgres() as postgres, psycopg.connect(postgres.url, autocommit=True) as connection:
        run(connection, "-m", "tests.manage", "migrate", "--verbosity=0")
        connection.execute(CREATE_PUBLICATION)
        connection.execute(CREATE_SLOT)
        yield connection


def run(connection: psycopg.Connection[Any], *arguments: str) -> None:
    """Run Python in the test project, on the database of a connection."""
    url = f"postgresql://postgres@{quote(connection.info.host, safe='')}/postgres"
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_TEST_")}
    env |= {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, check=True, timeout=120)


def inserted(connection: psycopg.Connection[Any]) -> list[dict[str, str | None]]:
    """Return the inserted rows of all new messages; fail at a message of another kind of change."""
    rows: list[dict[str, str | None]] = []
    columns: list[str] = []
    for (message,) in connection.execute(CHANGES, binary=True):
        kind = message[:1]
        if kind == b"R":
            columns = column_names(message)
        elif kind == b"I":
            rows.append(dict(zip(columns, values(message), strict=True)))
        else:
            assert kind in b"BCO", f"a change of kind {kind!r}"
    return rows


def column_names(relation: bytes) -> list[str]:
    """Return the columns of a message that describes a table."""
    _schema, rest = relation[5:].split(b"\0", 1)
    name, rest = rest.split(b"\0", 1)
    assert name == b"outbox_event"
    (count,) = struct.unpack_from("!h", rest, 1)
    rest, names = rest[3:], []
    for _ in range(count):
        column, rest = rest[1:].split(b"\0", 1)
        names.append(column.decode())
        rest = rest[8:]  # type and modifier
    return names


def values(insertion: bytes) -> list[str | None]:
    """Return the values of an insertion, as text."""
    assert insertion[5:6] == b"N"
    (count,) = struct.unpack_from("!h", insertion, 6)
    position, found = 8, list[str | None]()
    for _ in range(count):
        kind = insertion[position : position + 1]
        position += 1
        if kind == b"n":
            found.append(None)
            continue
        (length,) = struct.unpack_from("!i", insertion, position)
        position += 4
        found.append(insertion[position : position + length].decode())
        position += length
    return found


def test_the_publication_has_each_committed_event_once_and_nothing_else(
    server: psycopg.Connection[Any],
) -> None:
    inserted(server)
    run(server, "-c", PUBLISH)
    rows = inserted(server)
    assert [row["topic"] for row in rows] == [
        "shop.order_paid",
        "shop.later",
        *["shop.many"] * 6,
        "test.recorded",
    ]
    first = rows[0]
    assert list(first) == ["id", "topic", "key", "payload", "headers", "created_at"]
    assert first["key"] == "order-7"
    assert json.loads(first["payload"] or "") == {"order": 7, "lines": ["é"]}
    assert json.loads(first["headers"] or "")["origin"] == "test"
    assert [json.loads(row["payload"] or "")["number"] for row in rows[2:8]] == list(range(6))
    created = server.execute(
        "SELECT created_at::text FROM outbox_event WHERE id = %s", [first["id"]]
    ).fetchone()
    assert created == (first["created_at"],)


def test_a_row_filter_leaves_other_topics_out(server: psycopg.Connection[Any]) -> None:
    inserted(server)
    server.execute(FILTER)
    try:
        run(server, "-c", PUBLISH)
        assert {row["topic"] for row in inserted(server)} == {"shop.order_paid", "shop.later", "shop.many"}
    finally:
        server.execute("DROP PUBLICATION outbox_events")
        server.execute(CREATE_PUBLICATION)


def test_the_kept_log_of_the_slot_can_be_queried(server: psycopg.Connection[Any]) -> None:
    (row,) = server.execute(KEPT_LOG)
    name, status, kept = row
    assert (name, status) == ("outbox_events", "reserved")
    assert kept >= 0
