"""The recorder of a signal: one send is one event, for any number of background receivers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db.models import Model
from django.db.models.signals import post_delete, pre_delete, pre_init, pre_save
from django.dispatch import Signal

from outbox.conditions import Condition
from outbox.conditions.lazy import when_loaded
from outbox.errors import NotInTransaction
from outbox.models import Event
from outbox.publishing.publish import publish_to
from outbox.registry import Handler, registry

from .abstract_senders import for_each_concrete, is_abstract
from .names import signal_name, topic_of
from .payload import encode_send
from .refusals import report_refusal
from .unpublished import is_unpublished

# A worker cannot read the row of these signals: it does not exist yet, or no longer.
_SNAPSHOT_SIGNALS = (pre_init, pre_save, pre_delete, post_delete)


@dataclass(frozen=True)
class Subscription:
    """The subscription of one background receiver to one signal.

    Args:
        snapshot: whether the receiver gets saved instances with their field values instead of reading rows.
    """

    handler: Handler
    when: Condition | None
    snapshot: bool


@dataclass(eq=False)
class Recorder:
    """Publish the sends of one signal to its background receivers.

    The recorder is an ordinary receiver of the signal. It is connected per sender, because a model signal
    with a receiver for all senders loses Django's fast paths: a delete then fetches each row first.

    Args:
        topic: of every event; if empty, it is made of the signal and the sender.
        key_argument: the argument that gives the event its key.
        instances_argument: the argument that lists the instances of a bulk operation. A receiver gets the
            instances that still exist.
        snapshots: whether instances are stored with their field values unless a receiver says otherwise.
        connected: whether the recorder is connected to the signal; False if the signal calls the recorder.
    """

    signal: Signal
    topic: str = ""
    key_argument: str = "instance"
    instances_argument: str = ""
    snapshots: bool = False
    connected: bool = True
    subscriptions: dict[int | None, list[Subscription]] = field(default_factory=dict)
    senders: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the name by which a worker finds the signal."""
        return signal_name(self.signal)

    def subscribe(self, sender: Any, subscription: Subscription) -> None:
        """Add a background receiver, and connect the recorder to its sender if it is not connected yet."""
        if subscription.when is not None:
            # First, because a condition may track the instances that the sender loads.
            subscription.when.bind(sender)
        key = None if sender is None else id(sender)
        if key not in self.subscriptions:
            self._connect(sender)
            # The reference keeps the sender alive, so that no other object can get its id.
            self.senders.append(sender)
        self.subscriptions.setdefault(key, []).append(subscription)

    def unsubscribe(self, handler_name: str) -> None:
        """Remove the subscriptions of a handler, and disconnect the senders that have no other."""
        for sender in list(self.senders):
            key = None if sender is None else id(sender)
            left = [one for one in self.subscriptions[key] if one.handler.name != handler_name]
            self.subscriptions[key] = left
            if not left:
                self._disconnect(sender)

    def _connect(self, sender: Any) -> None:
        if not self.connected:
            return
        if sender is None:
            # A connection to all senders gets each send; the connections to single senders would repeat it.
            for single in self.senders:
                self.signal.disconnect(sender=single, dispatch_uid=self._uid)
        if None not in self.subscriptions:
            self.signal.connect(self.record, sender=sender, weak=False, dispatch_uid=self._uid)

    def _disconnect(self, sender: Any) -> None:
        del self.subscriptions[None if sender is None else id(sender)]
        self.senders.remove(sender)
        if not self.connected:
            return
        self.signal.disconnect(sender=sender, dispatch_uid=self._uid)
        if sender is None:
            # The connection to all senders had replaced these.
            for single in self.senders:
                self.signal.connect(self.record, sender=single, weak=False, dispatch_uid=self._uid)

    @property
    def _uid(self) -> str:
        return f"outbox.{self.name}"

    def subscribed_to(self, sender: Any) -> list[Subscription]:
        """Return the subscriptions to a sender."""
        return [*self.subscriptions.get(id(sender), ()), *self.subscriptions.get(None, ())]

    def matching(self, sender: Any, arguments: Mapping[str, Any]) -> list[Subscription]:
        """Return the subscriptions to a sender whose conditions allow the send."""
        return [
            one
            for one in self.subscribed_to(sender)
            if one.when is None or one.when.allows(sender, **arguments)
        ]

    def record(self, sender: Any, signal: Signal, **arguments: Any) -> None:
        """Publish a send to the background receivers whose conditions allow it."""
        if is_unpublished(signal, sender, arguments):
            return
        try:
            subscriptions = self.matching(sender, arguments)
            if subscriptions:
                self.publish(sender, arguments, subscriptions)
        except Exception as error:
            handlers = [one.handler.name for one in self.subscribed_to(sender)]
            report_refusal(topic_of(signal, sender), handlers, error, arguments.get("using"))
            raise

    def publish(
        self, sender: Any, arguments: Mapping[str, Any], subscriptions: Sequence[Subscription]
    ) -> Event:
        """Publish a send to background receivers, and to the handlers of its topic.

        Raises:
            PublishError: as `outbox.publish()` does.
        """
        topic = self.topic or topic_of(self.signal, sender)
        handlers = {one.handler.name: one.handler for one in subscriptions}
        handlers.update({handler.name: handler for handler in registry.subscribed_to(topic)})
        try:
            return publish_to(
                list(handlers.values()),
                topic=topic,
                key=_key_of(arguments.get(self.key_argument)),
                payload=self._payload(sender, arguments, subscriptions),
                using=arguments.get("using"),
            )
        except NotInTransaction:
            raise NotInTransaction(_not_in_transaction(topic, handlers)) from None

    def _payload(
        self, sender: Any, arguments: Mapping[str, Any], subscriptions: Sequence[Subscription]
    ) -> dict[str, Any]:
        sent = {"sender": sender, **arguments}
        if self.signal in (pre_delete, post_delete):
            # The origin of the deletion is a queryset, or another instance that this event need not store.
            sent["origin"] = None
        snapshot_handlers = [one.handler.name for one in subscriptions if one.snapshot]
        return encode_send(
            self.name,
            sent,
            # The handlers of a signal's own topic, and recent(), read the arguments with references.
            with_references=bool(self.topic) or len(snapshot_handlers) < len(subscriptions),
            snapshot_handlers=snapshot_handlers,
            condition_arguments={
                one.handler.name: added
                for one in subscriptions
                if one.when is not None and (added := one.when.extra(sender, **arguments))  # noqa: S610  # not a QuerySet
            },
            instances_argument=self.instances_argument,
        )


