"""The table of the runs of tasks."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

MAX_CLASS_PATH_LENGTH = 255


class TaskAttempt(models.Model):
    """One run of a task: its worker, its times, and its return value or its error."""

    id = models.BigAutoField(_("id"), primary_key=True)
    # No foreign key: pruning deletes these rows together with their event, and a relation would make Django
    # read them first.
    event_id = models.UUIDField(_("event"), db_index=True, editable=False)
    worker_id = models.CharField(_("worker"), max_length=255)
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    return_value = models.JSONField(_("return value"), null=True, blank=True)
    exception_class = models.CharField(
        _("exception class"), max_length=MAX_CLASS_PATH_LENGTH, blank=True, db_default=""
    )
    traceback = models.TextField(_("traceback"), blank=True, db_default="")

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        """Table options."""

        verbose_name = _("task attempt")
        verbose_name_plural = _("task attempts")

    def __str__(self) -> str:
        return f"{self.event_id} #{self.pk}"
