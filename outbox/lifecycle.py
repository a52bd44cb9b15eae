"""What happens inside the outbox, as Django signals: connect to them for alerts and metrics of your own.

They are sent robustly, after the fact is committed: a receiver that raises is logged and harms nothing. The
log of this package is itself such a receiver (`outbox.logs`).

batch_dispatched       a relay has handed deliveries to the broker: database, counts (by handler)
delivery_failed        a delivery has failed for good: database, delivery_id, handler, error
delivery_refused       the broker refused a message, which is tried again: likewise
deliveries_overdue     nobody confirmed them in time: database, redelivered, failed (how many of each)
relay_state_changed    database, state (`running`, `broker away`, `database away`, `database error`), detail

The sender is the class that noticed; worker processes send `delivery_failed`, relays send the others too.
"""

from __future__ import annotations

from django.dispatch import Signal

batch_dispatched = Signal()
delivery_refused = Signal()
delivery_failed = Signal()
deliveries_overdue = Signal()
relay_state_changed = Signal()
