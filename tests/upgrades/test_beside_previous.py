"""Processes of the previous release run beside those of this one, whichever was upgraded first."""

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
from outbox.models import Delivery, Event
from relay.messages import Outgoing
from tests.helpers import flush, relay_all, worker
from tests.processes import wait_until
from tests.upgrades import recordings
from tests.upgrades.handlers import QUEUE, declared, publish_all
from tests.upgrades.reading import lacks
from tests.upgrades.running import effects, messages_sent, work_all
from tests.upgrades.test_previous_rows import publish_as_the_previous_release

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Declare the handlers that were recorded."""
    with declared():
        dramatiq.get_broker().flush_all()
        yield
        flush()
    dramatiq.get_broker().flush_all()


def claim_as_the_previous_release() -> list[dict[str, Any]]:
    """Claim what is due, with the statements of its relay; return the rows by its names for the columns."""
    names = recordings.load("state")["claimed"]
    claimed = []
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in recordings.load_sql("claims"):
            cursor.execute(statement)
            # Behind the columns of a row come what says that it is held, and a count.
            claimed += [dict(zip(names, row[:-2], strict=True)) for row in cursor.fetchall() if not row[-2]]
    return claimed


def enqueue_as_the_previous_release(message: dict[str, Any]) -> list[int]:
    """Put a message of its relay into the queue, with the ids that its deliveries have here."""
    option = message["options"]["outbox"]
    events = message["args"][0] if "deliveries" in option else [option.get("event") or message["args"][0]]
    ids = [Delivery.objects.get(event=event["id"], handler=message["actor_name"]).pk for event in events]
    Delivery.objects.filter(pk__in=ids).update(status="dispatched", held="")
    option.update({"deliveries": ids} if "deliveries" in option else {"delivery": ids[0]})
    dramatiq.get_broker().enqueue(dramatiq.Message(**message))
    return ids


def confirm_as_the_previous_release(deliveries: dict[int, str]) -> None:
    """Report the outcomes of deliveries, with the statement of its workers."""
    (statement,) = recordings.load_sql("confirm")
    count = len(deliveries)
    columns = [list(deliveries), list(deliveries.values()), [""] * count, [timedelta()] * count]
    with connection.cursor() as cursor:
        cursor.execute(statement, [*columns, timedelta(hours=1)])


# ---------------------------------------------------------------- older web and relay, newer worker


@pytest.mark.parametrize("kind", sorted(recordings.load("messages")))
def test_a_message_of_the_previous_relay_is_run_by_a_worker_of_this_release(kind: str) -> None:
    publish_as_the_previous_release()
    claim_as_the_previous_release()
    ids = enqueue_as_the_previous_release(recordings.load("messages")[kind])
    handler = kind.split()[0]
    expected = "failed" if handler == "upgrade_failing" else "succeeded"

    def ended() -> bool:
        flush()
        return set(Delivery.objects.filter(pk__in=ids).values_list("status", flat=True)) == {expected}

    with worker():
        wait_until(ended, 20, f"{kind} to end as {expected}")
    recorded = [one for one in recordings.load("outcomes")["effects"] if one[0] == handler]
    assert len(effects()) == (expected == "succeeded")
    assert all(one in recorded for one in effects())


# ---------------------------------------------------------------- newer web and relay, older worker


@pytest.fixture(params=["message", "body"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send messages in both forms that brokers are given: as objects, and as bytes made without them."""
    if request.param == "message":
        return
    plain = Outgoing.message

    def from_bytes(self: Outgoing) -> dramatiq.Message[Any]:
        with mock.patch.object(Outgoing, "message", plain):
            return dramatiq.Message.decode(self.body())

    monkeypatch.setattr(Outgoing, "message", from_bytes)


@pytest.mark.usefixtures("form")
def test_the_messages_of_this_relay_have_all_that_the_previous_worker_reads() -> None:
    publish_all()
    relay_all()
    sent, reads = messages_sent(), recordings.load("reads")
    assert sent.keys() == {kind for kind in reads if " " not in kind}
    assert {kind: lacks(body, reads[kind]) for kind, body in sent.items()} == {kind: [] for kind in sent}


@pytest.mark.usefixtures("form")
def test_a_message_that_is_sent_again_says_so_to_the_previous_worker() -> None:
    publish_all()
    relay_all()
    dramatiq.get_broker().flush_all()
    Delivery.objects.filter(status="dispatched").update(status="pending", redeliveries=1)
    relay_all()
    again = messages_sent()["upgrade_event"]
    assert lacks(again, recordings.load("reads")["upgrade_event again"]) == []


@pytest.mark.usefixtures("form")
def test_the_previous_release_reads_the_version_that_this_one_writes() -> None:
    newest = recordings.load("state")["newest_version"]
    publish_all()
    relay_all()
    assert {body["options"]["outbox"]["v"] for body in messages_sent().values()} == {versions.WRITTEN}
    assert set(Event.objects.values_list("version", flat=True)) == {versions.WRITTEN}
    assert versions.OLDEST <= versions.WRITTEN <= newest


def test_the_confirmations_of_the_previous_worker_end_deliveries_of_this_relay() -> None:
    publish_all()
    relay_all()
    sent = list(Delivery.objects.filter(status="dispatched").order_by("pk").values_list("pk", flat=True))
    assert sent
    failed = sent[-1]
    confirm_as_the_previous_release({pk: "failed" if pk == failed else "succeeded" for pk in sent})
    ended = dict(Delivery.objects.filter(pk__in=sent).values_list("pk", "status"))
    assert ended == {pk: "failed" if pk == failed else "succeeded" for pk in sent}


# ---------------------------------------------------------------- newer web, older relay


def test_the_previous_relay_claims_what_this_release_has_published() -> None:
    publish_all()
    waiting = Delivery.objects.filter(held="").exclude(handler="upgrade_lane")
    expected = set(waiting.values_list("pk", flat=True))
    first_of_lane = Delivery.objects.filter(handler="upgrade_lane").order_by("pk").first()
    claimed = {row["delivery_id"]: row for row in claim_as_the_previous_release()}
    assert claimed.keys() == {*expected, first_of_lane.pk}
    for delivery in Delivery.objects.filter(pk__in=claimed).select_related("event"):
        row, event = claimed[delivery.pk], delivery.event
        assert (row["event_id"], row["handler"], row["queue"]) == (event.pk, delivery.handler, QUEUE)
        assert (row["topic"], row["key"], row["expired"]) == (event.topic, event.key, False)
        assert (json.loads(row["payload"]), json.loads(row["headers"])) == (event.payload, event.headers)
        assert (delivery.status, delivery.attempts) == ("dispatched", row["attempts"])


def test_what_the_previous_relay_did_not_finish_is_relayed_by_this_one() -> None:
    publish_all()
    claim_as_the_previous_release()
    # It was killed, or its messages were lost: this relay's redelivery finds them by their time.
    Delivery.objects.filter(status="dispatched").update(confirm_by=Event.objects.earliest("pk").created_at)
    work_all()
    assert effects() == recordings.load("outcomes")["effects"]
