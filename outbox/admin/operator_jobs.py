"""The jobs of operators: actions on all deliveries that match a filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import BadRequest, PermissionDenied
from django.db import router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from outbox.models import OperatorJob
from outbox.models.operator_job import UNFINISHED
from outbox.operations.operator_jobs import Preview, preview

from . import formatting
from .actions import as_ids
from .base import OutboxAdmin
from .job_links import permission_of
from .replay_page import replay_page

# The states of deliveries whose colours the states of jobs have.
_COLOURS = {
    OperatorJob.State.WAITING: "pending",
    OperatorJob.State.RUNNING: "dispatched",
    OperatorJob.State.DONE: "succeeded",
    OperatorJob.State.STOPPED: "discarded",
}
_TITLES = {
    OperatorJob.Verb.RETRY: _("Retry all failed deliveries"),
    OperatorJob.Verb.RESEND: _("Resend all unconfirmed deliveries"),
    OperatorJob.Verb.DISCARD: _("Discard all failed deliveries"),
}
_EFFECTS = {
    OperatorJob.Verb.RETRY: _("They become pending again, with all counters at zero, and run again."),
    OperatorJob.Verb.RESEND: _(
        "Their messages are sent again. A delivery runs twice if its earlier message still arrives."
    ),
    OperatorJob.Verb.DISCARD: _("They are never dispatched again, and unblock their ordering keys."),
}


if TYPE_CHECKING:
    _JobForm = forms.ModelForm[OperatorJob]
else:
    _JobForm = forms.ModelForm


class JobForm(_JobForm):
    """The filters of a job, and the reason of a discard."""

    class Meta:
        """The fields of the form."""

        model = OperatorJob
        fields = ("verb", "handler", "topic", "reason")


@admin.register(OperatorJob)
class OperatorJobAdmin(OutboxAdmin):
    """The list of jobs, the page that requests one, and the button that stops one."""

    list_display = (
        "number",
        "verb",
        "filters",
        "present_state",
        "changed_number",
        "requested_by",
        "requested",
        "finished",
    )
    fields = (*list_display[:5], "reason", *list_display[5:])
    readonly_fields = fields
    change_form_template = "admin/outbox/operatorjob/change_form.html"

    requested = staticmethod(formatting.timestamp_column("requested_at", _("requested")))
    finished = staticmethod(formatting.timestamp_column("finished_at", _("finished")))

    @admin.display(description=_("job"))
    def number(self, job: OperatorJob) -> str:
        """Show the id."""
        return f"#{job.pk}"

    @admin.display(description=_("filters"))
    def filters(self, job: OperatorJob) -> Any:
        """Show the handler, the topic, and the other filters of a replay."""
        span = [formatting.timestamp(each) for each in (job.since, job.until) if each]
        rate = format_html(_now("{} per second"), job.rate) if job.rate else ""
        parts = filter(
            None, (job.handler, job.topic, job.key, format_html_join(" to ", "{}", zip(span)), rate)
        )
        return format_html_join(", ", "{}", ((part,) for part in parts)) or _("all")

    @admin.display(description=_("state"))
    def present_state(self, job: OperatorJob) -> SafeString:
        """Show the state."""
        return formatting.badge(_COLOURS[OperatorJob.State(job.state)], job.get_state_display())

    @admin.display(description=_("changed"))
    def changed_number(self, job: OperatorJob) -> str:
        """Show the deliveries that the job has changed so far."""
        return formatting.number(job.changed)

    def get_urls(self) -> list[Any]:
        """Add the page that requests a job, and the address of the button that stops one."""
        wrap = self.admin_site.admin_view
        return [
            path("request/", wrap(self.confirm_view), name="outbox_job_confirm"),
            path("replay/", wrap(self.replay_view), name="outbox_job_replay"),
            path("<path:object_id>/stop/", wrap(self.stop_view), name="outbox_job_stop"),
            *super().get_urls(),
        ]

    def confirm_view(self, request: HttpRequest) -> HttpResponse:
        """Show the deliveries that the job would change; a POST requests the job."""
        parameters = request.POST if request.method == "POST" else request.GET
        form = JobForm(parameters)
        if not form.is_valid():
            raise BadRequest(f"invalid filters: {form.errors.as_json()}")
        filters = form.cleaned_data
        if filters["verb"] == OperatorJob.Verb.REPLAY:
            return HttpResponseRedirect(self.url("job_replay"))
        if not self.has_app_permission(request, permission_of(filters["verb"])):
            raise PermissionDenied
        needs_reason = filters["verb"] == OperatorJob.Verb.DISCARD
        if request.method == "POST" and (filters["reason"].strip() or not needs_reason):
            return self._request(request, filters)
        database = router.db_for_read(OperatorJob)
        found = preview(database, filters["verb"], handler=filters["handler"], topic=filters["topic"])
        context = self._context(request, filters, found)
        context["needs_reason"], context["lacks_reason"] = needs_reason, request.method == "POST"
        return TemplateResponse(request, "admin/outbox/operatorjob/confirm.html", context)

    def replay_view(self, request: HttpRequest) -> HttpResponse:
        """Show the form of a replay; a POST requests the job."""
        return replay_page(self, request)

    def stop_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Stop a job after its present chunk."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        database = router.db_for_write(OperatorJob)
        jobs = OperatorJob.objects.using(database).filter(pk__in=as_ids([unquote(object_id)]))
        job = jobs.first()
        if job is None or not self.has_app_permission(request, permission_of(job.verb)):
            raise PermissionDenied
        if jobs.stop():
            _log(request.user, job, _now("Stopped."))
        return HttpResponseRedirect(self.url("operatorjob_change", job.pk))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show the job, with the button that stops it."""
        job = self.get_object(request, unquote(object_id))
        is_open = job is not None and job.state in UNFINISHED
        may_stop = is_open and self.has_app_permission(request, permission_of(job.verb))
        context = {"may_stop": may_stop, "stop_url": self.url("job_stop", object_id)}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _request(self, request: HttpRequest, filters: dict[str, str]) -> HttpResponse:
        database = router.db_for_write(OperatorJob)
        fields = {name: filters[name] for name in ("handler", "topic", "reason")}
        with transaction.atomic(using=database):
            job = OperatorJob.objects.using(database).request(
                filters["verb"], requested_by=request.user.get_username(), **fields
            )
            text = ", ".join(filter(None, (_now("Requested"), *fields.values())))
            _log(request.user, job, text)
        self.message_user(request, _now("A relay runs the job within seconds."), messages.SUCCESS)
        back = self.url("operatorjob_change", job.pk)
        may_view = self.has_view_permission(request)
        return HttpResponseRedirect(back if may_view else self.url("delivery_changelist"))

    def _context(self, request: HttpRequest, filters: dict[str, str], found: Preview) -> dict[str, Any]:
        return self.page_context(
            request,
            title=_TITLES[OperatorJob.Verb(filters["verb"])],
            effect=_EFFECTS[OperatorJob.Verb(filters["verb"])],
            filters=filters,
            count=formatting.number(found.number) + ("" if found.is_exact else "+"),
            found=found,
            back=f"{self.url('delivery_changelist')}?{urlencode(_list_filters(filters))}",
            breadcrumbs=[(self.url("operatorjob_changelist"), OperatorJob._meta.verbose_name_plural)],
        )


def _log(user: Any, job: OperatorJob, text: str) -> None:
    LogEntry.objects.log_actions(user.pk, [job], CHANGE, text)


def _list_filters(filters: dict[str, str]) -> dict[str, str]:
    """Return the filters of the list that shows the deliveries of a job."""
    state = "dispatched" if filters["verb"] == OperatorJob.Verb.RESEND else "failed"
    chosen = {"state": state, "handler": filters["handler"], "topic": filters["topic"]}
    return {name: value for name, value in chosen.items() if value}
