"""One send of a signal becomes one event, however many background receivers it has."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db.models import Model
from django.db.models.signals import post_delete, pre_delete, pre_init, pre_save
from django.db.models.utils import make_model_tuple
from django.dispatch import Signal

from .conditions import Condition
from .errors import NotInTransaction
from .models import Event
from .publishing import publish_to
from .registry import Handler, registry
from .serialization import encode_arguments
from .signal_names import signal_name, topic_of

# At these the row is gone, or not there yet, when a worker would look for it.
_SNAPSHOT_SIGNALS = (pre_init, pre_save, pre_delete, post_delete)

Send = tuple[Signal, Any, Mapping[str, Any]]

_unpublished: ContextVar[Send | None] = ContextVar("outbox_unpublished", default=None)


@dataclass(frozen=True)
class Subscription:
    """One background receiver of one signal."""

    handler: Handler
    when: Condition | None
    snapshot: bool


@dataclass(eq=False)
class Collector:
    """What stands for all background receivers of a signal.

    It is an ordinary receiver, connected per sender: a model signal with a receiver for every sender loses
    Django's fast paths (a delete fetches each row first).

    Args:
        topic: of every event; made of the signal and the sender if not given.
        key_argument: the argument that the event is about.
        many: the argument that lists many instances, of which a receiver gets those that still exist.
        snapshots: whether instances travel with their field values unless a receiver says otherwise.
        connected: whether it hears the signal; one that publishes its sends itself is not to be heard too.
    """

    signal: Signal
    topic: str = ""
    key_argument: str = "instance"
    many: str = ""
    snapshots: bool = False
    connected: bool = True
    subscriptions: dict[int | None, list[Subscription]] = field(default_factory=dict)
    senders: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the name of the signal, by which a worker finds it."""
        return signal_name(self.signal)

    def add(self, sender: Any, subscription: Subscription) -> None:
        """Add a receiver, and listen to its sender if that is not done yet."""
        if subscription.when is not None:
            # First, since a condition may have to see the instances that the sender loads.
            subscription.when.bind(sender)
        key = None if sender is None else id(sender)
        if key not in self.subscriptions:
            self._listen(sender)
        self.subscriptions.setdefault(key, []).append(subscription)

    def remove(self, handler_name: str) -> None:
        """Forget the subscriptions of a handler."""
        for subscriptions in self.subscriptions.values():
            subscriptions[:] = [one for one in subscriptions if one.handler.name != handler_name]

    def _listen(self, sender: Any) -> None:
        if self.connected:
            self._connect(sender)
        # Held, so that the id by which its receivers are found stays its own.
        self.senders.append(sender)

    def _connect(self, sender: Any) -> None:
        if sender is None:
            # A receiver for all senders hears each send; the narrower connections would hear it again.
            for narrower in self.senders:
                self.signal.disconnect(sender=narrower, dispatch_uid=self._uid)
        if None not in self.subscriptions:
            self.signal.connect(self.collect, sender=sender, weak=False, dispatch_uid=self._uid)

    @property
    def _uid(self) -> str:
        return f"outbox.{self.name}"

    def heard(self, sender: Any) -> list[Subscription]:
        """Return the background receivers that listen to a sender."""
        return [*self.subscriptions.get(id(sender), ()), *self.subscriptions.get(None, ())]

    def wanted(self, sender: Any, arguments: Mapping[str, Any]) -> list[Subscription]:
        """Return the background receivers whose conditions a send meets."""
        return [one for one in self.heard(sender) if one.when is None or one.when.allows(sender, **arguments)]

    def collect(self, sender: Any, signal: Signal, **arguments: Any) -> None:
        """Publish the send to the background receivers whose conditions it meets."""
        if is_unpublished(signal, sender, arguments):
            return
        wanted = self.wanted(sender, arguments)
        if wanted:
            self.publish(sender, arguments, wanted)

    def publish(self, sender: Any, arguments: Mapping[str, Any], wanted: Sequence[Subscription]) -> Event:
        """Publish a send to background receivers, and to the handlers of its topic.

        Raises:
            PublishError: as `outbox.publish()` does.
        """
        topic = self.topic or topic_of(self.signal, sender)
        handlers = {one.handler.name: one.handler for one in wanted}
        handlers.update({handler.name: handler for handler in registry.subscribed_to(topic)})
        try:
            return publish_to(
                list(handlers.values()),
                topic=topic,
                key=_key_of(arguments.get(self.key_argument)),
                payload=self._payload(sender, arguments, wanted),
                using=arguments.get("using"),
            )
        except NotInTransaction:
            raise NotInTransaction(_outside(topic, handlers)) from None

    def _payload(
        self, sender: Any, arguments: Mapping[str, Any], wanted: Sequence[Subscription]
    ) -> dict[str, Any]:
        name = self.name
        sent = {"sender": sender, **arguments}
        if self.signal in (pre_delete, post_delete):
            # Where the deletion began: a queryset, or another instance whose fields are none of its business.
            sent["origin"] = None
        payload: dict[str, Any] = {"signal": name}
        carried = [one.handler.name for one in wanted if one.snapshot]
        if carried:
            payload["carried"] = carried
            payload["snapshots"] = encode_arguments(sent, signal=name, snapshot=True)
        # What has a topic of its own is read by others than its receivers.
        if self.topic or len(carried) < len(wanted):
            payload["arguments"] = encode_arguments(sent, signal=name)
        extra = {
            one.handler.name: encode_arguments(found, signal=name)
            for one in wanted
            if one.when is not None and (found := one.when.extra(sender, **arguments))  # noqa: S610  # not a QuerySet
        }
        if extra:
            payload["extra"] = extra
        if self.many:
            payload["many"] = self.many
        return payload


