"""The pages that ask for a reason before deliveries are given up: chosen ones, or those of chosen events."""

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

from ..models import Delivery, Event
from . import display, operations

if TYPE_CHECKING:
    from .base import OutboxAdmin


class DiscardForm(forms.Form):
    """Why deliveries are given up."""

    reason = forms.CharField(label=_("Reason"), max_length=500, widget=forms.TextInput(attrs={"size": 60}))


def confirm_discard(
    model_admin: OutboxAdmin, request: HttpRequest, pks: list[str], *, back: str
) -> HttpResponse:
    """Show what would be discarded; with a reason, discard it and go back."""
    ids = operations.as_ids(pks)
    form = _form(request)
    if form.is_valid():
        discarded = operations.discard(ids, request.user, form.cleaned_data["reason"])
        return _done(model_admin, request, discarded, back)
    chosen = _discardable(ids)
    if not chosen:
        text = _now("Only failed and pending deliveries can be discarded; none of these is.")
        return _refused(model_admin, request, text, back)
    context = model_admin.page_context(
        request,
        title=_("Discard deliveries"),
        form=form,
        chosen=chosen,
        left_as_they_are=len(ids) - len(chosen),
        back=back,
        action="discard_selected",
        checkbox_name=ACTION_CHECKBOX_NAME,
        trail=[(model_admin.url("delivery_changelist"), Delivery._meta.verbose_name_plural)],
    )
    return TemplateResponse(request, "admin/outbox/discard.html", context)


def confirm_cancel(
    model_admin: OutboxAdmin, request: HttpRequest, pks: list[str], *, back: str
) -> HttpResponse:
    """Show which events have pending deliveries; with a reason, discard these and go back."""
    ids = operations.as_uuids(pks)
    form = _form(request)
    if form.is_valid():
        discarded = operations.cancel(ids, request.user, form.cleaned_data["reason"])
        return _done(model_admin, request, discarded, back)
    chosen = _cancellable(ids)
    if not chosen:
        text = _now("Nothing of what was chosen is pending, so there is nothing to cancel.")
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
        trail=[(model_admin.url("event_changelist"), Event._meta.verbose_name_plural)],
    )
    return TemplateResponse(request, "admin/outbox/cancel.html", context)


def _form(request: HttpRequest) -> DiscardForm:
    return DiscardForm(request.POST if request.POST.get("confirmed") else None)


def _done(model_admin: OutboxAdmin, request: HttpRequest, discarded: int, back: str) -> HttpResponse:
    text = ngettext("%(count)d delivery was discarded.", "%(count)d deliveries were discarded.", discarded)
    level = messages.SUCCESS if discarded else messages.WARNING
    model_admin.message_user(request, text % {"count": discarded}, level)
    return HttpResponseRedirect(back)


def _refused(model_admin: OutboxAdmin, request: HttpRequest, text: str, back: str) -> HttpResponse:
    model_admin.message_user(request, text, messages.WARNING)
    return HttpResponseRedirect(back)


def _discardable(ids: list[int]) -> list[Any]:
    rows = (
        Delivery.objects.filter(pk__in=ids, status__in=operations.DISCARDABLE).defer("error").order_by("pk")
    )
    chosen: list[Any] = list(rows)
    topics = dict(Event.objects.filter(pk__in=[row.event_id for row in chosen]).values_list("pk", "topic"))
    for row in chosen:
        row.topic = topics.get(row.event_id, "")
        row.badge = display.badge(row.status)
    return chosen


def _cancellable(ids: list[UUID]) -> list[Any]:
    pending = Delivery.objects.pending().filter(event_id__in=ids).order_by()
    counts = dict(pending.values_list("event_id").annotate(Count("pk")))
    chosen: list[Any] = list(Event.objects.filter(pk__in=counts).defer("payload", "headers").order_by("-pk"))
    for event in chosen:
        event.pending = counts[event.pk]
    return chosen
