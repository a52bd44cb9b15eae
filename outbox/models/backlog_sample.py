"""The table of backlog samples, with one row per minute."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from django.db import models
from django.db.models import ExpressionWrapper
from django.db.models.functions import Now, TruncMinute
from django.utils.translation import gettext_lazy as _

from .row_locks import brief_transaction, unlocked

# The last full minute by the database clock.
LAST_MINUTE = ExpressionWrapper(
    TruncMinute(Now()) - timedelta(minutes=1), output_field=models.DateTimeField()
)


class BacklogSampleQuerySet(models.QuerySet["BacklogSample"]):
    """Verbs on samples."""

    def lacks_last_minute(self) -> bool:
        """Return whether the last full minute has no sample."""
        return not self.filter(minute=LAST_MINUTE).exists()

    def add(self, **figures: float) -> None:
        """Write the sample of the last full minute, unless another relay has written it."""
        self.bulk_create([self.model(minute=LAST_MINUTE, **figures)], ignore_conflicts=True)

    def within(self, since: timedelta) -> BacklogSampleQuerySet:
        """Keep the minutes that end after `now - since` by the database clock."""
        return self.filter(minute__gt=Now() - since - timedelta(minutes=1))

    def forget(self, older_than: timedelta, *, limit: int) -> int:
        """Delete at most `limit` minutes that are older than this, the oldest first; return how many."""
        oldest = self.filter(minute__lt=Now() - older_than).order_by("minute")
        if not oldest.exists():
            return 0
        with brief_transaction(self.db):
            minutes = list(unlocked(oldest).values_list("minute", flat=True)[:limit])
            return self.filter(pk__in=minutes).delete()[0]


class BacklogSample(models.Model):
    """The events published in one minute, and the backlog at its end."""

    minute = models.DateTimeField(_("minute"), primary_key=True)
    published = models.PositiveIntegerField(_("published"), db_default=0)
    due = models.PositiveIntegerField(_("due"), db_default=0)
    waiting = models.PositiveIntegerField(_("waiting"), db_default=0)
    unconfirmed = models.PositiveIntegerField(_("unconfirmed"), db_default=0)
    failed = models.PositiveIntegerField(_("failed"), db_default=0)
    oldest_s = models.FloatField(_("age of the oldest delivery (s)"), db_default=0.0)

    objects: ClassVar[Any] = BacklogSampleQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("backlog sample")
        # The admin sorts the pages of a section by this name; the space puts the overview before all others.
        verbose_name_plural = _(" Overview")

    def __str__(self) -> str:
        return f"{self.minute:%Y-%m-%d %H:%M}"
