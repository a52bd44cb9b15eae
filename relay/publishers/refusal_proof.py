"""The proof that a broker refuses one message, and is not away or overloaded."""

from __future__ import annotations

from collections.abc import Iterable

from relay.messages.single import OutgoingMessage

from .base import Refusal

# The relay forgets the failures of more messages than this. Each of them then needs a new proof.
MAX_REMEMBERED = 10_000


class RefusalProof:
    """The failures of one broker's messages, whose exceptions do not tell a refusal from an outage.

    A failure is a refusal if the broker has taken another message since the last failure of the same message.
    """

    def __init__(self) -> None:
        self._taken = 0
        # By delivery: how many messages the broker had taken when it last failed.
        self._failed: dict[int, int] = {}

    def note_taken(self, messages: Iterable[OutgoingMessage]) -> None:
        """Remember that the broker has taken messages."""
        self._taken += 1
        if self._failed:
            for message in messages:
                self._failed.pop(message.delivery_id, None)

    def judge(self, message: OutgoingMessage, error: str) -> Refusal:
        """Return the failure of a message as a proved refusal, or as one that costs no attempt."""
        before = self._failed.get(message.delivery_id)
        if len(self._failed) >= MAX_REMEMBERED:
            self._failed.clear()
        self._failed[message.delivery_id] = self._taken
        return Refusal(message, error, is_proved=before is not None and before != self._taken)
