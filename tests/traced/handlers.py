"""A chain of two handlers, a failing handler, and a plain actor."""

import dramatiq
from django.db import transaction

import outbox
from outbox import ReceivedEvent, handler
from tests.testapp.handlers import QUEUE, Refused


@handler("traced.placed", queue_name=QUEUE, name="traced_placed")
def placed(event: ReceivedEvent) -> None:
    with transaction.atomic():
        outbox.publish("traced.paid", event.payload)


@handler("traced.paid", queue_name=QUEUE, name="traced_paid")
def paid(event: ReceivedEvent) -> None:
    plain.send()


@handler(
    "traced.broken", queue_name=QUEUE, name="traced_broken", max_retries=1, min_backoff=10, max_backoff=10
)
def broken(event: ReceivedEvent) -> None:
    raise Refused("traced")


@handler("traced.expected", queue_name=QUEUE, name="traced_expected", throws=Refused)
def expected(event: ReceivedEvent) -> None:
    raise Refused("expected")


@handler(
    "traced.batch",
    queue_name=QUEUE,
    name="traced_batch",
    batch_size=2,
    batch_wait=3600,
    max_retries=0,
)
def batch(events: list[ReceivedEvent]) -> None:
    raise Refused("batch")


@dramatiq.actor(queue_name=QUEUE, actor_name="traced_plain")
def plain() -> None:
    """Run without the outbox."""
