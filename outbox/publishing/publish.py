"""Publishing: the write of an event and its deliveries in the caller's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import lru_cache, partial
from itertools import groupby
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox.conf import OutboxSettings, get_settings
from outbox.errors import MissingTables, NotInTransaction, UnknownDatabase, missing_schema
from outbox.models import Delivery, Event, NewDelivery, NewEvent, write_event, write_events
from outbox.observability.telemetry import event_published
from outbox.observability.tracing import tracers
from outbox.registry import Handler, registry
from outbox.uuid7 import uuid7

from .announcing import announce_on_commit
from .notify import wake_after
from .own_transaction import has_own_transaction
from .traced import traced_publish
from .validation import EventData, validate

_NO_TRANSACTION = nullcontext()


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
        key: the subject of the event, such as `order-7`; the ordering key of `ordered` handlers.
        delay: the time until the event is due, by the database clock.
        eta: the moment at which the event is due; must be aware, unless USE_TZ is off.
        headers: JSON that is delivered beside the payload.
        expires: a moment as for `eta`, or a time from now; deliveries not dispatched by then are discarded.
        dedup_key: publish once: while the table has an event of the topic with this key, that event is
            returned and nothing is written.
        using: the alias of the database to write to, `default` if not given.

    Raises:
        NotInTransaction: outside a transaction, unless `REQUIRE_TRANSACTION` is off.
        PublishError: another of its subclasses, for an invalid argument.
    """
    return _publish(EventData(topic, payload, key, delay, eta, headers, expires, dedup_key), None, using)


def publish_many(events: Iterable[EventData | Mapping[str, Any]], *, using: str | None = None) -> list[Event]:
    """Write many events and their deliveries in a few statements, in their order.

    Each event with a dedup key takes one more statement.

    Args:
        events: `EventData`, or mappings with the arguments of `publish`.

    Raises:
        PublishError: as `publish` does, before anything is written.
    """
    if not tracers:
        return _publish_many(map(_as_data, events), using)
    given = list(map(_as_data, events))
    return traced_publish(partial(_publish_many, given, using), [data.topic for data in given], using)


def _publish_many(events: Iterable[EventData], using: str | None) -> list[Event]:
    settings = get_settings()
    connection = _writable(using, settings)
    new = [_prepare(data, settings) for data in events]
    if not new:
        return []
    with _transaction(connection):
        try:
            ids = _write(new, connection)
        except DatabaseError as error:
            _refuse_missing_tables(error, connection)
            raise
        if settings.listen and any(event.deliveries for event in new):
            wake_after(connection)
        if event_published.receivers:
            announce_on_commit(zip(ids, new, strict=True), connection)
    return [_event(pk, event, connection.alias) for pk, event in zip(ids, new, strict=True)]


async def apublish(topic: str, payload: Any = None, **options: Any) -> Event:
    """Publish from async code, with the arguments and errors of `publish`."""
    return await sync_to_async(publish)(topic, payload, **options)


def publish_to(handlers: Sequence[Handler] | None, *, using: str | None = None, **data: Any) -> Event:
    """Write one event with deliveries to the given handlers; None means the handlers of its topic.

    Raises:
        PublishError: as `publish` does.
    """
    return _publish(EventData(**data), handlers, using)


def _publish(data: EventData, handlers: Sequence[Handler] | None, using: str | None) -> Event:
    if not tracers:
        return _publish_one(data, handlers, using)
    return traced_publish(lambda: [_publish_one(data, handlers, using)], [data.topic], using)[0]


def _publish_one(data: EventData, handlers: Sequence[Handler] | None, using: str | None) -> Event:
    # Settings and connection are passed on, because each look-up costs as much as a small function.
    settings = get_settings()
    connection = _writable(using, settings)
    new = _prepare(data, settings, handlers)
    with _transaction(connection):
        try:
            pk = write_event(new, connection)
        except DatabaseError as error:
            _refuse_missing_tables(error, connection)
            raise
        if new.deliveries and settings.listen:
            wake_after(connection)
        if event_published.receivers:
            announce_on_commit([(pk, new)], connection)
    return _event(pk, new, connection.alias)


