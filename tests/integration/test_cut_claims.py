"""A claim that its bytes cut short reports that more deliveries are due."""

from datetime import timedelta
from functools import partial

import dramatiq
import pytest
from django.db import transaction

import outbox
from outbox.models import Delivery
from outbox.registry import BatchOptions, registry
from relay.claim import Claim
from relay.claim.portable import PortableClaim
from tests.support.data_flow import flush, relay_all
from tests.testapp.handlers import QUEUE

pytestmark = pytest.mark.django_db(transaction=True)

# Three of these payloads fit into the bytes of a claim.
PAYLOAD = "x" * 300
MAX_BYTES = 1000


@pytest.fixture
def handlers():
    @outbox.handler("cut.batch", batch_size=10, batch_wait=timedelta(0), name="cut.batch", queue_name=QUEUE)
    def batched(events):
        pass

    @outbox.handler("cut.plain", name="cut.plain", queue_name=QUEUE)
    def plain(event):
        pass

    @outbox.handler("cut.ordered", ordered=True, name="cut.ordered", queue_name=QUEUE)
    def ordered(event):
        pass

    dramatiq.get_broker().flush_all()
    yield
    for name in ("cut.batch", "cut.plain", "cut.ordered"):
        registry.remove(name)
    flush()
    dramatiq.get_broker().flush_all()


def publish_eight(topic):
    with transaction.atomic():
        outbox.publish_many([{"topic": topic, "payload": PAYLOAD, "key": f"key-{n}"} for n in range(8)])


@pytest.mark.parametrize("topic", ["cut.batch", "cut.plain", "cut.ordered"])
def test_a_drain_goes_on_after_a_claim_that_its_bytes_cut_short(handlers, monkeypatch, topic):
    monkeypatch.setattr("relay.rounds.Claim", partial(Claim, max_bytes=MAX_BYTES))
    publish_eight(topic)
    relay_all()
    assert not Delivery.objects.pending().exists()


@pytest.mark.parametrize("kind", [Claim, PortableClaim])
def test_every_claim_reports_the_rows_that_its_bytes_cut_off(handlers, kind):
    claims = kind(database="default", limit=100, max_bytes=MAX_BYTES)
    batch = BatchOptions(size=10, wait=timedelta(0))
    for topic, claim in (
        ("cut.batch", partial(claims.claim_batch, "cut.batch", batch)),
        ("cut.plain", partial(claims.claim_due, skip_ordered=True)),
        ("cut.ordered", partial(claims.claim_ordered, skipping=[])),
    ):
        publish_eight(topic)
        results = []
        while not results or results[-1].more:
            with transaction.atomic():
                results.append(claim())
        assert sum(len(result.rows) for result in results) == 8, topic


@pytest.mark.parametrize("kind", [Claim, PortableClaim])
def test_a_batch_that_is_not_ready_is_no_reason_for_another_round(handlers, kind):
    publish_eight("cut.batch")
    Delivery.objects.update(available_at="2100-01-01T00:00:00Z")
    claims = kind(database="default", limit=100, max_bytes=MAX_BYTES)
    with transaction.atomic():
        claim = claims.claim_batch("cut.batch", BatchOptions(size=10, wait=timedelta(days=365 * 100)))
    assert (claim.rows, claim.more) == ([], False)