def _outside(topic: str, handlers: Iterable[str]) -> str:
    return (
        f"the signal {topic!r} was sent outside a transaction, so its background receivers "
        f"{sorted(handlers)!r} cannot share the fate of what the sender does; wrap the sender in "
        "transaction.atomic(), or a site's requests in ATOMIC_REQUESTS. What was saved before the signal "
        "was sent is saved"
    )


_collectors: dict[int, Collector] = {}


def collector_of(signal: Signal) -> Collector:
    """Return the one collector of a signal."""
    return _collectors.get(id(signal)) or register(Collector(signal))


def register(collector: Collector) -> Collector:
    """Make a collector the one of its signal."""
    return _collectors.setdefault(id(collector.signal), collector)


def subscribe(signal: Signal, sender: Any, subscription: Subscription) -> None:
    """Let a background receiver hear a signal; a sender `"app.Model"` may not be loaded yet."""
    collector = collector_of(signal)
    if isinstance(sender, str):
        apps.lazy_model_operation(lambda model: collector.add(model, subscription), make_model_tuple(sender))
    else:
        collector.add(sender, subscription)


def carries(signal: Signal) -> bool:
    """Return whether a worker would look in vain for the rows of a signal, so that their values travel."""
    return signal in _SNAPSHOT_SIGNALS or collector_of(signal).snapshots


def unsubscribe(handler_name: str) -> None:
    """Let a background receiver hear nothing any more, as tests that declare their own do."""
    for collector in _collectors.values():
        collector.remove(handler_name)


@contextmanager
def unpublished(signal: Signal, sender: Any, arguments: Mapping[str, Any]) -> Generator[None]:
    """Let one send reach ordinary receivers only; what these send in turn is published as ever."""
    token = _unpublished.set((signal, sender, arguments))
    try:
        yield
    finally:
        _unpublished.reset(token)


def is_unpublished(signal: Signal, sender: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether this is the send of the `unpublished()` block, told by its very arguments."""
    send = _unpublished.get()
    return (
        send is not None
        and send[0] is signal
        and send[1] is sender
        and send[2].keys() == arguments.keys()
        and all(send[2][name] is value for name, value in arguments.items())
    )


def _key_of(about: Any) -> str:
    if isinstance(about, Model):
        return "" if about.pk is None else f"{about._meta.label_lower}:{about.pk}"[:255]
    return str(about)[:255] if isinstance(about, (str, int, UUID)) else ""
