"""Ordered handlers: the deliveries of an ordering key run one at a time, in order."""

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
from outbox.publishing.notify import Notifier
from outbox.publishing.notify_throttle import NotifyThrottle
from outbox.registry import registry
from relay.claim import Claim
from relay.loop import Relay
from relay.relay_options import RelayOptions
from relay.stopping import Stop
from tests.support.data_flow import finish, flush, publish, relay_all, states_of, worker
from tests.support.factories import make_delivery
from tests.support.processes import wait_until
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def runs():
    """Register ordered handlers that fail at a payload `"bad"`; return the payloads of their runs, by key."""
    seen = defaultdict(list)
    options = {"queue_name": QUEUE, "ordered": True, "max_retries": 0}

    def run(event):
        seen[event.key].append(event.payload)
        if event.payload == "bad":
            raise ValueError("bad")

    outbox.handler("ordered.*", name="blocking", **options)(run)
    outbox.handler("skipping.*", name="skipping", on_failure="skip", **options)(run)
    dramatiq.get_broker().flush_all()
    yield seen
    registry.remove("blocking")
    registry.remove("skipping")
    flush()
    dramatiq.get_broker().flush_all()


@contextmanager
def relays(count=1, **options):
    """Run relays in threads; yield the batch sizes of each."""
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


