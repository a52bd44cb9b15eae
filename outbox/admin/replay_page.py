"""The page that requests a replay: which events, to which handler, at which rate."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connections, router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from outbox.errors import InvalidTopic
from outbox.events import MAX_KEY_LENGTH
from outbox.models import Event, OperatorJob
from outbox.models.clock import to_column
from outbox.operations.replay_jobs import preview_replay
from outbox.registry import registry
from outbox.topics import check_pattern

from . import formatting
from .job_links import permission_of

if TYPE_CHECKING:
    from .base import OutboxAdmin

MAX_RATE = 100_000


def _handlers() -> list[tuple[str, str]]:
    return [(name, name) for name in sorted(registry.handlers)]


class ReplayForm(forms.Form):
    """The events of a replay, its handler and its rate."""

    topic = forms.CharField(
        label=_("Topic"), max_length=255, help_text=_("A topic, or a pattern such as shop.*")
    )
    key = forms.CharField(label=_("Key"), max_length=MAX_KEY_LENGTH, required=False)
    since = forms.DateTimeField(
        label=_("Published since"), widget=forms.DateTimeInput(attrs={"type": "datetime-local"})
    )
    until = forms.DateTimeField(
        label=_("Published before"),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}),
        required=False,
        help_text=_("Now, if empty"),
    )
    handler = forms.ChoiceField(
        label=_("Handler"),
        required=False,
        choices=lambda: [("", _("all that are subscribed now")), *_handlers()],
        help_text=_("Also one that is newer than the events"),
    )
    rate = forms.IntegerField(
        label=_("Deliveries per second"),
        min_value=1,
        max_value=MAX_RATE,
        required=False,
        help_text=_("As fast as possible, if empty"),
    )

    def clean_topic(self) -> str:
        """Refuse a malformed pattern."""
        topic: str = self.cleaned_data["topic"]
        try:
            check_pattern(topic)
        except InvalidTopic as error:
            raise ValidationError(str(error)) from error
        return topic

    def clean_since(self) -> datetime:
        """Return an aware time, also with USE_TZ off."""
        return _aware(self.cleaned_data["since"])

    def clean_until(self) -> datetime:
        """Return an aware time, the present one if none is given."""
        until = self.cleaned_data["until"]
        return _aware(until) if until else _aware(timezone.now())


def _aware(moment: datetime) -> datetime:
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


def replay_page(model_admin: OutboxAdmin, request: HttpRequest) -> HttpResponse:
    """Show the form, and the events that the replay would read; a POST requests the job."""
    if not model_admin.has_app_permission(request, permission_of(OperatorJob.Verb.REPLAY)):
        raise PermissionDenied
    parameters = request.POST if request.method == "POST" else request.GET
    form = ReplayForm(parameters) if "topic" in parameters else ReplayForm(initial=_initial(parameters))
    found = None
    if form.is_bound and form.is_valid():
        if request.method == "POST":
            return _request(model_admin, request, form.cleaned_data)
        filters = {name: form.cleaned_data[name] for name in ("topic", "key", "since", "until", "handler")}
        found = preview_replay(router.db_for_read(Event), **filters)
    context = model_admin.page_context(
        request,
        title=_("Replay events"),
        form=form,
        found=found,
        count=formatting.number(found.deliveries) + ("" if found.is_exact else "+") if found else "",
        events=formatting.number(found.events) + ("" if found.is_exact else "+") if found else "",
        back=model_admin.url("event_changelist"),
        breadcrumbs=[(model_admin.url("operatorjob_changelist"), OperatorJob._meta.verbose_name_plural)],
    )
    return TemplateResponse(request, "admin/outbox/operatorjob/replay.html", context)


def _initial(parameters: Any) -> dict[str, Any]:
    yesterday = timezone.now() - timedelta(days=1)
    local = timezone.localtime(yesterday) if timezone.is_aware(yesterday) else yesterday
    return {"since": f"{local:%Y-%m-%dT%H:%M}", "topic": parameters.get("of_topic", "")}


def _request(model_admin: OutboxAdmin, request: HttpRequest, filters: dict[str, Any]) -> HttpResponse:
    database = router.db_for_write(OperatorJob)
    span = {name: to_column(filters[name], connections[database]) for name in ("since", "until")}
    fields = {**{name: filters[name] for name in ("topic", "key", "handler", "rate")}, **span}
    user: Any = request.user
    with transaction.atomic(using=database):
        jobs = OperatorJob.objects.using(database)
        job = jobs.request(OperatorJob.Verb.REPLAY, requested_by=user.get_username(), **fields)
        text = ", ".join(filter(None, (_now("Requested"), filters["topic"], filters["handler"])))
        LogEntry.objects.log_actions(user.pk, [job], CHANGE, text)
    model_admin.message_user(request, _now("A relay runs the job within seconds."), messages.SUCCESS)
    may_view = model_admin.has_view_permission(request)
    page = model_admin.url("operatorjob_change", job.pk) if may_view else model_admin.url("event_changelist")
    return HttpResponseRedirect(page)
