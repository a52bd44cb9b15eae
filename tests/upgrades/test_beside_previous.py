"""Processes of the previous release and of this release work together, in any order of the upgrade."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import dramatiq
import pytest
from django.db import connection, transaction

from outbox import versions
from outbox.events import DeliveryRef
from outbox.models import Delivery, Event
from relay.messages.single import OutgoingMessage
from tests.support.data_flow import flush, relay_all, worker
from tests.support.processes import wait_until

from . import recordings
from .handlers import QUEUE, declared, publish_all
from .reading import lacks
from .running import effects, messages_sent, work_all
from .test_previous_rows import publish_as_the_previous_release

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Declare the recorded handlers."""
    with declared():
        dramatiq.get_broker().flush_all()
        yield
        flush()
    dramatiq.get_broker().flush_all()


def claim_as_the_previous_release() -> list[dict[str, Any]]:
    """Claim due deliveries with the statements of its relay; return the rows by its column names."""
    names = recordings.load("state")["claimed"]
    claimed = []
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in recordings.load_sql("claims"):
            cursor.execute(statement)
            # The last column is true for a blocked delivery, and null for the summary.
            claimed += [
                dict(zip(names, row[:-1], strict=True)) for row in cursor.fetchall() if row[-1] is False
            ]
    return claimed


def enqueue_as_the_previous_release(message: dict[str, Any]) -> list[int]:
    """Enqueue a message of its relay, with the delivery ids of this database."""
    option = message["options"]["outbox"]
    events = message["args"][0] if "deliveries" in option else [option.get("event") or message["args"][0]]
    ids = [Delivery.objects.get(event=event["id"], handler=message["actor_name"]).pk for event in events]
    Delivery.objects.filter(pk__in=ids).update(state="dispatched", waits_for="")
    option.update({"deliveries": ids} if "deliveries" in option else {"delivery": ids[0]})
    dramatiq.get_broker().enqueue(dramatiq.Message(**message))
    return ids


def confirm_as_the_previous_release(deliveries: dict[DeliveryRef, str]) -> None:
    """Report the outcomes of deliveries, with the statement of its workers."""
    (statement,) = recordings.load_sql("confirm")
    count = len(deliveries)
    columns = [
        [one.id for one in deliveries],
        [one.event_id for one in deliveries],
        list(deliveries.values()),
        [""] * count,
        [timedelta()] * count,
        [""] * count,
        [""] * count,
        [""] * count,
    ]
    with connection.cursor() as cursor:
        # The first two arrays are for successes, which need only the identity.
        cursor.execute(statement, ["{}", "{}", *columns])


# ---------------------------------------------------------------- older site and relay, newer worker


@pytest.mark.parametrize("kind", sorted(recordings.load("messages")))
def test_a_message_of_the_previous_relay_is_run_by_a_worker_of_this_release(kind: str) -> None:
    publish_as_the_previous_release()
    claim_as_the_previous_release()
    ids = enqueue_as_the_previous_release(recordings.load("messages")[kind])
    handler = kind.split()[0]
    expected = "failed" if handler == "upgrade_failing" else "succeeded"

    def ended() -> bool:
        flush()
        return set(Delivery.objects.filter(pk__in=ids).values_list("state", flat=True)) == {expected}

    with worker():
        wait_until(ended, 20, f"{kind} to end as {expected}")
    recorded = [one for one in recordings.load("outcomes")["effects"] if one[0] == handler]
    assert len(effects()) == (expected == "succeeded")
    assert all(one in recorded for one in effects())


# ---------------------------------------------------------------- newer site and relay, older worker


@pytest.fixture(params=["message", "body"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send messages as objects, and as bytes that are built without objects."""
    if request.param == "message":
        return
    plain = OutgoingMessage.message

    def from_bytes(self: OutgoingMessage) -> dramatiq.Message[Any]:
        with mock.patch.object(OutgoingMessage, "message", plain):
            return dramatiq.Message.decode(self.body())

    monkeypatch.setattr(OutgoingMessage, "message", from_bytes)


@pytest.mark.usefixtures("form")
def test_messages_of_this_relay_have_all_members_that_the_previous_worker_reads() -> None:
    publish_all()
    relay_all()
    sent, reads = messages_sent(), recordings.load("reads")
    assert sent.keys() == {kind for kind in reads if " " not in kind}
    assert {kind: lacks(body, reads[kind]) for kind, body in sent.items()} == {kind: [] for kind in sent}


@pytest.mark.usefixtures("form")
def test_a_redelivered_message_is_marked_for_the_previous_worker() -> None:
    publish_all()
    relay_all()
    dramatiq.get_broker().flush_all()
    Delivery.objects.filter(state="dispatched").update(state="pending", redeliveries=1)
    relay_all()
    message = messages_sent()["upgrade_event"]
    assert lacks(message, recordings.load("reads")["upgrade_event redelivered"]) == []


@pytest.mark.usefixtures("form")
def test_the_previous_release_reads_the_version_that_this_one_writes() -> None:
    newest = recordings.load("state")["newest_version"]
    publish_all()
    relay_all()
    assert {body["options"]["outbox"]["v"] for body in messages_sent().values()} == {versions.WRITTEN}
    assert set(Event.objects.values_list("version", flat=True)) == {versions.WRITTEN}
    assert versions.OLDEST <= versions.WRITTEN <= newest


def test_confirmations_of_the_previous_worker_finish_deliveries_of_this_relay() -> None:
    publish_all()
    relay_all()
    sent = [one.ref for one in Delivery.objects.filter(state="dispatched").order_by("pk")]
    assert sent
    failed = sent[-1]
    confirm_as_the_previous_release({one: "failed" if one == failed else "succeeded" for one in sent})
    ended = {one.ref: one.state for one in Delivery.objects.all()}
    assert ended.items() >= {one: "failed" if one == failed else "succeeded" for one in sent}.items()


# ---------------------------------------------------------------- newer site, older relay


def test_the_previous_relay_claims_deliveries_of_this_release() -> None:
    publish_all()
    due = Delivery.objects.filter(waits_for="").exclude(handler="upgrade_ordered")
    expected = set(due.values_list("pk", flat=True))
    first_of_key = Delivery.objects.filter(handler="upgrade_ordered").order_by("pk").first()
    claimed = {row["delivery_id"]: row for row in claim_as_the_previous_release()}
    assert claimed.keys() == {*expected, first_of_key.pk}
    for delivery in Delivery.objects.filter(pk__in=claimed).select_related("event"):
        row, event = claimed[delivery.pk], delivery.event
        assert (row["event_id"], row["handler"], row["queue"]) == (str(event.pk), delivery.handler, QUEUE)
        assert (row["topic"], row["key"], row["expired"]) == (event.topic, event.key, False)
        assert (json.loads(row["payload"]), json.loads(row["headers"])) == (event.payload, event.headers)
        assert (delivery.state, delivery.attempts) == ("dispatched", row["attempts"])


def test_this_relay_dispatches_deliveries_that_the_previous_relay_did_not_finish() -> None:
    publish_all()
    claim_as_the_previous_release()
    # The previous relay was killed, or its messages were lost. This relay redelivers overdue deliveries.
    Delivery.objects.filter(state="dispatched").update(confirm_by=Event.objects.earliest("pk").created_at)
    work_all()
    assert effects() == recordings.load("outcomes")["effects"]
