"""The events, with the states of their deliveries."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy as _

from outbox.models import Delivery, Event, OperatorJob
from outbox.operations.causation import CausedEvent, causation_tree

from . import formatting
from .base import OutboxAdmin
from .filters import PeriodFilter, TopicFilter
from .job_links import permission_of
from .reason_pages import cancel_page
from .search import Search, search_events

# Replays add deliveries to an event; the page of the event shows the newest deliveries.
_MAX_DELIVERIES = 200


@admin.register(Event)
class EventAdmin(OutboxAdmin):
    """The list of events, and the page of one event."""

    list_display = ("published_at", "dotted_topic", "key_or_empty", "delivery_states", "event_id")
    list_filter = (PeriodFilter, TopicFilter)
    search_fields = ("id", "key", "topic")
    search_help_text = _(
        "An event id, a key or its beginning, a topic, or a pattern of topics such as shop.*"
    )
    actions = ("cancel_selected",)
    change_form_template = "admin/outbox/event/change_form.html"
    change_list_template = "admin/outbox/event/change_list.html"
    fieldsets = (
        (
            None,
            {"fields": ("id", "topic", "key_or_empty", "dedup_key", "published_at", "cause", "origin")},
        ),
        (_("Content"), {"fields": ("pretty_payload", "pretty_headers")}),
    )
    readonly_fields = admin.utils.flatten_fieldsets(fieldsets)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list, with the button of a replay."""
        may_replay = self.has_app_permission(request, permission_of(OperatorJob.Verb.REPLAY))
        context = {"replay_url": self.url("job_replay")} if may_replay else {}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def search(self, term: str, rows: Any) -> Search:
        """Parse the search box."""
        return search_events(term, rows)

    def list_columns(self, rows: Any) -> Any:
        """Leave out the payloads."""
        return rows.defer("payload", "headers")

    def load_related(self, rows: list[Any]) -> None:
        """Count the deliveries of all events of the page, by state."""
        counts: dict[Any, dict[str, int]] = defaultdict(dict)
        deliveries = Delivery.objects.filter(event_id__in=[event.pk for event in rows])
        for event_id, state, number in (
            deliveries.order_by().values_list("event_id", "state").annotate(Count("pk"))
        ):
            counts[event_id][state] = number
        for event in rows:
            event.state_counts = counts[event.pk]

    @admin.display(description=_("id"))
    def event_id(self, event: Event) -> SafeString:
        """Show the id, in small type."""
        return format_html('<span class="outbox-id">{}</span>', event.pk)

    @admin.display(description=_("topic"))
    def dotted_topic(self, event: Event) -> SafeString:
        """Show the topic."""
        return formatting.dotted(event.topic)

    @admin.display(description=_("key"))
    def key_or_empty(self, event: Event) -> str:
        """Show the key."""
        return event.key or formatting.EMPTY

    @admin.display(description=_("published"))
    def published_at(self, event: Event) -> Any:
        """Show when the event was published."""
        return formatting.timestamp(event.created_at)

    @admin.display(description=_("deliveries"))
    def delivery_states(self, event: Any) -> SafeString | str:
        """Show how many deliveries are in each state."""
        badges = [
            (formatting.badge(state, f"{formatting.number(event.state_counts[state])} {label}"),)
            for state, label in Delivery.State.choices
            if state in event.state_counts
        ]
        return format_html_join(" ", "{}", badges) or formatting.EMPTY

    @admin.display(description=_("caused by"))
    def cause(self, event: Event) -> SafeString | str:
        """Link the event whose handler published this event."""
        headers = event.headers if isinstance(event.headers, dict) else {}
        cause, root = headers.get("causation_id"), headers.get("correlation_id")
        links = [(self._link(cause, cause),)]
        if not cause:
            return formatting.EMPTY
        if root and root != cause:
            links.append((self._link(root, _("the root of the chain")),))
        return format_html_join(" · ", "{}", links)

    @admin.display(description=_("published by"))
    def origin(self, event: Event) -> SafeString | str:
        """Show the fields of the context, such as those of the request: who, and where."""
        context = event.headers.get("context") if isinstance(event.headers, dict) else None
        fields = sorted(context.items()) if isinstance(context, dict) else []
        return format_html_join(mark_safe("<br>"), "{}: {}", fields) or formatting.EMPTY

    def _link(self, event_id: Any, text: Any) -> Any:
        try:
            return formatting.link(self.url("event_change", UUID(event_id)), text)
        except (AttributeError, TypeError, ValueError):
            # Headers written by hand may hold an id that is not a UUID.
            return text

    @admin.display(description=_("payload"))
    def pretty_payload(self, event: Event) -> SafeString:
        """Show the payload, indented."""
        return formatting.pretty_json(event.payload)

    @admin.display(description=_("headers"))
    def pretty_headers(self, event: Event) -> SafeString:
        """Show the headers, indented."""
        return formatting.pretty_json(event.headers)

    # ------------------------------------------------------------ actions

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may cancel; this takes the change permission on deliveries."""
        return self.has_app_permission(request, "change_delivery")

    @admin.action(permissions=["cancel"], description=_("Cancel pending deliveries of events…"))
    def cancel_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        """Ask for the reason, then discard the pending deliveries of the selected events."""
        return cancel_page(
            self, request, request.POST.getlist(ACTION_CHECKBOX_NAME), back=request.get_full_path()
        )

    def get_urls(self) -> list[Any]:
        """Add the address of the button on an event's page."""
        cancel = self.admin_site.admin_view(self.cancel_view)
        return [path("<path:object_id>/cancel/", cancel, name="outbox_event_cancel"), *super().get_urls()]

    def cancel_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the reason, then discard the pending deliveries of one event."""
        if not self.has_cancel_permission(request):
            raise PermissionDenied
        return cancel_page(self, request, [unquote(object_id)], back=self.url("event_change", object_id))

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
            "tree": self._tree(kwargs["obj"]),
        }
        return super().render_change_form(request, {**context, **more}, *args, **kwargs)

    def _deliveries(self, event_id: UUID) -> list[dict[str, Any]]:
        rows = (
            Delivery.objects.filter(event_id=event_id)
            .defer("error", "message_options")
            .order_by("-pk")[:_MAX_DELIVERIES]
        )
        return [
            {
                "url": self.url("delivery_change", row.pk),
                "row": row,
                "handler": formatting.dotted(row.handler),
                "badge": formatting.badge(row.state),
                "dispatched_at": formatting.timestamp(row.dispatched_at),
                "finished_at": formatting.timestamp(row.finished_at),
            }
            for row in rows
        ]

    def _tree(self, event: Event) -> dict[str, Any] | None:
        """Return what caused an event and what it caused; None if it stands alone."""
        tree = causation_tree(router.db_for_read(Event), event)
        if not (tree.top.caused or tree.pruned_cause):
            return None
        return {
            "top": self._node(tree.top, event.pk),
            "pruned_cause": tree.pruned_cause,
            "is_cut": tree.is_cut,
        }

    def _node(self, caused: CausedEvent, current: UUID) -> dict[str, Any]:
        event = caused.event
        return {
            "url": self.url("event_change", event.pk),
            "topic": formatting.dotted(event.topic),
            "key": event.key,
            "published_at": formatting.timestamp(event.created_at),
            "is_current": event.pk == current,
            "deliveries": [
                {
                    "url": self.url("delivery_change", pk),
                    "handler": formatting.dotted(handler),
                    "badge": formatting.badge(state),
                }
                for pk, handler, state in caused.deliveries
            ],
            "caused": [self._node(one, current) for one in caused.caused],
        }