def publish_with_keys(count, keys, topic="ordered.x"):
    """Publish events with each key in turn, in one transaction."""
    with transaction.atomic():
        return outbox.publish_many(
            {"topic": topic, "payload": n, "key": f"k{n % keys}"} for n in range(count)
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
    return list(Delivery.objects.order_by("pk").values_list("state", "waits_for"))


def test_only_the_first_delivery_of_a_key_is_dispatched(runs):
    for n in range(3):
        publish("ordered.x", n, key="a")
    publish("ordered.x", "other", key="b")
    relay_all()
    assert states() == [("dispatched", ""), ("pending", "key"), ("pending", "key"), ("dispatched", "")]


@pytest.mark.postgres
def test_each_key_runs_in_order_beside_other_keys(runs):
    with worker(), relays():
        for event in publish_with_keys(30, 3):
            assert finish(event) == {"blocking": "succeeded"}
    assert runs == {f"k{k}": list(range(k, 30, 3)) for k in range(3)}


class OneNotification(NotifyThrottle):
    """A throttle that allows the first commit to notify, and no other."""

    def __init__(self) -> None:
        super().__init__(bytearray(NotifyThrottle.BYTES))
        self._allowed = iter([True])

    def of(self, _database: str) -> NotifyThrottle:
        return self

    def allows(self, now: float) -> bool:
        return next(self._allowed, False)


@pytest.mark.postgres
def test_a_confirmation_notifies_the_relay_of_the_next_delivery_of_a_key(runs, monkeypatch):
    # After the publisher's notification, only the notifications of confirmations wake the relay.
    monkeypatch.setattr("outbox.publishing.notify.notifier", Notifier(throttle=OneNotification().of))
    with worker(), relays(poll_interval=timedelta(seconds=30), shortest_wait_s=30):
        wait_until(is_listening)
        *_, last = publish_with_keys(20, 1)
        # Polls would take 19 times 30 seconds.
        assert finish(last, deadline_s=50) == {"blocking": "succeeded"}
    assert runs == {"k0": list(range(20))}


@pytest.mark.postgres
def test_keys_keep_their_order_over_several_relays(runs, request):
    meeting = threading.Barrier(2)

    @outbox.handler("meeting.*", name="meeting", queue_name=QUEUE, ordered=True, max_retries=0)
    def meet(event):
        if not runs[event.key]:
            # The first run of a key waits for the first run of another key.
            meeting.wait(20)
        runs[event.key].append(event.payload)

    request.addfinalizer(lambda: registry.remove("meeting"))
    with relays(2, batch_size=4) as sizes, worker():
        events = publish_with_keys(200, 40, "meeting.x")
        assert all(finish(event, 60) == {"meeting": "succeeded"} for event in events)
    assert runs == {f"k{k}": list(range(k, 200, 40)) for k in range(40)}
    assert all(sizes), sizes
    assert sum(map(sum, sizes)) == 200


def test_a_failed_delivery_blocks_its_key_until_it_is_discarded(runs):
    bad, good = publish("ordered.x", "bad", key="a"), publish("ordered.x", "good", key="a")
    with worker():
        relay_all()
        assert finish(bad) == {"blocking": "failed"}
        relay_all()
        assert good.deliveries.values_list("state", "waits_for").get() == ("pending", "key")
        with transaction.atomic():
            Delivery.objects.filter(event=bad).discard("an operator gave it up")
        relay_all()
        assert finish(good) == {"blocking": "succeeded"}
    assert runs["a"] == ["bad", "good"]


def test_a_retry_of_the_failed_delivery_unblocks_its_key(runs):
    bad, good = publish("ordered.x", "bad", key="a"), publish("ordered.x", "good", key="a")
    with worker():
        relay_all()
        finish(bad)
        type(bad).objects.filter(pk=bad.pk).update(payload="fixed")
        Delivery.objects.filter(event=bad).retry()
        relay_all()
        finish(bad)
        flush()
        relay_all()
        assert finish(good) == {"blocking": "succeeded"}
    assert runs["a"] == ["bad", "fixed", "good"]


def test_a_failed_delivery_of_a_skipping_handler_does_not_block_its_key(runs):
    bad, good = publish("skipping.x", "bad", key="a"), publish("skipping.x", "good", key="a")
    with worker():
        relay_all()
        finish(bad)

        def dispatched():
            relay_all()
            return good.deliveries.exclude(state="pending").exists()

        wait_until(dispatched, what="the dispatch of the next delivery")
        assert finish(good) == {"skipping": "succeeded"}
    assert runs["a"] == ["bad", "good"]


@pytest.mark.postgres
def test_a_delivery_blocked_while_the_earlier_one_finishes_is_unblocked(runs, monkeypatch):
    """The claim reads the earlier delivery as unfinished, which then finishes before the claim commits."""
    first, second = publish("ordered.x", 1, key="a"), publish("ordered.x", 2, key="a")
    relay_all()
    Delivery.objects.filter(event=second).update(waits_for="")
    claim_ordered = Claim.claim_ordered

    def finish_the_first_after_the_claim(self, **options):
        result = claim_ordered(self, **options)

        def finish_the_first():
            Delivery.objects.filter(event=first).update(state="succeeded")
            connections.close_all()

        thread = threading.Thread(target=finish_the_first)
        thread.start()
        thread.join()
        return result

    monkeypatch.setattr(Claim, "claim_ordered", finish_the_first_after_the_claim)
    relay_all()
    assert Delivery.objects.get(event=second).waits_for == ""


@pytest.mark.parametrize(
    ("rows", "unblocked"),
    [
        ([("pending", "key"), ("pending", "key")], [0]),
        ([("pending", ""), ("pending", "key")], []),
        ([("dispatched", ""), ("pending", "key")], []),
        ([("pending", "key"), ("dispatched", ""), ("pending", "key")], []),
        ([("failed", ""), ("pending", "key")], []),
        ([("succeeded", ""), ("discarded", ""), ("pending", "key"), ("pending", "key")], [2]),
    ],
)
def test_a_key_is_unblocked_when_no_earlier_or_dispatched_delivery_is_unfinished(rows, unblocked):
    deliveries = [
        make_delivery(handler="blocking", key="a", state=state, waits_for=waits_for)
        for state, waits_for in rows
    ]
    other = make_delivery(handler="blocking", key="b", state="dispatched")
    blocked = Delivery.objects.filter(waits_for="key")
    before = set(blocked.values_list("pk", flat=True))
    assert Delivery.objects.unblock_keys([("blocking", "a")], skipping=["skipping"]) == len(unblocked)
    assert before - set(blocked.values_list("pk", flat=True)) == {deliveries[n].pk for n in unblocked}
    assert states_of(other.event) == {"blocking": "dispatched"}


def test_a_key_of_a_skipping_handler_is_unblocked_after_a_failed_delivery():
    for state, waits_for in (("failed", ""), ("pending", "key"), ("pending", "key")):
        make_delivery(handler="skipping", key="a", state=state, waits_for=waits_for)
    assert Delivery.objects.unblock_keys([("skipping", "a")], skipping=["skipping"]) == 1
    assert list(Delivery.objects.order_by("pk").values_list("waits_for", flat=True)) == ["", "", "key"]


def test_an_expired_delivery_unblocks_its_key(runs):
    first, second = publish("ordered.x", 1, key="a"), publish("ordered.x", 2, key="a")
    Delivery.objects.filter(event=first).update(expires_at=first.created_at)
    relay_all()
    relay_all()
    assert Delivery.objects.get(event=first).state == "discarded"
    assert Delivery.objects.get(event=second).state == "dispatched"


def test_events_without_a_key_are_not_blocked(runs):
    for n in range(2):
        publish("ordered.x", n)
    relay_all()
    assert states() == [("dispatched", "")] * 2


def test_a_batch_handler_cannot_be_ordered():
    with pytest.raises(RegistrationError, match="both ordered and batched"):
        outbox.handler("ordered.*", name="both", ordered=True, batch_size=2)(print)
