"""Ordered handlers: a lane per key, in which the next delivery goes when the one before has run."""

import threading
from collections import defaultdict

import dramatiq
import pytest
from django.db import connections, transaction

import outbox
from outbox.errors import RegistrationError
from outbox.models import Delivery
from outbox.registry import registry
from relay.claim import Claim
from relay.loop import Relay, RelayOptions
from relay.stopping import Stop
from tests.helpers import finish, flush, publish, relay_all, worker
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


@pytest.fixture
def relay():
    """Run a relay in a thread, until the test is over."""
    with Stop() as stop:
        options = RelayOptions(database="default")

        def run():
            Relay(options, stop=stop).run()
            connections.close_all()

        thread = threading.Thread(target=run)
        thread.start()
        yield
        stop.request()
        thread.join(20)
        assert not thread.is_alive()


def states() -> list[tuple[str, str]]:
    return list(Delivery.objects.order_by("pk").values_list("status", "held"))


def test_only_the_first_of_a_lane_is_dispatched(lanes):
    for n in range(3):
        publish("lane.x", n, key="a")
    publish("lane.x", "other", key="b")
    relay_all()
    assert states() == [("dispatched", ""), ("pending", "lane"), ("pending", "lane"), ("dispatched", "")]


@pytest.mark.postgres
def test_a_lane_runs_in_order_while_others_run_beside_it(lanes, relay):
    with worker():
        with transaction.atomic():
            events = outbox.publish_many(
                [{"topic": "lane.x", "payload": n, "key": f"k{n % 3}"} for n in range(30)]
            )
        for event in events:
            assert finish(event) == {"lane": "succeeded"}
    assert lanes == {f"k{k}": list(range(k, 30, 3)) for k in range(3)}


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
