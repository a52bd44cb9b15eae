"""The deliveries, and the actions of operators on them."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Prefetch, prefetch_related_objects
from django.db.models.functions import Left, Right
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import path
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from outbox.models import Delivery, Event
from outbox.operations.blocked_keys import WAITING_LIMIT, head_of_key, waiting_behind

from . import actions, delivery_columns, formatting
from .base import OutboxAdmin
from .filters import WAITING, EventPeriodFilter, EventTopicFilter, HandlerFilter, StateFilter
from .job_links import job_links
from .pagination import Ordering
from .reason_pages import discard_page
from .search import Search, search_deliveries

# The orderings of the states' partial indexes.
_ORDERINGS: dict[str | None, Ordering] = {
    Delivery.State.PENDING: Ordering(("available_at", "pk")),
    Delivery.State.DISPATCHED: Ordering(("confirm_by", "pk")),
}


@admin.register(Delivery)
class DeliveryAdmin(OutboxAdmin):
    """The list of deliveries, the page of one delivery, and the actions on both."""

    list_display = (
        "number",
        "topic",
        "dotted_handler",
        delivery_columns.state_and_attempts,
        delivery_columns.last_change,
        delivery_columns.error_summary,
    )
    list_filter = (StateFilter, HandlerFilter, EventTopicFilter, EventPeriodFilter)
    search_fields = ("event_id", "key", "topic")
    search_help_text = _(
        "An event id, a key, the beginning of an ordering key, a topic, or a pattern of topics such as shop.*"
    )
    actions = ("retry_selected", "discard_selected")
    change_form_template = "admin/outbox/delivery/change_form.html"
    fieldsets: ClassVar[Any] = (
        (
            None,
            {
                "fields": (
                    *("event_link", "handler_link", "queue", "ordering_key"),
                    delivery_columns.state_badge,
                    delivery_columns.attempt_counts,
                )
            },
        ),
        (_("Times"), {"fields": (delivery_columns.published, *delivery_columns.TIMES)}),
        (_("Outcome"), {"fields": (delivery_columns.full_error,)}),
        (_("Payload"), {"fields": (delivery_columns.payload,), "classes": ("collapse",)}),
    )
    readonly_fields: ClassVar[Any] = (*admin.utils.flatten_fieldsets(fieldsets), delivery_columns.last_error)

    # ------------------------------------------------------------ the list

    def search(self, term: str, rows: Any) -> Search:
        """Parse the search box."""
        return search_deliveries(term, rows)

    def list_order(self, chosen: dict[str, str]) -> Ordering:
        """Return the ordering of the chosen state's index, or else the newest first."""
        return _ORDERINGS.get(chosen.get(StateFilter.parameter_name), super().list_order(chosen))

    def list_columns(self, rows: Any) -> Any:
        """Read the two ends of the error instead of all of it."""
        ends = {
            "error_head": Left("error", formatting.ERROR_END),
            "error_tail": Right("error", formatting.ERROR_END),
        }
        return rows.defer("error", "message_options").annotate(**ends)

    def load_related(self, rows: list[Any]) -> None:
        """Load the events of all deliveries of the page; a join might read all events."""
        prefetch_related_objects(rows, Prefetch("event", Event.objects.only("topic", "key")))

    @admin.display(description=_("delivery"))
    def number(self, delivery: Delivery) -> str:
        """Show the id."""
        return f"#{delivery.pk}"

    @admin.display(description=_("topic"))
    def topic(self, delivery: Delivery) -> SafeString | str:
        """Link the event."""
        event = getattr(delivery, "event", None)
        if event is None:
            return str(delivery_columns.NO_EVENT)
        return formatting.link(self.url("event_change", event.pk), formatting.dotted(event.topic))

    @admin.display(description=_("handler"))
    def dotted_handler(self, delivery: Delivery) -> SafeString:
        """Show the handler."""
        return formatting.dotted(delivery.handler)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list, with links to jobs on all deliveries that match its filters."""
        context = {"job_links": job_links(self, request)}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    # ------------------------------------------------------------ one delivery

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Label the error as the last error unless it is the final outcome."""
        if obj is None or obj.state in (Delivery.State.FAILED, Delivery.State.DISCARDED):
            return self.fieldsets
        outcome: Any = {"fields": (delivery_columns.last_error,)}
        return [
            (title, outcome if delivery_columns.full_error in options["fields"] else options)
            for title, options in self.fieldsets
        ]

    @admin.display(description=_("event"))
    def event_link(self, delivery: Delivery) -> SafeString | str:
        """Link the event."""
        event = getattr(delivery, "event", None)
        return (
            formatting.link(self.url("event_change", event.pk), event)
            if event
            else str(delivery_columns.NO_EVENT)
        )

    @admin.display(description=_("handler"))
    def handler_link(self, delivery: Delivery) -> SafeString:
        """Link the statistics of the handler."""
        return formatting.link(self.url("handlerstats_handler", delivery.handler), delivery.handler)

    @admin.display(description=_("ordering key"))
    def ordering_key(self, delivery: Delivery) -> SafeString | str:
        """Show the ordering key, and the deliveries that block this one or are blocked by it."""
        head = head_of_key(delivery)
        if head is None or head.state != Delivery.State.FAILED:
            return delivery.key or formatting.EMPTY
        if head.pk == delivery.pk:
            return format_html("{} {}", delivery.key, self._blocked_behind(delivery))
        url = self.url("delivery_change", head.pk)
        blocked_by = _now("blocked by delivery #%d, which failed") % head.pk
        return format_html(
            "{} {}", delivery.key, formatting.link(url, formatting.badge("failed", blocked_by))
        )

    def _blocked_behind(self, delivery: Delivery) -> SafeString | str:
        count = waiting_behind(delivery)
        if not count:
            return ""
        shown = formatting.limited(count, WAITING_LIMIT)
        text = ngettext("blocks %s delivery behind it", "blocks %s deliveries behind it", count) % shown
        query = urlencode({"state": WAITING, "handler": delivery.handler, "q": delivery.key})
        url = f"{self.url('delivery_changelist')}?{query}"
        return formatting.link(url, formatting.badge("failed", text))

    # ------------------------------------------------------------ actions

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may retry and discard; this takes the change permission."""
        return self.has_app_permission(request, "change_delivery")

    @admin.action(permissions=["operate"], description=_("Retry failed deliveries"))
    def retry_selected(self, request: HttpRequest, queryset: Any) -> None:
        """Retry the failed ones among the selected deliveries."""
        self._retry(request, request.POST.getlist(ACTION_CHECKBOX_NAME))

    @admin.action(permissions=["operate"], description=_("Discard failed or pending deliveries…"))
    def discard_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        """Ask for the reason, then discard the selected deliveries."""
        return discard_page(
            self, request, request.POST.getlist(ACTION_CHECKBOX_NAME), back=request.get_full_path()
        )

    def get_urls(self) -> list[Any]:
        """Add the addresses of the buttons on a delivery's page."""
        wrap = self.admin_site.admin_view
        return [
            path("<path:object_id>/retry/", wrap(self.retry_view), name="outbox_delivery_retry"),
            path("<path:object_id>/discard/", wrap(self.discard_view), name="outbox_delivery_discard"),
            *super().get_urls(),
        ]

    def retry_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Retry one delivery."""
        self._require_operator(request)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self._retry(request, [unquote(object_id)])
        return HttpResponseRedirect(self.back(request, self.url("delivery_change", object_id)))

    def discard_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the reason, then discard one delivery."""
        self._require_operator(request)
        back = self.back(request, self.url("delivery_change", object_id))
        return discard_page(self, request, [unquote(object_id)], back=back)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the delivery with its event, which may be missing: the database has no constraint."""
        delivery = super().get_object(request, object_id, from_field)
        prefetch_related_objects([delivery] if delivery else [], "event")
        return delivery

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show the delivery, with its buttons if the user may use them."""
        context = {
            "may_operate": self.has_operate_permission(request),
            "retry_url": self.url("delivery_retry", object_id),
            "discard_url": self.url("delivery_discard", object_id),
            "discardable": actions.DISCARDABLE,
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _require_operator(self, request: HttpRequest) -> None:
        if not self.has_operate_permission(request):
            raise PermissionDenied

    def _retry(self, request: HttpRequest, pks: list[str]) -> None:
        retried = actions.retry(actions.as_ids(pks), request.user)
        if retried:
            text = ngettext(
                "%(count)s delivery will be resent.", "%(count)s deliveries will be resent.", retried
            )
            self.message_user(request, text % {"count": formatting.number(retried)}, messages.SUCCESS)
        if retried < len(pks):
            text = _now("Only failed deliveries can be retried; %(count)s selected were not changed.")
            others = formatting.number(len(pks) - retried)
            self.message_user(request, text % {"count": others}, messages.WARNING)
