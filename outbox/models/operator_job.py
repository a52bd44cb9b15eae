"""The table of operator jobs: actions on all deliveries that match a filter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.db import models
from django.db.models import F, Max, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from outbox.events import MAX_KEY_LENGTH

from .delivery import Delivery
from .row_locks import brief_transaction, unlocked


class JobVerb(models.TextChoices):
    """The verbs of jobs."""

    RETRY = "retry", _("retry")
    RESEND = "resend", _("resend")
    DISCARD = "discard", _("discard")
    REPLAY = "replay", _("replay")


class JobState(models.TextChoices):
    """The states of a job."""

    WAITING = "waiting", _("waits for a relay")
    RUNNING = "running", _("running")
    DONE = "done", _("done")
    STOPPED = "stopped", _("stopped")


UNFINISHED = (JobState.WAITING, JobState.RUNNING)


class OperatorJobQuerySet(models.QuerySet["OperatorJob"]):
    """Verbs on jobs."""

    def request(self, verb: str, **fields: Any) -> OperatorJob:
        """Write a job for the deliveries that exist now; a relay runs it.

        Args:
            fields: the filters, the reason and the name of the operator.
        """
        last = Delivery.objects.using(self.db).aggregate(last=Max("pk"))["last"] or 0
        job: OperatorJob = self.create(verb=verb, last_id=last, **fields)
        return job

    def unfinished(self) -> OperatorJobQuerySet:
        """Keep the jobs that wait or run."""
        return self.filter(state__in=UNFINISHED)

    def next_unlocked(self, skipping: Sequence[int] = ()) -> OperatorJob | None:
        """Lock the oldest unfinished job; None if there is none, or if another relay works on it.

        Args:
            skipping: the ids of jobs that have nothing to do now.
        """
        oldest = self.unfinished().exclude(pk__in=skipping).order_by("pk").values("pk")[:1]
        return unlocked(self.unfinished().filter(pk__in=oldest)).first()

    def advance(self, pks: Sequence[int], *, changed: int, is_last: bool) -> None:
        """Record a chunk of a locked job, in the transaction of the chunk."""
        self._advance(changed, is_last, after_id=pks[-1] if pks else F("after_id"))

    def advance_replay(self, after: UUID | None, *, written: int, is_last: bool) -> None:
        """Record a chunk of a locked replay, in the transaction of the chunk.

        Args:
            after: the last event of the chunk; None if it had none.
        """
        self._advance(written, is_last, after_event=after or F("after_event"))

    def _advance(self, changed: int, is_last: bool, **position: Any) -> None:
        state = JobState.DONE if is_last else JobState.RUNNING
        finished_at = Now() if is_last else None
        self.update(changed=F("changed") + changed, state=state, finished_at=finished_at, **position)

    def forget(self, older_than: timedelta, *, limit: int) -> int:
        """Delete at most `limit` jobs that finished longer ago than this; return how many."""
        oldest = self.filter(finished_at__lt=Now() - older_than).order_by("pk")
        if not oldest.exists():
            return 0
        with brief_transaction(self.db):
            pks = list(unlocked(oldest).values_list("pk", flat=True)[:limit])
            return self.filter(pk__in=pks).delete()[0]

    def stop(self) -> int:
        """Stop jobs after their present chunk; return how many were unfinished."""
        return self.unfinished().update(state=JobState.STOPPED, finished_at=Now())


class OperatorJob(models.Model):
    """An action of an operator on all deliveries that match a filter; relays run it in chunks."""

    Verb = JobVerb
    State = JobState

    id = models.BigAutoField(_("id"), primary_key=True)
    verb = models.CharField(_("action"), max_length=10, choices=JobVerb.choices)
    handler = models.CharField(_("handler"), max_length=255, blank=True, db_default="")
    topic = models.CharField(_("topic"), max_length=255, blank=True, db_default="")
    reason = models.TextField(_("reason"), blank=True, db_default="")
    state = models.CharField(
        _("state"), max_length=10, choices=JobState.choices, db_default=JobState.WAITING.value
    )
    # The deliveries up to `after_id` are done. Deliveries after `last_id` were written after the request.
    after_id = models.BigIntegerField(_("done up to delivery"), db_default=0)
    last_id = models.BigIntegerField(_("last delivery"))
    changed = models.PositiveBigIntegerField(_("changed deliveries"), db_default=0)
    # Of a replay: the key of its events, their span of time, and the last event that is done.
    key = models.CharField(_("key"), max_length=MAX_KEY_LENGTH, blank=True, db_default="")
    since = models.DateTimeField(_("published since"), null=True, blank=True)
    until = models.DateTimeField(_("published before"), null=True, blank=True)
    after_event = models.UUIDField(_("done up to event"), null=True, blank=True)
    rate = models.PositiveIntegerField(_("deliveries per second"), null=True, blank=True)
    requested_by = models.CharField(_("requested by"), max_length=255)
    requested_at = models.DateTimeField(_("requested at"), db_default=Now())
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    objects: ClassVar[Any] = OperatorJobQuerySet.as_manager()

    class Meta:
        """Table options."""

        verbose_name = _("operator job")
        verbose_name_plural = _("operator jobs")
        permissions: ClassVar = [
            ("retry_deliveries", _("Can retry all failed deliveries that match a filter")),
            ("resend_deliveries", _("Can resend all unconfirmed deliveries that match a filter")),
            ("discard_deliveries", _("Can discard all failed deliveries that match a filter")),
            ("replay_deliveries", _("Can replay all events that match a filter")),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["id"],
                name="outbox_operatorjob_open",
                condition=Q(state__in=["waiting", "running"]),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.verb} #{self.pk}"
