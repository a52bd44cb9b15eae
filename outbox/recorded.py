"""Sends of a signal, read back from the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db.models import Subquery, Value
from django.db.models.functions import Coalesce

from .errors import OutboxError
from .events import ReceivedEvent
from .models import Event
from .serialization import decode_many

# The topic has no index, so the latest sends are looked for among this many of the newest events.
RECENT_SCAN = 10_000


class _Batch:
    """The sends of one reading, decoded together when the arguments of one of them are first read."""

    def __init__(self, payloads: Sequence[Any]) -> None:
        self.payloads = payloads

    @cached_property
    def decoded(self) -> list[dict[str, Any] | OutboxError]:
        """Return the arguments of each, or what stands in the way."""
        return decode_many([_encoded(payload) for payload in self.payloads], missing="pass")


@dataclass(frozen=True, slots=True)
class RecordedSend(ReceivedEvent):
    """A send that was recorded: the event, and the arguments that receivers got."""

    _batch: _Batch = field(default_factory=lambda: _Batch([{}]), repr=False, compare=False)
    _position: int = field(default=0, repr=False, compare=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return `sender` and the other arguments; one query per model for all that was read together.

        An instance that is gone is None.

        Raises:
            InvalidPayload: for what this process cannot decode, such as a class that was renamed since.
        """
        decoded = self._batch.decoded[self._position]
        if isinstance(decoded, OutboxError):
            raise decoded
        return decoded


def recent_sends(topic: str, limit: int, using: str) -> list[RecordedSend]:
    """Return the latest sends that are stored, newest first."""
    events = Event.objects.using(using)
    # The start of the scan is found in the primary key alone, and the scan ends at `limit`.
    oldest = events.order_by("-pk").values("pk")[RECENT_SCAN - 1 : RECENT_SCAN]
    start = Coalesce(Subquery(oldest), Value(UUID(int=0), output_field=Event._meta.get_field("id")))
    found = list(events.filter(pk__gte=start, topic=topic).order_by("-pk")[:limit])
    batch = _Batch([event.payload for event in found])
    return [
        RecordedSend(
            id=event.pk,
            topic=event.topic,
            key=event.key,
            payload=event.payload,
            headers=event.headers,
            created_at=event.created_at,
            _batch=batch,
            _position=position,
        )
        for position, event in enumerate(found)
    ]


def _encoded(payload: Any) -> Mapping[str, Any]:
    # Somebody may have published to the topic by hand.
    arguments = payload.get("arguments") if isinstance(payload, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}
