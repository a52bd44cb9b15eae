"""The tables of the ledger: business rows, and the effects of handlers."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models
from django.db.models.functions import Now


class Sale(models.Model):
    """A business row, written in the transaction that publishes it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    run = models.CharField(max_length=40, db_index=True)
    ordering_key = models.CharField(max_length=10)
    number = models.IntegerField()  # in the order of publication with its ordering key

    objects: ClassVar[models.Manager[Sale]] = models.Manager()

    def __str__(self) -> str:
        return f"sale {self.pk}"


class Effect(models.Model):
    """One run of a handler for a sale, with times by the database's clock."""

    handler = models.CharField(max_length=20)
    sale = models.UUIDField()  # no foreign key: an effect of a rolled-back sale must be visible
    run = models.CharField(max_length=40, db_index=True)
    began_at = models.DateTimeField(db_default=Now())
    done_at = models.DateTimeField(null=True)

    objects: ClassVar[models.Manager[Effect]] = models.Manager()

    def __str__(self) -> str:
        return f"{self.handler} {self.sale}"
