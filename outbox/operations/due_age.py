"""The age of the oldest due delivery, with the batches of batch handlers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db.models import DurationField, ExpressionWrapper, F, Max, Q
from django.db.models.functions import Now

from outbox.models import Delivery, PausedHandler
from outbox.registry import registry

_AGE = ExpressionWrapper(Now() - F("available_at"), output_field=DurationField())
_AGE_OF_PUT_OFF = ExpressionWrapper(Now() - F("due_since"), output_field=DurationField())


def oldest_due_s(database: str, *, limit: int) -> float:
    """Return for how many seconds the oldest due delivery has waited; 0.0 if none is due.

    Args:
        limit: the deliveries that are read at most, each of the put-off ones and of unknown batch handlers.
    """
    deliveries = Delivery.objects.using(database)
    due = deliveries.due().annotate(age=_AGE).values_list("age", flat=True).first()
    first = deliveries.put_off().order_by("handler", "due_since")[:limit]
    put_off = first.annotate(age=_AGE_OF_PUT_OFF).aggregate(oldest=Max("age"))["oldest"]
    ages = [due, put_off, *_batch_ages(deliveries, limit)]
    return round(max((age.total_seconds() for age in ages if age and age > timedelta()), default=0.0), 3)


def _batch_ages(deliveries: Any, limit: int) -> Iterator[timedelta | None]:
    """Yield for how long the oldest batch of each handler has been ready; a negative time if it is not.

    No relay can dispatch the batches of a paused handler.
    """
    paused = PausedHandler.objects.using(deliveries.db).names()
    sizes = {name: handler.batch for name, handler in registry.handlers.items() if handler.batch}
    for name, batch in sizes.items():
        if name not in paused:
            # A batch is ready when its oldest event has waited long enough, or when its last event is due.
            waiting = deliveries.waiting_for_batch(name, batch.wait).annotate(age=_AGE)
            ages = waiting.values_list("age", flat=True)
            yield from ages[:1]
            yield from (age + batch.wait for age in ages[batch.size - 1 : batch.size])
    others = Q(waits_for=Delivery.WaitsFor.BATCH) & ~Q(handler__in={*paused, *sizes})
    waiting = deliveries.pending().exclude(waits_for="").order_by("handler", "id")[:limit]
    # The aggregate filters, so that the limit counts rows of the index.
    yield waiting.annotate(age=_AGE).aggregate(oldest=Max("age", filter=others))["oldest"]