def _key_of(value: Any) -> str:
    if isinstance(value, Model):
        return "" if value.pk is None else f"{value._meta.label_lower}:{value.pk}"[:255]
    return str(value)[:255] if isinstance(value, (str, int, UUID)) else ""


def _not_in_transaction(topic: str, handlers: Iterable[str]) -> str:
    return (
        f"the signal {topic!r} was sent outside a transaction, so the deliveries to its background receivers "
        f"{sorted(handlers)!r} could not commit or roll back together with the sender's changes; wrap the "
        "sender in transaction.atomic(), or set ATOMIC_REQUESTS for the requests of a site. Rows that were "
        "saved before the signal was sent stay saved"
    )


_recorders: dict[int, Recorder] = {}


def recorder_for(signal: Signal) -> Recorder:
    """Return the recorder of a signal; create it at the first call."""
    return _recorders.get(id(signal)) or register(Recorder(signal))


def register(recorder: Recorder) -> Recorder:
    """Register a recorder, unless its signal has one, and return the recorder of the signal."""
    return _recorders.setdefault(id(recorder.signal), recorder)


def subscribe(signal: Signal, sender: Any, subscription: Subscription) -> None:
    """Subscribe a background receiver.

    A sender `"app.Model"` is subscribed to when its model is loaded, an abstract one in its concrete models.
    """
    recorder = recorder_for(signal)

    def subscribe_to(model: type[Model]) -> None:
        if registry.handlers.get(subscription.handler.name) is subscription.handler:
            recorder.subscribe(model, subscription)

    if isinstance(sender, str):
        owner = f"The receiver {subscription.handler.name!r} with sender={sender!r}"
        when_loaded(sender, subscribe_to, owner=owner)
    elif is_abstract(sender):
        for_each_concrete(sender, subscribe_to)
    else:
        recorder.subscribe(sender, subscription)


def needs_snapshot(signal: Signal) -> bool:
    """Return whether events of a signal store field values by default, instead of references to rows."""
    return signal in _SNAPSHOT_SIGNALS or recorder_for(signal).snapshots


def unsubscribe(handler_name: str) -> None:
    """Remove all subscriptions of a handler; for tests that declare their own handlers."""
    for recorder in _recorders.values():
        recorder.unsubscribe(handler_name)
