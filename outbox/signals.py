"""Signals that publish their sends, and the sending of any signal in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS
from django.db.models.signals import ModelSignal
from django.dispatch import Signal

from .actors import OutboxActor
from .collectors import Collector, Subscription, carries, collector_of, is_unpublished, register
from .errors import PayloadTooLarge, UnserializableArgument
from .models import Event
from .receivers import receiver
from .recorded import RecordedSend, recent_sends
from .registry import registry
from .signal_names import is_importable, signal_name
from .topics import check_topic

# How many instances one event of a bulk signal carries at most.
CHUNK_SIZE = 500

BACKGROUND_HANDLER = "outbox.send_background"


class PublishingSignal(Signal):
    """A signal that publishes its sends itself, before its ordinary receivers run."""

    collector: Collector

    def _publish(self, sender: Any, named: dict[str, Any]) -> None:
        """Publish one send.

        Raises:
            PublishError: as `outbox.publish()` does.
        """
        raise NotImplementedError

    def _published(self, sender: Any, named: dict[str, Any]) -> dict[str, Any]:
        """Publish one send, unless it already was, and return what ordinary receivers get."""
        if not is_unpublished(self, sender, named):
            self._publish(sender, named)
        return named

    # Published outside of what the robust ones guard: a refusal is the sender's to see, not a response.
    def send(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Publish the send, and call the ordinary receivers as Django does."""
        return super().send(sender, **self._published(sender, named))

    def send_robust(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Publish the send, and call the ordinary receivers, whose errors are returned."""
        return super().send_robust(sender, **self._published(sender, named))

    async def asend(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Do what `send` does from async code."""
        return await super().asend(sender, **await sync_to_async(self._published)(sender, named))

    async def asend_robust(self, sender: Any, **named: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Do what `send_robust` does from async code."""
        return await super().asend_robust(sender, **await sync_to_async(self._published)(sender, named))


class OutboxSignal(PublishingSignal):
    """A signal whose every send is recorded as one event, in the sender's transaction.

    Args:
        topic: of the events, such as `shop.order_status_changed`.
        key: the argument that a send is about, an instance or an id: what `ordered` receivers order by.

    Raises:
        InvalidTopic: if the topic is malformed.
    """

    def __init__(self, topic: str, *, key: str = "instance", use_caching: bool = False) -> None:
        check_topic(topic)
        super().__init__(use_caching)
        self.topic = topic
        self.collector = register(Collector(self, topic=topic, key_argument=key, connected=False))

    def __repr__(self) -> str:
        return f"<OutboxSignal {self.topic}>"

    def has_listeners(self, sender: Any = None) -> bool:
        """Return True: the table listens, so that no caller may leave out a send."""
        return True

    def _publish(self, sender: Any, named: dict[str, Any]) -> None:
        """Record one send, with deliveries to the background receivers."""
        self.collector.publish(sender, named, self.collector.wanted(sender, named))

    def handler(self, **options: Any) -> Callable[[Callable[..., Any]], OutboxActor]:
        """Subscribe a background receiver; the options are those of `outbox.receiver`."""
        return receiver(self, **options)

    def recent(self, limit: int = 10, *, using: str = DEFAULT_DB_ALIAS) -> list[RecordedSend]:
        """Return the latest sends that are stored, newest first.

        Only the newest 10,000 events of all topics are looked at, which bounds the cost without an index.

        Args:
            using: the database alias to read from.
        """
        return recent_sends(self.topic, limit, using)


class BulkSignal(PublishingSignal, ModelSignal):
    """A signal about many rows: all `instances` for ordinary receivers, chunks for background receivers.

    Args:
        snapshots: whether the instances travel with their field values.
    """

    def __init__(self, *, snapshots: bool = False) -> None:
        super().__init__()
        self.collector = register(Collector(self, many="instances", snapshots=snapshots, connected=False))

    def has_listeners(self, sender: Any = None) -> bool:
        """Return whether anybody listens, here or in the background."""
        return bool(self.collector.heard(sender)) or super().has_listeners(sender)

    def reads_instances(self, sender: Any) -> bool:
        """Return whether somebody in this process looks at the instances, and not only at their keys."""
        return super().has_listeners(sender) or any(
            one.when is not None for one in self.collector.heard(sender)
        )

    def _publish(self, sender: Any, named: dict[str, Any]) -> None:
        """Publish one event per chunk, if a background receiver wants it."""
        size = named.pop("chunk_size", CHUNK_SIZE)
        wanted = self.collector.wanted(sender, named)
        rows = named["instances"] if wanted else ()
        for start in range(0, len(rows), size):
            self._publish_chunk(sender, {**named, "instances": rows[start : start + size]}, wanted)

    def _publish_chunk(self, sender: Any, arguments: dict[str, Any], wanted: Sequence[Subscription]) -> None:
        rows = arguments["instances"]
        try:
            self.collector.publish(sender, arguments, wanted)
        except PayloadTooLarge:
            if len(rows) == 1:
                raise
            middle = len(rows) // 2
            for part in (rows[:middle], rows[middle:]):
                self._publish_chunk(sender, {**arguments, "instances": part}, wanted)


bulk_created = BulkSignal()
bulk_updated = BulkSignal()
# The rows are gone by the time a worker would read them.
bulk_deleted = BulkSignal(snapshots=True)


def send_background(signal: Signal, sender: Any = None, **named: Any) -> Event:
    """Send a signal from a worker to all its ordinary receivers, once this transaction has committed.

    Its background receivers get the same event, as if it had been sent here. A receiver that fails fails the
    delivery; a retry calls all of them again.

    Args:
        named: the arguments of the signal; `using` also names the database whose transaction is joined.

    Raises:
        PublishError: as `outbox.publish()` does, and for a signal that a worker could not find.
    """
    name = signal_name(signal)
    if not is_importable(signal):
        raise UnserializableArgument(
            name,
            "signal",
            "no module holds it, so a worker could not find it; define it at the top of a module",
        )
    collector = collector_of(signal)
    here = Subscription(registry.get(BACKGROUND_HANDLER), None, carries(signal))
    return collector.publish(sender, named, [*collector.wanted(sender, named), here])