def _as_data(given: EventData | Mapping[str, Any]) -> EventData:
    return given if isinstance(given, EventData) else EventData(**given)


def _writable(using: str | None, settings: OutboxSettings) -> BaseDatabaseWrapper:
    alias = using or DEFAULT_DB_ALIAS
    if alias not in settings.databases:
        raise UnknownDatabase(_why_unknown(alias, settings))
    connection = connections[alias]
    if settings.require_transaction and not _in_transaction(connection, settings):
        raise NotInTransaction(_why_not_in_transaction(connection))
    return connection


def _in_transaction(connection: BaseDatabaseWrapper, settings: OutboxSettings) -> bool:
    return has_own_transaction(connection) or (connection.in_atomic_block and settings.allow_test_transaction)


def _why_not_in_transaction(connection: BaseDatabaseWrapper) -> str:
    fact = (
        f"publish() was called outside a transaction on database {connection.alias!r}, so the event and your "
        "rows would not be committed together; wrap both in transaction.atomic(), or set "
        "OUTBOX['REQUIRE_TRANSACTION'] = False"
    )
    if not connection.in_atomic_block:
        return fact
    return (
        f"{fact}. The transaction that a TestCase opens around a test does not exist in production; set "
        "OUTBOX['ALLOW_TEST_TRANSACTION'] = True to count it"
    )


def _why_unknown(alias: str, settings: OutboxSettings) -> str:
    if alias in django_settings.DATABASES:
        return f"database {alias!r} is not served by the outbox; add it to OUTBOX['DATABASES']"
    return f"database {alias!r} is not configured; choose from {list(settings.databases)!r}"


def _prepare(
    data: EventData, settings: OutboxSettings, handlers: Sequence[Handler] | None = None
) -> NewEvent:
    payload, headers, due, expires = validate(data, max_payload_bytes=settings.max_payload_bytes)
    if handlers is None:
        handlers = registry.subscribed_to(data.topic)
    return NewEvent(
        id=uuid7(),
        topic=data.topic,
        key=data.key,
        payload=payload,
        headers=headers,
        dedup_key=data.dedup_key,
        deliveries=_deliveries_to(tuple(handlers)),
        due=due,
        expires=expires,
    )


@lru_cache(maxsize=1024)
def _deliveries_to(handlers: tuple[Handler, ...]) -> tuple[NewDelivery, ...]:
    return tuple(map(delivery_to, handlers))


def delivery_to(handler: Handler) -> NewDelivery:
    """Return the delivery of an event to a handler."""
    if handler.batch is None:
        return NewDelivery(handler.name, handler.queue, handler.ordered)
    return NewDelivery(
        handler.name,
        handler.queue,
        handler.ordered,
        waits_for=Delivery.WaitsFor.BATCH.value,
        wait=handler.batch.wait,
    )


def _transaction(connection: BaseDatabaseWrapper) -> AbstractContextManager[None]:
    """Return a context that opens a transaction, unless the caller has opened one."""
    return _NO_TRANSACTION if connection.in_atomic_block else transaction.atomic(using=connection.alias)


def _refuse_missing_tables(error: DatabaseError, connection: BaseDatabaseWrapper) -> None:
    if missing := missing_schema(error):
        raise MissingTables(connection.alias, missing) from error


def _write(events: Sequence[NewEvent], connection: BaseDatabaseWrapper) -> list[UUID]:
    ids = list[UUID]()
    for once, group in groupby(events, key=_has_dedup_key):
        if once:
            ids += [write_event(event, connection) for event in group]
        else:
            plain = list(group)
            write_events(plain, connection)
            ids += [event.id for event in plain]
    return ids


def _has_dedup_key(event: NewEvent) -> bool:
    return event.dedup_key is not None


def _event(pk: UUID, new: NewEvent, alias: str) -> Event:
    # The database sets created_at, and most callers need only the id. Other fields are read on first use.
    event = Event.written(alias, pk, new.topic)
    if pk == new.id:
        event.key = new.key
    return event
