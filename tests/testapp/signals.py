"""Signals that a project defines."""

from django.dispatch import Signal

from outbox import OutboxSignal

order_paid = Signal()
order_status_changed = OutboxSignal("shop.order_status_changed", key="order")
