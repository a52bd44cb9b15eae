"""Publish a whole batch to Redis in one atomic round trip."""

from __future__ import annotations

import copy
import hashlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from dramatiq import Broker, Message
from dramatiq.brokers.redis import MAINTENANCE_SCALE, RedisBroker
from dramatiq.common import current_millis, dq_name
from redis.connection import ConnectionPool
from redis.exceptions import RedisError, ResponseError

from outbox.errors import BrokerUnavailable
from relay.copies import Overdue, copy_id, copy_ids
from relay.deadlines import within
from relay.messages import Outgoing
from relay.publishers.base import (
    DEEP_QUEUE,
    PROBE_INTERVAL_S,
    Parcel,
    Refusal,
    describe,
    pack,
    unpack,
)
from relay.publishers.redis_connection import Command, Connection, own_connection, packed, reply

logger = logging.getLogger(__name__)

# SHA-256 of dispatch.lua, without comments and blank lines, as Dramatiq 2.0.0 to 2.2.1 have it.
KNOWN_SCRIPTS = {"068681b6124870190eb1b15655e25b32b5ad8de21827a2cd3712445b03377b19"}

# How many values the script may unpack at once. RedisBroker asks the server how many it may; fewer at a time
# only take more steps.
MAX_UNPACK_SIZE = 500

DEFAULT_TIMEOUT_S = 10.0

# To connect, to send and to receive each get their share of the time.
STEPS = 3


