"""The signals of bulk operations: `bulk_created`, `bulk_updated` and `bulk_deleted`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models.signals import ModelSignal

from outbox.errors import PayloadTooLarge

from .publishing_signal import PublishingSignal
from .recorder import Recorder, Subscription, register

# The maximum number of instances in one event of a bulk signal.
CHUNK_SIZE = 500


class BulkSignal(PublishingSignal, ModelSignal):
    """A signal of a bulk operation: ordinary receivers get all `instances`, background receivers get chunks.

    Args:
        snapshots: whether events store the field values of the instances.
    """

    def __init__(self, *, snapshots: bool = False) -> None:
        super().__init__()
        self.recorder = register(
            Recorder(self, instances_argument="instances", snapshots=snapshots, connected=False)
        )

    def has_listeners(self, sender: Any = None) -> bool:
        """Return whether the signal has an ordinary or a background receiver."""
        return bool(self.recorder.subscribed_to(sender)) or super().has_listeners(sender)

    def needs_instances(self, sender: Any) -> bool:
        """Return whether an ordinary receiver or a condition gets the instances; else keys are enough."""
        return super().has_listeners(sender) or any(
            one.when is not None for one in self.recorder.subscribed_to(sender)
        )

    def _publish(self, sender: Any, named: dict[str, Any]) -> None:
        """Publish one event per chunk, if the condition of a background receiver allows the send."""
        size = named.pop("chunk_size", CHUNK_SIZE)
        subscriptions = self.recorder.matching(sender, named)
        rows = named["instances"] if subscriptions else ()
        for start in range(0, len(rows), size):
            self._publish_chunk(sender, {**named, "instances": rows[start : start + size]}, subscriptions)

    def _publish_chunk(
        self, sender: Any, arguments: dict[str, Any], subscriptions: Sequence[Subscription]
    ) -> None:
        rows = arguments["instances"]
        try:
            self.recorder.publish(sender, arguments, subscriptions)
        except PayloadTooLarge:
            if len(rows) == 1:
                raise
            middle = len(rows) // 2
            for part in (rows[:middle], rows[middle:]):
                self._publish_chunk(sender, {**arguments, "instances": part}, subscriptions)


bulk_created = BulkSignal()


bulk_updated = BulkSignal()


# A worker cannot read the deleted rows.
bulk_deleted = BulkSignal(snapshots=True)
