"""The pages that ask for a reason before they discard deliveries or cancel events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from outbox.models import Delivery, Event

from . import actions, formatting

if TYPE_CHECKING:
    from .base import OutboxAdmin


class ReasonForm(forms.Form):
    """The reason for which deliveries are discarded."""

    reason = forms.CharField(label=_("Reason"), max_length=500, widget=forms.TextInput(attrs={"size": 60}))


def discard_page(
    model_admin: OutboxAdmin, request: HttpRequest, pks: list[str], *, back: str
) -> HttpResponse:
    """Show the deliveries to discard; if the request has a reason, discard them and redirect to `back`."""
    ids = actions.as_ids(pks)
    form = _form(request)
    if form.is_valid():
        discarded = actions.discard(ids, request.user, form.cleaned_data["reason"])
        return _done(model_admin, request, discarded, back)
    chosen = _discardable(ids)
    if not chosen:
        text = _now("Only failed and pending deliveries can be discarded; none is selected.")
        return _refused(model_admin, request, text, back)
    context = model_admin.page_context(
        request,
        title=_("Discard deliveries"),
        form=form,
        chosen=chosen,
        not_discardable=len(ids) - len(chosen),
        back=back,
        action="discard_selected",
        checkbox_name=ACTION_CHECKBOX_NAME,
        breadcrumbs=[(model_admin.url("delivery_changelist"), Delivery._meta.verbose_name_plural)],
    )
    return TemplateResponse(request, "admin/outbox/discard.html", context)


def cancel_page(model_admin: OutboxAdmin, request: HttpRequest, pks: list[str], *, back: str) -> HttpResponse:
    """Show the events to cancel; if the request has a reason, cancel them and redirect to `back`."""
    ids = actions.as_uuids(pks)
    form = _form(request)
    if form.is_valid():
        discarded = actions.cancel(ids, request.user, form.cleaned_data["reason"])
        return _done(model_admin, request, discarded, back)
    chosen = _cancellable(ids)
    if not chosen:
        text = _now("The selected events have no pending deliveries, so there is nothing to cancel.")
        return _refused(model_admin, request, text, back)
    context = model_admin.page_context(
        request,
        title=_("Cancel events"),
        form=form,
        chosen=chosen,
        pending=sum(event.pending for event in chosen),
        back=back,
        action="cancel_selected",
        checkbox_name=ACTION_CHECKBOX_NAME,
        breadcrumbs=[(model_admin.url("event_changelist"), Event._meta.verbose_name_plural)],
    )
    return TemplateResponse(request, "admin/outbox/cancel.html", context)


def _form(request: HttpRequest) -> ReasonForm:
    return ReasonForm(request.POST if request.POST.get("confirmed") else None)


def _done(model_admin: OutboxAdmin, request: HttpRequest, discarded: int, back: str) -> HttpResponse:
    text = ngettext("%(count)s delivery was discarded.", "%(count)s deliveries were discarded.", discarded)
    level = messages.SUCCESS if discarded else messages.WARNING
    model_admin.message_user(request, text % {"count": formatting.number(discarded)}, level)
    return HttpResponseRedirect(back)


def _refused(model_admin: OutboxAdmin, request: HttpRequest, text: str, back: str) -> HttpResponse:
    model_admin.message_user(request, text, messages.WARNING)
    return HttpResponseRedirect(back)


def _discardable(ids: list[int]) -> list[Any]:
    rows = (
        Delivery.objects.filter(pk__in=ids, state__in=actions.DISCARDABLE)
        .defer("error", "message_options")
        .order_by("pk")
    )
    chosen: list[Any] = list(rows)
    topics = dict(Event.objects.filter(pk__in=[row.event_id for row in chosen]).values_list("pk", "topic"))
    for row in chosen:
        row.topic = topics.get(row.event_id, "")
        row.badge = formatting.badge(row.state)
    return chosen


def _cancellable(ids: list[UUID]) -> list[Any]:
    pending = Delivery.objects.pending().filter(event_id__in=ids).order_by()
    counts = dict(pending.values_list("event_id").annotate(Count("pk")))
    chosen: list[Any] = list(Event.objects.filter(pk__in=counts).defer("payload", "headers").order_by("-pk"))
    for event in chosen:
        event.pending = counts[event.pk]
    return chosen
