"""The names of the shop's queues."""

from django.conf import settings

MAIL = f"{settings.SHOP_QUEUE_PREFIX}mail"
STOCK = f"{settings.SHOP_QUEUE_PREFIX}stock"
ANALYTICS = f"{settings.SHOP_QUEUE_PREFIX}analytics"
OFFICE = f"{settings.SHOP_QUEUE_PREFIX}office"
# The queue of `outbox.send_background`, and of actors without a queue name.
DEFAULT = f"{settings.SHOP_QUEUE_PREFIX}default"

ALL = (MAIL, STOCK, ANALYTICS, OFFICE, DEFAULT)
