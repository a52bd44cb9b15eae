"""`OutboxSignal`: a signal that records every send."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS

from outbox.topics import check_topic

from .history import RecordedSend, recent_sends
from .publishing_signal import PublishingSignal
from .receiver import receiver
from .recorder import Recorder, register


class OutboxSignal(PublishingSignal):
    """A signal that records every send as one event, in the sender's transaction.

    Args:
        topic: of the events, such as `shop.order_status_changed`.
        key: the argument, an instance or an id, that gives the event its key, for `ordered` receivers.

    Raises:
        InvalidTopic: if the topic is malformed.
    """

    def __init__(self, topic: str, *, key: str = "instance", use_caching: bool = False) -> None:
        check_topic(topic)
        super().__init__(use_caching)
        self.topic = topic
        self.recorder = register(Recorder(self, topic=topic, key_argument=key, connected=False))

    def __repr__(self) -> str:
        return f"<OutboxSignal {self.topic}>"

    # As a method, the signature stays that of `receiver` without its first argument: `signal.handler(…)`.
    handler = receiver

    def has_listeners(self, sender: Any = None) -> bool:
        """Return True, because every send is recorded: no caller may skip a send."""
        return True

    def _publish(self, sender: Any, named: dict[str, Any]) -> None:
        """Record one send, with deliveries to the background receivers."""
        self.recorder.publish(sender, named, self.recorder.matching(sender, named))

    def recent(self, limit: int = 10, *, using: str = DEFAULT_DB_ALIAS) -> list[RecordedSend]:
        """Return the latest sends that are stored, newest first.

        The search covers only the newest 10,000 events of all topics, which bounds its cost without an index.

        Args:
            using: the database alias to read from.
        """
        return recent_sends(self.topic, limit, using)
