"""The signals of the shop."""

from django.dispatch import Signal

from outbox import OutboxSignal

# A durable signal: each send is an event, and its receivers run here or in a worker.
order_status_changed = OutboxSignal("shop.order_status_changed", key="order")

# A plain signal with slow receivers, so the shop sends it with `send_background`.
report_requested = Signal()
