"""The states of a delivery, and the reasons for which a pending delivery waits."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class DeliveryState(models.TextChoices):
    """The states of a delivery; the last three are final unless an operator retries a failed one."""

    PENDING = "pending", _("pending")
    DISPATCHED = "dispatched", _("dispatched")
    SUCCEEDED = "succeeded", _("succeeded")
    FAILED = "failed", _("failed")
    DISCARDED = "discarded", _("discarded")


class WaitsFor(models.TextChoices):
    """The condition that a pending delivery waits for, besides its due time."""

    BATCH = "batch", _("for its batch")
    KEY = "key", _("for an earlier delivery with its ordering key")
    RESUME = "resume", _("for its handler to be resumed")


# The states from which a delivery can still change.
UNSETTLED = (DeliveryState.PENDING, DeliveryState.DISPATCHED, DeliveryState.FAILED)
