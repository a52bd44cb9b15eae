"""Ordered handlers: a lane per key, in which the next delivery goes when the one before has run."""

import threading
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import dramatiq
import pytest
from django.db import connection, connections, transaction

import outbox
from outbox.errors import RegistrationError
from outbox.models import Delivery
from outbox.registry import registry
from relay.claim import Claim
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from tests.factories import make_delivery
from tests.helpers import finish, flush, publish, relay_all, statuses, worker
from tests.processes import wait_until
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def lanes():
    """Return what each lane's handler has seen, by key; a payload `"bad"` fails."""
    seen = defaultdict(list)
    options = {"queue_name": QUEUE, "ordered": True, "max_retries": 0}

    def run(event):
        seen[event.key].append(event.payload)
        if event.payload == "bad":
            raise ValueError("bad")

    outbox.handler("lane.*", name="lane", **options)(run)
    outbox.handler("passing.*", name="passing", on_failure="skip", **options)(run)
    dramatiq.get_broker().flush_all()
    yield seen
    registry.remove("lane")
    registry.remove("passing")
    flush()
    dramatiq.get_broker().flush_all()


@contextmanager
def relays(count=1, **options):
    """Run relays in threads; yield the sizes of the batches of each."""
    sizes = [[] for _ in range(count)]

    def run(stop, progress):
        Relay(RelayOptions(database="default", progress=progress, **options), stop=stop).run()
        connections.close_all()

    with ExitStack() as stack:
        stops = [stack.enter_context(Stop()) for _ in range(count)]
        threads = [
            threading.Thread(target=run, args=(stop, mine.append))
            for stop, mine in zip(stops, sizes, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            yield sizes
        finally:
            for stop in stops:
                stop.request()
            for thread in threads:
                thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


def publish_to_lanes(count, lanes, topic="lane.x"):
    """Publish events that go round the lanes, in one transaction."""
    with transaction.atomic():
        return outbox.publish_many(
            {"topic": topic, "payload": n, "key": f"k{n % lanes}"} for n in range(count)
        )


def is_listening() -> bool:
    """Return whether a relay listens."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
            " AND query = 'LISTEN outbox_wakeup'"
        )
        return cursor.fetchone() is not None


def states() -> list[tuple[str, str]]:
    return list(Delivery.objects.order_by("pk").values_list("status", "held"))


def test_only_the_first_of_a_lane_is_dispatched(lanes):
    for n in range(3):
        publish("lane.x", n, key="a")
    publish("lane.x", "other", key="b")
    relay_all()
    assert states() == [("dispatched", ""), ("pending", "lane"), ("pending", "lane"), ("dispatched", "")]


@pytest.mark.postgres
def test_a_lane_runs_in_order_while_others_run_beside_it(lanes):
    with worker(), relays():
        for event in publish_to_lanes(30, 3):
            assert finish(event) == {"lane": "succeeded"}
    assert lanes == {f"k{k}": list(range(k, 30, 3)) for k in range(3)}


@pytest.mark.postgres
def test_a_lane_need_not_wait_for_the_relay_to_poll(lanes, monkeypatch):
    # After that of the publisher, only the notification of a confirmation is left to tell the relay.
    monkeypatch.setattr("relay.loop.SHORTEST_WAIT_S", 30.0)
    monkeypatch.setattr("outbox.wakeup.QUIET_S", 600.0)
    monkeypatch.setattr("outbox.wakeup._last_notified", {})
    with worker(), relays(poll_interval=timedelta(seconds=30)):
        wait_until(is_listening)
        *_, last = publish_to_lanes(20, 1)
        # Polls would take 19 times 30 seconds.
        assert finish(last, deadline_s=50) == {"lane": "succeeded"}
    assert lanes == {"k0": list(range(20))}


@pytest.mark.postgres
def test_lanes_run_side_by_side_over_several_relays_and_each_keeps_its_order(lanes, request):
    meeting = threading.Barrier(2)

    @outbox.handler("meeting.*", name="meeting", queue_name=QUEUE, ordered=True, max_retries=0)
    def meet(event):
        if not lanes[event.key]:
            # The first of a lane waits until that of another lane runs as well.
            meeting.wait(20)
        lanes[event.key].append(event.payload)

    request.addfinalizer(lambda: registry.remove("meeting"))
    with relays(2, batch_size=4) as sizes, worker():
        events = publish_to_lanes(200, 40, "meeting.x")
        assert all(finish(event, 60) == {"meeting": "succeeded"} for event in events)
    assert lanes == {f"k{k}": list(range(k, 200, 40)) for k in range(40)}
    assert all(sizes), sizes
    assert sum(map(sum, sizes)) == 200


def test_a_failed_delivery_blocks_its_lane_until_it_is_discarded(lanes):
    bad, good = publish("lane.x", "bad", key="a"), publish("lane.x", "good", key="a")
    with worker():
        relay_all()
        assert finish(bad) == {"lane": "failed"}
        relay_all()
        assert good.deliveries.values_list("status", "held").get() == ("pending", "lane")
        with transaction.atomic():
            Delivery.objects.filter(event=bad).discard("an operator gave it up")
        relay_all()
        assert finish(good) == {"lane": "succeeded"}
    assert lanes["a"] == ["bad", "good"]


def test_retrying_the_failed_delivery_of_a_lane_lets_it_go_on(lanes):
    bad, good = publish("lane.x", "bad", key="a"), publish("lane.x", "good", key="a")
    with worker():
        relay_all()
        finish(bad)
        type(bad).objects.filter(pk=bad.pk).update(payload="mended")
        Delivery.objects.filter(event=bad).retry()
        relay_all()
        finish(bad)
        flush()
        relay_all()
        assert finish(good) == {"lane": "succeeded"}
    assert lanes["a"] == ["bad", "mended", "good"]


def test_a_failed_delivery_of_a_skipping_handler_lets_its_lane_pass(lanes):
    bad, good = publish("passing.x", "bad", key="a"), publish("passing.x", "good", key="a")
    with worker():
        relay_all()
        finish(bad)

        def pass_it():
            relay_all()
            return good.deliveries.exclude(status="pending").exists()

        wait_until(pass_it, what="the next delivery to go")
        assert finish(good) == {"passing": "succeeded"}
    assert lanes["a"] == ["bad", "good"]


@pytest.mark.postgres
def test_a_delivery_held_while_the_one_before_finishes_is_let_go(lanes, monkeypatch):
    """The claim sees the one before as unfinished; it finishes before the claim commits."""
    first, second = publish("lane.x", 1, key="a"), publish("lane.x", 2, key="a")
    relay_all()
    Delivery.objects.filter(event=second).update(held="")
    take_lanes = Claim.take_lanes

    def finish_the_first_after_the_claim(self, **options):
        taken = take_lanes(self, **options)

        def elsewhere():
            Delivery.objects.filter(event=first).update(status="succeeded")
            connections.close_all()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return taken

    monkeypatch.setattr(Claim, "take_lanes", finish_the_first_after_the_claim)
    relay_all()
    assert Delivery.objects.get(event=second).held == ""


@pytest.mark.parametrize(
    ("rows", "released"),
    [
        ([("pending", "lane"), ("pending", "lane")], [0]),
        ([("pending", ""), ("pending", "lane")], []),
        ([("dispatched", ""), ("pending", "lane")], []),
        ([("pending", "lane"), ("dispatched", ""), ("pending", "lane")], []),
        ([("failed", ""), ("pending", "lane")], []),
        ([("succeeded", ""), ("discarded", ""), ("pending", "lane"), ("pending", "lane")], [2]),
    ],
)
def test_of_a_lane_the_first_is_let_go_when_nothing_before_it_or_sent_is_unfinished(rows, released):
    lane = [make_delivery(handler="lane", key="a", status=status, held=held) for status, held in rows]
    other = make_delivery(handler="lane", key="b", status="dispatched")
    held = Delivery.objects.filter(held="lane")
    before = set(held.values_list("pk", flat=True))
    assert Delivery.objects.release_lanes([("lane", "a")], skipping=["passing"]) == len(released)
    assert before - set(held.values_list("pk", flat=True)) == {lane[n].pk for n in released}
    assert statuses(other.event) == {"lane": "dispatched"}


def test_of_a_skipping_handler_s_lane_the_first_is_let_go_past_a_failed_one():
    for status, held in (("failed", ""), ("pending", "lane"), ("pending", "lane")):
        make_delivery(handler="passing", key="a", status=status, held=held)
    assert Delivery.objects.release_lanes([("passing", "a")], skipping=["passing"]) == 1
    assert list(Delivery.objects.order_by("pk").values_list("held", flat=True)) == ["", "", "lane"]


def test_an_expired_delivery_lets_its_lane_go_on(lanes):
    first, second = publish("lane.x", 1, key="a"), publish("lane.x", 2, key="a")
    Delivery.objects.filter(event=first).update(expires_at=first.created_at)
    relay_all()
    relay_all()
    assert Delivery.objects.get(event=first).status == "discarded"
    assert Delivery.objects.get(event=second).status == "dispatched"


def test_events_without_a_key_are_in_no_lane(lanes):
    for n in range(2):
        publish("lane.x", n)
    relay_all()
    assert states() == [("dispatched", "")] * 2


def test_a_batched_handler_has_no_lanes():
    with pytest.raises(RegistrationError, match="both ordered and batched"):
        outbox.handler("lane.*", name="both", ordered=True, batch_size=2)(print)
