"""Events, and what became of each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from ..models import Delivery, Event
from . import display
from .base import OutboxAdmin
from .discarding import confirm_cancel
from .filters import PeriodFilter, TopicFilter
from .searching import Search, search_events

# Replays add to the deliveries of an event; its page shows the newest of them.
_MAX_DELIVERIES = 200


@admin.register(Event)
class EventAdmin(OutboxAdmin):
    """The list of events, and the page of one."""

    list_display = ("published_at", "dotted_topic", "key_or_none", "outcome", "event_id")
    list_filter = (PeriodFilter, TopicFilter)
    search_fields = ("id", "key", "topic")
    search_help_text = _(
        "An event id, a key or its beginning, a topic, or a pattern of topics such as shop.*"
    )
    actions = ("cancel_selected",)
    change_form_template = "admin/outbox/event/change_form.html"
    fieldsets = (
        (None, {"fields": ("id", "topic", "key_or_none", "dedup_key", "published_at", "cause")}),
        (_("Content"), {"fields": ("pretty_payload", "pretty_headers")}),
    )
    readonly_fields = admin.utils.flatten_fieldsets(fieldsets)

    def search(self, term: str, rows: Any) -> Search:
        """Understand the search box."""
        return search_events(term, rows)

    def for_list(self, rows: Any) -> Any:
        """Leave out the payloads."""
        return rows.defer("payload", "headers")

    def after_load(self, rows: list[Any]) -> None:
        """Count the deliveries of all events of the page, by state."""
        counts: dict[Any, dict[str, int]] = defaultdict(dict)
        deliveries = Delivery.objects.filter(event_id__in=[event.pk for event in rows])
        for event_id, status, number in (
            deliveries.order_by().values_list("event_id", "status").annotate(Count("pk"))
        ):
            counts[event_id][status] = number
        for event in rows:
            event.outcome_counts = counts[event.pk]

    @admin.display(description=_("id"))
    def event_id(self, event: Event) -> SafeString:
        """Show the id, small."""
        return format_html('<span class="outbox-id">{}</span>', event.pk)

    @admin.display(description=_("topic"))
    def dotted_topic(self, event: Event) -> SafeString:
        """Show the topic."""
        return display.dotted(event.topic)

    @admin.display(description=_("key"))
    def key_or_none(self, event: Event) -> str:
        """Show the key."""
        return event.key or display.NOTHING

    @admin.display(description=_("published"))
    def published_at(self, event: Event) -> Any:
        """Show when it was published."""
        return display.moment(event.created_at)

    @admin.display(description=_("deliveries"))
    def outcome(self, event: Any) -> SafeString | str:
        """Show how many deliveries are in each state."""
        badges = [
            (display.badge(status, f"{event.outcome_counts[status]} {label}"),)
            for status, label in Delivery.Status.choices
            if status in event.outcome_counts
        ]
        return format_html_join(" ", "{}", badges) or display.NOTHING

    @admin.display(description=_("caused by"))
    def cause(self, event: Event) -> SafeString | str:
        """Link the event in whose handler this one was published."""
        headers = event.headers if isinstance(event.headers, dict) else {}
        cause, root = headers.get("causation_id"), headers.get("correlation_id")
        links = [(self._link(cause, cause),)]
        if not cause:
            return display.NOTHING
        if root and root != cause:
            links.append((self._link(root, _("the root of the chain")),))
        return format_html_join(" · ", "{}", links)

    def _link(self, event_id: Any, text: Any) -> Any:
        try:
            return display.link(self.url("event_change", UUID(event_id)), text)
        except (AttributeError, TypeError, ValueError):
            # Written by hand: no event has such an id.
            return text

    @admin.display(description=_("payload"))
    def pretty_payload(self, event: Event) -> SafeString:
        """Show the payload, indented."""
        return display.pretty_json(event.payload)

    @admin.display(description=_("headers"))
    def pretty_headers(self, event: Event) -> SafeString:
        """Show the headers, indented."""
        return display.pretty_json(event.headers)

    # ------------------------------------------------------------ operations

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may cancel: it discards deliveries, so the permission on these says so."""
        return self.may(request, "change_delivery")

    @admin.action(permissions=["cancel"], description=_("Cancel pending deliveries of events…"))
    def cancel_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        """Ask for the reason, then discard what the selected events have pending."""
        return confirm_cancel(
            self, request, request.POST.getlist(ACTION_CHECKBOX_NAME), back=request.get_full_path()
        )

    def get_urls(self) -> list[Any]:
        """Add the address of the button on an event's page."""
        cancel = self.admin_site.admin_view(self.cancel_view)
        return [path("<path:object_id>/cancel/", cancel, name="outbox_event_cancel"), *super().get_urls()]

    def cancel_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the reason, then discard what one event has pending."""
        if not self.has_cancel_permission(request):
            raise PermissionDenied
        return confirm_cancel(self, request, [unquote(object_id)], back=self.url("event_change", object_id))

    # ------------------------------------------------------------ the deliveries of one event

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Show the event with its deliveries."""
        pk = kwargs["obj"].pk
        pending = Delivery.objects.pending().filter(event_id=pk)
        more = {
            "deliveries": self._deliveries(pk),
            "max_deliveries": _MAX_DELIVERIES,
            "may_cancel": self.has_cancel_permission(request) and pending.exists(),
            "cancel_url": self.url("event_cancel", pk),
        }
        return super().render_change_form(request, {**context, **more}, *args, **kwargs)

    def _deliveries(self, event_id: UUID) -> list[dict[str, Any]]:
        rows = Delivery.objects.filter(event_id=event_id).defer("error").order_by("-pk")[:_MAX_DELIVERIES]
        return [
            {
                "url": self.url("delivery_change", row.pk),
                "row": row,
                "handler": display.dotted(row.handler),
                "badge": display.badge(row.status),
                "dispatched_at": display.moment(row.dispatched_at),
                "finished_at": display.moment(row.finished_at),
            }
            for row in rows
        ]