class RedisPublisher:
    """Leave in Redis what `RedisBroker.enqueue` leaves there, by variadic commands in one transaction.

    The connection is one of its own: the broker's may wait and retry for longer than a claim may last.
    """

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker
        self._connection: Connection | None = None
        self._timeout_s = DEFAULT_TIMEOUT_S
        self._answered_at = 0.0

    def probe(self) -> None:
        """Connect, or see whether a connection that has been idle still stands."""
        if self._connection is None or time.monotonic() - self._answered_at >= PROBE_INTERVAL_S:
            self._exchange([("PING",)])

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> list[Refusal]:
        """Send the batch in one transaction, and return the messages that did not go.

        Those are what cannot be encoded, and all for a queue whose keys hold something else.
        """
        self._limit(timeout_s)
        options = ({"redis_message_id": copy_id(one)} for one in outgoing)
        parcels, refusals = pack(self._broker, outgoing, options)
        if not parcels:
            return refusals
        queues = _by_queue(parcels)
        for queue, error in self._enqueue(queues).items():
            refusals += [Refusal(parcel.outgoing, describe(error)) for parcel in queues.pop(queue)]
        for sent in queues.values():
            unpack(self._broker, sent)
        return refusals

    def holds(self, overdue: Sequence[Overdue], *, timeout_s: float) -> set[int]:
        """Return the deliveries whose message waits in Redis, or is with a worker that has not done with it.

        Workers that died give theirs back first. A copy that Dramatiq made for a retry has an id of its own:
        it may be there as long as the queue is deep.
        """
        self._limit(timeout_s)
        queues = list({row.queue: None for row in overdue})
        # Deliveries that may have shared a message share its id.
        ids = {row.delivery_id: [(row.queue, one) for one in copy_ids(row)] for row in overdue}
        asked = list({pair: None for pairs in ids.values() for pair in pairs})
        upkeep = [self._maintenance(name, current_millis()) for q in queues for name in (q, dq_name(q))]
        sizes = [("HLEN", self._bodies(name)) for q in queues for name in (q, dq_name(q))]
        found = [("HEXISTS", self._bodies(queue), one) for queue, one in asked]
        answers = self._exchange([*upkeep, *sizes, *found])[len(upkeep) :]
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise BrokerUnavailable(describe(answer)) from answer
        depths = answers[: len(sizes)]
        deep = {
            q for q, *depth in zip(queues, depths[::2], depths[1::2], strict=True) if sum(depth) > DEEP_QUEUE
        }
        held = {pair for pair, answer in zip(asked, answers[len(sizes) :], strict=True) if answer}
        there = {delivery for delivery, pairs in ids.items() if not held.isdisjoint(pairs)}
        return there | {row.delivery_id for row in overdue if row.retried and row.queue in deep}

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _limit(self, timeout_s: float) -> None:
        if timeout_s != self._timeout_s:
            self.close()
            self._timeout_s = timeout_s

    def _bodies(self, queue: str) -> str:
        return f"{self._broker.namespace}:{queue}.msgs"

    def _enqueue(self, queues: Mapping[str, list[Parcel]]) -> dict[str, ResponseError]:
        """Enqueue messages by queue; return the queues that could not take theirs, and why."""
        owners, commands = zip(*self._commands(queues), strict=True)
        *queued, done = self._exchange([("MULTI",), *commands, ("EXEC",)])
        for answer in (*queued, done):
            # Out of memory, read-only, still loading: Redis then takes nothing from anyone.
            if isinstance(answer, ResponseError):
                self.close()
                raise BrokerUnavailable(describe(answer)) from answer
        failed: dict[str, ResponseError] = {}
        for owner, answer in zip(owners, done, strict=True):
            if isinstance(answer, ResponseError):
                if owner is None:
                    logger.warning(
                        "the upkeep of Redis that goes with enqueueing failed: %s", describe(answer)
                    )
                else:
                    failed[owner] = answer
        return failed

    def _commands(self, queues: Mapping[str, list[Parcel]]) -> Iterator[tuple[str | None, Command]]:
        """Yield what dispatch.lua does, in its order, each with the queue that suffers if it fails."""
        now, namespace = current_millis(), self._broker.namespace
        # A process that only enqueues counts as alive, too.
        yield None, ("ZADD", f"{namespace}:__heartbeats__", now, self._broker.broker_id)
        for queue, parcels in queues.items():
            if self._is_maintenance_due(len(parcels)):
                yield None, self._maintenance(queue, now)
            messages = [field for p in parcels for field in (p.options["redis_message_id"], p.body)]
            yield queue, ("HSET", self._bodies(queue), *messages)
            yield queue, ("RPUSH", f"{namespace}:{queue}", *messages[::2])

    def _is_maintenance_due(self, count: int) -> bool:
        """Draw as often as RedisBroker would for so many messages, but once."""
        chance: float = 1 - (1 - self._broker.maintenance_chance / MAINTENANCE_SCALE) ** count
        return random.random() < chance  # noqa: S311 - decides on housekeeping only

    def _maintenance(self, queue: str, now: int) -> Command:
        """Return a call of dispatch.lua that has no effect but its maintenance."""
        broker = self._broker
        # The source and not its digest: a server that does not know it yet would fail within the transaction.
        return (
            *("EVAL", broker.scripts["dispatch"].script, 1, broker.namespace),
            *("qsize", now, queue, broker.broker_id),
            *(broker.heartbeat_timeout, broker.dead_message_ttl, 1, MAX_UNPACK_SIZE),
        )

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one go and return the replies, errors of single commands among them."""
        try:
            connection = self._connected()
            connection.send_packed_command(packed(connection, commands))
            replies = [reply(connection) for _ in commands]
        except (RedisError, OSError) as error:
            self.close()
            raise BrokerUnavailable(describe(error)) from error
        self._answered_at = time.monotonic()
        return replies

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = own_connection(self._broker, self._timeout_s / STEPS)
            # Nothing else bounds the look-up of a name, several addresses, or the search for a master.
            within(self._timeout_s / STEPS, connection.connect, undo=connection.disconnect)
            self._connection = connection
        return self._connection


def knows(broker: Broker) -> TypeGuard[RedisBroker]:
    """Say whether this broker keeps its messages the way this module does; if not, log why."""
    if not isinstance(broker, RedisBroker) or _is_customized(broker):
        return False
    reason = None
    if not isinstance(getattr(broker.client, "connection_pool", None), ConnectionPool):
        reason = f"{type(broker.client).__name__} has no connection pool"
    elif _digest(broker.scripts["dispatch"].script) not in KNOWN_SCRIPTS or not _enqueues_as_known(broker):
        reason = "this version of Dramatiq keeps its messages in a way that is not known here"
    if reason:
        logger.warning("messages go to Redis one at a time, which is slow: %s", reason)
    return reason is None


def _is_customized(broker: RedisBroker) -> bool:
    names = ("enqueue", "do_enqueue", "_dispatch", "__getattr__")
    return any(name in vars(broker) for name in names) or any(
        getattr(type(broker), name, None) is not getattr(RedisBroker, name, None) for name in names
    )


def _digest(script: Any) -> str:
    source = script.decode() if isinstance(script, bytes) else str(script)
    lines = (line.partition("--")[0].rstrip() for line in source.splitlines())
    return hashlib.sha256("".join(f"{line}\n" for line in lines if line).encode()).hexdigest()


def _enqueues_as_known(broker: RedisBroker) -> bool:
    """Let a copy of the broker, cut off from Redis, enqueue a message, and see what it would send."""
    sent: list[tuple[Any, ...]] = []
    stand_in = copy.copy(broker)
    stand_in.middleware = []
    vars(stand_in)["do_enqueue"] = lambda *args: sent.append(args)
    message = Message[Any]("queue", "actor", (), {}, {"outbox": {}})
    stand_in.enqueue(message)
    match sent:
        case [(str() as queue, str() as redis_id, bytes() as body)]:
            return queue == "queue" and body == message.copy(options={"redis_message_id": redis_id}).encode()
    return False


def _by_queue(parcels: Iterable[Parcel]) -> dict[str, list[Parcel]]:
    queues: dict[str, list[Parcel]] = defaultdict(list)
    for parcel in parcels:
        queues[parcel.outgoing.template.queue_name].append(parcel)
    return queues
