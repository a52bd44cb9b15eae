"""The verbs that adapt unfinished deliveries to handlers whose declaration has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Greatest, Now

from .delivery_filters import DUE_SINCE
from .row_locks import brief_transaction, unlocked
from .states import UNSETTLED, DeliveryState, WaitsFor

if TYPE_CHECKING:
    from .delivery_verbs import DeliveryQuerySet

_IS_PENDING = Q(state=DeliveryState.PENDING)
_IS_KEYED = Q(state__in=UNSETTLED) & ~Q(key="")
# Without the order of an index, the planner may prefer to read the whole table.
_BY_KEY = ("handler", "key", "id")
# Deliveries whose place depends on the handler's name, each with the order of its index. A relay dispatches
# all other deliveries under either name.
_DEPENDS_ON_NAME = (
    (_IS_KEYED, _BY_KEY),
    (_IS_PENDING & ~Q(waits_for=""), ("handler", "id")),
    (Q(state=DeliveryState.FAILED), ("handler", "id")),
    (Q(state=DeliveryState.DISPATCHED), ("confirm_by",)),
)


def rename_handlers(
    deliveries: DeliveryQuerySet, former: Mapping[str, str], *, limit: int, only_keyed: bool = False
) -> int:
    """Give unfinished deliveries of former names the present names of their handlers; return how many.

    Deliveries that a running handler locks are left for a later call, and so are deliveries without an
    ordering key that wait for nothing.

    Args:
        former: the present names of handlers, by former name.
        limit: deliveries of each kind at most.
        only_keyed: rename only deliveries with an ordering key.
    """
    if not former:
        return 0
    name = Case(*(When(handler=old, then=Value(new)) for old, new in former.items()))
    of_former = deliveries.filter(handler__in=list(former))
    kinds = _DEPENDS_ON_NAME[:1] if only_keyed else _DEPENDS_ON_NAME
    return sum(_change(of_former.filter(kind).order_by(*order), limit, handler=name) for kind, order in kinds)


def end_ordering(deliveries: DeliveryQuerySet, handlers: Collection[str], *, limit: int) -> int:
    """Remove the ordering keys of handlers that are not ordered, and end the waits; return how many."""
    keyed = deliveries.filter(_IS_KEYED, handler__in=list(handlers)).order_by(*_BY_KEY)
    not_waiting = Case(When(waits_for=WaitsFor.KEY, then=Value("")), default=F("waits_for"))
    return _change(keyed, limit, key="", waits_for=not_waiting)


def move_to_queues(deliveries: DeliveryQuerySet, queues: Mapping[str, str], *, limit: int) -> int:
    """Give pending deliveries that wait for nothing the present queues of their handlers; return how many.

    Args:
        queues: the queue of each handler, by name.
        limit: deliveries at most.
    """
    if not queues:
        return 0
    moved = [Q(handler=handler) & ~Q(queue=queue) for handler, queue in queues.items()]
    queue = Case(*(When(handler=handler, then=Value(queue)) for handler, queue in queues.items()))
    pending = deliveries.pending().filter(Q(*moved, _connector=Q.OR), waits_for="")
    return _change(pending.order_by("available_at", "id"), limit, queue=queue)


def _change(rows: DeliveryQuerySet, limit: int, **changes: object) -> int:
    """Change rows that no other transaction locks; pending ones are due now or later, where scans look."""
    due_at = Case(
        When(_IS_PENDING, then=Greatest("available_at", Now())),
        default=F("available_at"),
        output_field=models.DateTimeField(),
    )
    # The age of a delivery goes on.
    due_since = Case(When(_IS_PENDING & Q(available_at__lt=Now()), then=DUE_SINCE), default=F("due_since"))
    if not list(rows.values_list("pk", flat=True)[:1]):
        # Usually; a transaction would cost two more statements. `exists()` would drop the order.
        return 0
    with brief_transaction(rows.db):
        ids = list(unlocked(rows).values_list("pk", flat=True)[:limit])
        found = rows.model.objects.using(rows.db).filter(pk__in=ids)
        return int(found.update(available_at=due_at, due_since=due_since, **changes))
