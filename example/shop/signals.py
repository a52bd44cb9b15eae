"""What the shop tells whoever listens."""

from django.dispatch import Signal

from outbox import OutboxSignal

# Durable itself: each send is an event, and what subscribes may run here or in a worker.
order_status_changed = OutboxSignal("shop.order_status_changed", key="order")

# A plain signal; it takes a while to answer, so the shop sends it with `send_background`.
report_requested = Signal()
