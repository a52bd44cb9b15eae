"""Find the message that costs the connection to a broker, by halving its batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from outbox.errors import BrokerUnavailable

from .base import EncodedMessage, PartlySent, Refusal
from .refusal_proof import RefusalProof

# So many messages that fail alone end a batch of which none was sent.
MAX_FAILURES = 10


class ConnectionDropped(BrokerUnavailable):
    """Raised when a broker closed the connection on which messages were sent."""


class IsolatingSender:
    """Sends a batch; if it costs the connection and the broker still answers, sends its halves.

    A broker may close the connection because of one message, for example one over its size limit.

    Args:
        send: sends messages; returns those that were refused.
        probe: opens a new connection, and waits for an answer of the broker.
    """

    def __init__(
        self,
        *,
        send: Callable[[Sequence[EncodedMessage]], list[Refusal]],
        probe: Callable[[], None],
    ) -> None:
        self._send = send
        self._probe = probe
        self._proof = RefusalProof()

    def send(self, batch: Sequence[EncodedMessage], *, deadline: float) -> list[Refusal]:
        """Send a batch; return the messages that were not sent.

        Raises:
            PartlySent: if the broker became unreachable, or the deadline passed, after some parts were sent.
            BrokerUnavailable: the same before.
        """
        refusals: list[Refusal] = []
        parts, sent, failed = [batch], 0, 0
        retried: Sequence[EncodedMessage] = ()
        while parts:
            part = parts.pop()
            try:
                if time.monotonic() >= deadline or (failed == MAX_FAILURES and not sent):
                    raise BrokerUnavailable(f"the broker closed the connection, and took {sent} messages")
                refused = self._send_or_probe(part)
            except BrokerUnavailable as problem:
                if not sent:
                    raise
                unsent = [encoded.outgoing for rest in (part, *reversed(parts)) for encoded in rest]
                raise PartlySent(str(problem), unsent, refusals) from problem
            if isinstance(refused, list):
                sent += len(part) - len(refused)
                refusals += refused
                if len(refused) < len(part):
                    self._proof.note_taken(encoded.outgoing for encoded in part)
            elif len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            elif part is not retried:
                # The network may have closed the connection.
                retried = part
                parts.append(part)
            else:
                failed += 1
                refusals.append(self._proof.judge(part[0].outgoing, str(refused)))
        return refusals

    def _send_or_probe(self, part: Sequence[EncodedMessage]) -> list[Refusal] | ConnectionDropped:
        """Return the refused messages, or the problem if the broker closed the connection and answers again.

        Raises:
            BrokerUnavailable: if the broker does not answer.
        """
        try:
            return self._send(part)
        except ConnectionDropped as problem:
            self._probe()
            return problem
