"""The markers of the brokers: a broker without its marker has lost its messages.

The table, not the broker, remembers which marker a broker should have. A relay that misses it begins the next
generation in one transaction: the row gets the time of the loss, and the broker the next marker. A relay that
is killed before the commit leaves the loss to be found again. After the commit the row stays unrepaired until
a relay has checked all deliveries that were dispatched before the loss.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from dramatiq import Broker

from outbox.errors import BrokerUnavailable
from outbox.host_folder import name_of
from outbox.models import BrokerMarker
from outbox.observability.telemetry import broker_lost

from .publishers import Marker, Publisher

logger = logging.getLogger(__name__)

# The time until a marker is tried again that could not be made.
RETRY_S = 5.0


@dataclass
class Watch:
    """One relay's view of a broker's marker.

    Attributes:
        generation: the generation that the broker should have.
        unrepaired: whether this relay has to check deliveries that were dispatched before a loss.
        lost_at: the loss whose deliveries are being checked.
        after: the time and the id of the delivery that was checked last; None before the first.
        is_last: whether no delivery can be added to those that are being checked.
        retry_at: the monotonic time before which no marker is made, since the broker refused one.
    """

    publisher: Publisher
    generation: int
    unrepaired: bool
    lost_at: datetime | None = None
    after: tuple[datetime, int] | None = None
    is_last: bool = False
    retry_at: float = 0.0


class Markers:
    """The markers of the brokers of one relay.

    Args:
        publishers: returns the brokers of all handlers, each with its publisher.

    Attributes:
        watches: the watch of each broker that can have a marker.
    """

    def __init__(
        self, *, database: str, publishers: Callable[[], Iterable[tuple[Broker, Publisher]]]
    ) -> None:
        self.watches: dict[Broker, Watch] = {}
        self._database = database
        self._publishers = publishers

    def expect(self) -> None:
        """Tell each new publisher which marker its broker should have."""
        for broker, publisher in self._publishers():
            if broker not in self.watches and publisher.broker_name:
                self.watches[broker] = self._watch(publisher)

    def note_losses(self) -> None:
        """Record the losses that publishers have found, and make the first marker of a new broker."""
        for watch in self.watches.values():
            self._note(watch)

    def row(self, watch: Watch) -> Any:
        """Return the row of a broker, as a queryset."""
        return self._rows.filter(pk=watch.publisher.broker_name)

    def _watch(self, publisher: Publisher) -> Watch:
        row, _ = self._rows.get_or_create(
            broker=publisher.broker_name, defaults={"marker": name_of(self._database)}
        )
        if row.generation:
            publisher.marker.expect(Marker(row.marker, row.generation))
        return Watch(publisher, row.generation, unrepaired=not row.repaired)

    def _note(self, watch: Watch) -> None:
        if not (watch.publisher.marker.missing or not watch.generation) or time.monotonic() < watch.retry_at:
            return
        try:
            self._renew(watch)
        except BrokerUnavailable as problem:
            if not watch.retry_at:
                logger.warning(
                    "no marker can be made in %s: %s",
                    watch.publisher.broker_name,
                    problem,
                    extra={"database": self._database, "error": str(problem)},
                )
            watch.retry_at = time.monotonic() + RETRY_S
        else:
            watch.retry_at = 0.0

    def _renew(self, watch: Watch) -> None:
        """Begin the next generation, unless another relay has begun it or is about to."""
        check, before = watch.publisher.marker, watch.publisher.marker.expected
        try:
            with transaction.atomic(using=self._database):
                row = self.row(watch).lock().first()
                generation = watch.generation if row is None else self._advance(watch, row)
        except BaseException:
            # The broker may have the next marker although the row is unchanged.
            check.expected, check.missing = before, before is not None
            raise
        if row is None:
            self._restore_row(watch)
            return
        has_lost = watch.generation > 0
        watch.unrepaired = watch.unrepaired or has_lost or not row.repaired
        watch.generation = generation
        if has_lost and generation > row.generation:
            broker_lost.send_robust(Markers, database=self._database, broker=row.broker)

    def _advance(self, watch: Watch, row: BrokerMarker) -> int:
        """Return the generation of the broker's marker from now on."""
        if row.generation > watch.generation:
            # Another relay has recorded the loss. This relay may have dispatched since, to a server that was
            # replaced.
            if watch.publisher.finds_messages and watch.generation:
                self.row(watch).check_again()
            watch.publisher.marker.expect(Marker(row.marker, row.generation))
            return row.generation
        if row.generation or watch.generation:
            self.row(watch).record_loss()
        else:
            self.row(watch).start()
        watch.publisher.make_marker(Marker(row.marker, row.generation + 1))
        return row.generation + 1

    def _restore_row(self, watch: Watch) -> None:
        """Write the row again if somebody has deleted it; usually another relay has locked it."""
        self._rows.get_or_create(
            broker=watch.publisher.broker_name,
            defaults={"marker": name_of(self._database), "generation": watch.generation},
        )

    @property
    def _rows(self) -> Any:
        return BrokerMarker.objects.using(self._database)
