"""Publishing: an event and its deliveries become rows of the caller's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .arguments import check_key, check_size, due_at, expiry
from .conf import OutboxSettings, get_settings
from .contexts import headers_for
from .errors import NotInTransaction, UnknownDatabase
from .models import NO_HEADERS, Delivery, Event, NewDelivery, NewEvent, record_event, record_events
from .registry import Handler, registry
from .serialization import dump_json
from .topics import check_topic
from .uuid7 import uuid7
from .wakeup import wake_after

_AS_IT_IS = nullcontext()


class EventData(NamedTuple):
    """One event for `publish_many`; the fields are the arguments of `publish`."""

    topic: str
    payload: Any = None
    key: str = ""
    delay: timedelta | None = None
    eta: datetime | None = None
    headers: Mapping[str, Any] | None = None
    expires: datetime | timedelta | None = None
    dedup_key: str | None = None


def publish(
    topic: str,
    payload: Any = None,
    *,
    key: str = "",
    delay: timedelta | None = None,
    eta: datetime | None = None,
    headers: Mapping[str, Any] | None = None,
    expires: datetime | timedelta | None = None,
    dedup_key: str | None = None,
    using: str | None = None,
) -> Event:
    """Write an event, and a delivery to each handler of its topic, in the current transaction.

    Args:
        topic: a dotted name, such as `shop.order_paid`.
        payload: anything that JSON carries without loss.
        key: what the event is about; orders the deliveries of `ordered` handlers.
        delay: deliver no earlier than this after now, by the database clock.
        eta: deliver no earlier than this moment (aware).
        headers: JSON that travels beside the payload.
        expires: discard what is not dispatched by then: an aware moment, or how long from now.
        dedup_key: publish once: a second event of the topic with this key is not written, and the first one
            is returned, as long as it is in the table.
        using: the database alias whose transaction it joins, `default` if not given.

    Raises:
        NotInTransaction: outside a transaction, unless `REQUIRE_TRANSACTION` is off.
        PublishError: one of its other kinds, for an argument that is refused.
    """
    return _publish(EventData(topic, payload, key, delay, eta, headers, expires, dedup_key), None, using)


def publish_many(events: Iterable[EventData | Mapping[str, Any]], *, using: str | None = None) -> list[Event]:
    """Write many events and their deliveries in a few statements; the order is kept.

    An event with a dedup key takes a statement of its own.

    Args:
        events: `EventData`, or mappings with the arguments of `publish`.

    Raises:
        PublishError: as `publish` does, before anything is written.
    """
    settings = get_settings()
    connection = _writable(using, settings)
    new = [_prepare(data, settings) for data in map(_as_data, events)]
    if not new:
        return []
    with _in_transaction(connection):
        ids = _write(new, connection)
        if settings.listen and any(event.deliveries for event in new):
            wake_after(connection)
    return [_event(pk, event, connection.alias) for pk, event in zip(ids, new, strict=True)]


async def apublish(topic: str, payload: Any = None, **options: Any) -> Event:
    """Publish from async code; arguments and errors are those of `publish`."""
    return await sync_to_async(publish)(topic, payload, **options)


def publish_to(handlers: Sequence[Handler] | None, *, using: str | None = None, **data: Any) -> Event:
    """Write one event with deliveries to the given handlers; None means those of its topic.

    Raises:
        PublishError: as `publish` does.
    """
    return _publish(EventData(**data), handlers, using)


def _publish(data: EventData, handlers: Sequence[Handler] | None, using: str | None) -> Event:
    # Settings and connection are looked up once and handed on: a look-up costs as much as a small function.
    settings = get_settings()
    connection = _writable(using, settings)
    new = _prepare(data, settings, handlers)
    with _in_transaction(connection):
        pk = record_event(new, connection)
        if new.deliveries and settings.listen:
            wake_after(connection)
    return _event(pk, new, connection.alias)


def _as_data(given: EventData | Mapping[str, Any]) -> EventData:
    return given if isinstance(given, EventData) else EventData(**given)


def _writable(using: str | None, settings: OutboxSettings) -> BaseDatabaseWrapper:
    alias = using or DEFAULT_DB_ALIAS
    if alias not in settings.databases:
        raise UnknownDatabase(_why_unknown(alias, settings))
    connection = connections[alias]
    if settings.require_transaction and not connection.in_atomic_block:
        raise NotInTransaction(
            f"publish() was called outside a transaction on database {alias!r}, so the event could not share "
            "the fate of your rows; wrap both in transaction.atomic(), or set "
            "OUTBOX['REQUIRE_TRANSACTION'] = False"
        )
    return connection


def _why_unknown(alias: str, settings: OutboxSettings) -> str:
    if alias in django_settings.DATABASES:
        return f"database {alias!r} is not served by the outbox; add it to OUTBOX['DATABASES']"
    return f"database {alias!r} is not configured; choose from {list(settings.databases)!r}"


def _prepare(
    data: EventData, settings: OutboxSettings, handlers: Sequence[Handler] | None = None
) -> NewEvent:
    check_topic(data.topic)
    check_key("key", data.key)
    if data.dedup_key is not None:
        check_key("dedup_key", data.dedup_key)
    payload = dump_json(data.payload)
    headers = headers_for(data.headers)
    headers_text = dump_json(headers, path="headers") if headers else NO_HEADERS
    check_size(data.topic, payload, headers_text, settings.max_payload_bytes)
    if handlers is None:
        handlers = registry.subscribed_to(data.topic)
    return NewEvent(
        id=uuid7(),
        topic=data.topic,
        key=data.key,
        payload=payload,
        headers=headers_text,
        dedup_key=data.dedup_key,
        deliveries=_deliveries_to(tuple(handlers)),
        due=due_at(data.delay, data.eta),
        expires=expiry(data.expires),
    )


@lru_cache(maxsize=1024)
def _deliveries_to(handlers: tuple[Handler, ...]) -> tuple[NewDelivery, ...]:
    return tuple(map(delivery_to, handlers))


def delivery_to(handler: Handler) -> NewDelivery:
    """Return the delivery of an event to a handler."""
    if handler.batch is None:
        return NewDelivery(handler.name, handler.queue, handler.ordered)
    held = Delivery.Held.BATCH.value
    return NewDelivery(handler.name, handler.queue, handler.ordered, held=held, wait=handler.batch.wait)


def _in_transaction(connection: BaseDatabaseWrapper) -> AbstractContextManager[None]:
    """Return the caller's transaction, or else one of our own: all is written, or nothing."""
    return _AS_IT_IS if connection.in_atomic_block else transaction.atomic(using=connection.alias)


def _write(events: Sequence[NewEvent], connection: BaseDatabaseWrapper) -> list[UUID]:
    ids = list[UUID]()
    for once, some in groupby(events, key=_has_dedup_key):
        if once:
            ids += [record_event(event, connection) for event in some]
        else:
            run = list(some)
            record_events(run, connection)
            ids += [event.id for event in run]
    return ids


def _has_dedup_key(event: NewEvent) -> bool:
    return event.dedup_key is not None


def _event(pk: UUID, new: NewEvent, alias: str) -> Event:
    # created_at is the database's to say, and most callers want no more than the id.
    event = Event.written(alias, pk, new.topic)
    if pk == new.id:
        event.key = new.key
    return event
