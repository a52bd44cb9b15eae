"""Publishing: an event and its deliveries become rows of the caller's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
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
from .models import Delivery, Event, NewDelivery, NewEvent, record_events
from .registry import Handler, registry
from .serialization import dump_json
from .topics import check_topic
from .uuid7 import uuid7
from .wakeup import wake_after


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
    return _record(new, connection, settings)


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
    return _record([_prepare(data, settings, handlers)], connection, settings)[0]


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
    headers_text = dump_json(headers, path="headers") if headers else "{}"
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
        deliveries=[delivery_to(handler, data.key) for handler in handlers],
        due=due_at(data.delay, data.eta),
        expires=expiry(data.expires),
    )


def delivery_to(handler: Handler, key: str) -> NewDelivery:
    """Return the delivery of an event with a key to a handler."""
    lane = key if handler.ordered else ""
    if handler.batch is None:
        return NewDelivery(handler.name, handler.queue, lane)
    held = Delivery.Held.BATCH.value
    return NewDelivery(handler.name, handler.queue, lane, held=held, wait=handler.batch.wait)


def _record(
    events: Sequence[NewEvent], connection: BaseDatabaseWrapper, settings: OutboxSettings
) -> list[Event]:
    if not events:
        return []
    alias = connection.alias
    # Within the caller's transaction; without one, all of them or none.
    with nullcontext() if connection.in_atomic_block else transaction.atomic(using=alias):
        ids = _write(events, alias)
        if settings.listen and any(event.deliveries for event in events):
            wake_after(connection)
    return [_event(pk, event, alias) for pk, event in zip(ids, events, strict=True)]


def _write(events: Sequence[NewEvent], alias: str) -> list[UUID]:
    ids = list[UUID]()
    for once, some in groupby(events, key=_has_dedup_key):
        if once:
            ids += [Event.objects.using(alias).record_once(event) for event in some]
        else:
            run = list(some)
            record_events(run, alias)
            ids += [event.id for event in run]
    return ids


def _has_dedup_key(event: NewEvent) -> bool:
    return event.dedup_key is not None


def _event(pk: UUID, new: NewEvent, alias: str) -> Event:
    # The other fields are read on first use: created_at is the database's to say, and most callers want
    # no more than the id.
    if pk == new.id:
        return Event.from_db(alias, ("id", "topic", "key"), new[:3])
    return Event.from_db(alias, ("id", "topic"), (pk, new.topic))
