"""The recent sends of a signal, read from the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db.models import Subquery, Value
from django.db.models.functions import Coalesce

from outbox.errors import OutboxError
from outbox.events import ReceivedEvent
from outbox.models import Event
from outbox.serialization import decode_many

from .payload import encoded_arguments

# The topic has no index, so the search covers only this many of the newest events.
RECENT_SCAN = 10_000


class _SendGroup:
    """The sends of one query; they are decoded together when the arguments of one send are first read."""

    def __init__(self, payloads: Sequence[Any]) -> None:
        self.payloads = payloads

    @cached_property
    def decoded(self) -> list[dict[str, Any] | OutboxError]:
        """Return the arguments of each send, or the error of its decoding."""
        return decode_many([encoded_arguments(payload) for payload in self.payloads], missing="pass")


@dataclass(frozen=True, slots=True)
class RecordedSend(ReceivedEvent):
    """A recorded send: the event and the arguments of the receivers."""

    _group: _SendGroup = field(default_factory=lambda: _SendGroup([{}]), repr=False, compare=False)
    _position: int = field(default=0, repr=False, compare=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return `sender` and the other arguments; one query per model for all sends of one `recent()` call.

        A deleted instance is None.

        Raises:
            InvalidPayload: if this process cannot decode a value, for example of a class that was renamed.
        """
        decoded = self._group.decoded[self._position]
        if isinstance(decoded, OutboxError):
            raise decoded
        return decoded


def recent_sends(topic: str, limit: int, using: str) -> list[RecordedSend]:
    """Return the latest sends that are stored, newest first."""
    events = Event.objects.using(using)
    # The subquery reads only the primary key index, and the scan ends at `limit`.
    oldest = events.order_by("-pk").values("pk")[RECENT_SCAN - 1 : RECENT_SCAN]
    start = Coalesce(Subquery(oldest), Value(UUID(int=0), output_field=Event._meta.get_field("id")))
    found = list(events.filter(pk__gte=start, topic=topic).order_by("-pk")[:limit])
    group = _SendGroup([event.payload for event in found])
    return [
        RecordedSend(
            id=event.pk,
            topic=event.topic,
            key=event.key,
            payload=event.payload,
            headers=event.headers,
            created_at=event.created_at,
            _group=group,
            _position=position,
        )
        for position, event in enumerate(found)
    ]
