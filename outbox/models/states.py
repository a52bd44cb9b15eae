"""The states of a delivery, and what a pending one may wait for."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class DeliveryStatus(models.TextChoices):
    """The states of a delivery; the last three are final unless an operator retries a failed one."""

    PENDING = "pending", _("pending")
    DISPATCHED = "dispatched", _("dispatched")
    SUCCEEDED = "succeeded", _("succeeded")
    FAILED = "failed", _("failed")
    DISCARDED = "discarded", _("discarded")


class Held(models.TextChoices):
    """What a pending delivery waits for, other than time."""

    BATCH = "batch", _("for its batch")
    LANE = "lane", _("for the one before it in its lane")
    PAUSE = "pause", _("for its handler to be resumed")


# What may still become of a delivery something else than it is.
UNSETTLED = (DeliveryStatus.PENDING, DeliveryStatus.DISPATCHED, DeliveryStatus.FAILED)
