"""Deliveries: where each stands, and what an operator can do about it."""

from __future__ import annotations

from typing import Any

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

from ..lanes import WAITING_LIMIT, head_of_lane, waiting_behind
from ..models import Delivery, Event
from . import columns, display, operations
from .base import OutboxAdmin
from .discarding import confirm_discard
from .filters import HELD, EventPeriodFilter, EventTopicFilter, HandlerFilter, StateFilter
from .paging import Order
from .searching import Search, search_deliveries

# The orders in which the partial indexes of the states can be read.
_ORDERS: dict[str | None, Order] = {
    Delivery.Status.PENDING: Order(("available_at", "pk")),
    Delivery.Status.DISPATCHED: Order(("confirm_by", "pk")),
}


_EVENT_GONE = _("the event is gone")


@admin.register(Delivery)
class DeliveryAdmin(OutboxAdmin):
    """The list of deliveries, the page of one, and the operations on both."""

    list_display = ("number", "topic", "dotted_handler", "progress", "last_change", "error_summary")
    list_filter = (StateFilter, HandlerFilter, EventTopicFilter, EventPeriodFilter)
    search_fields = ("event_id", "key", "topic")
    search_help_text = _(
        "An event id, a key or the beginning of a lane key, a topic, or a pattern of topics such as shop.*"
    )
    actions = ("retry_selected", "discard_selected")
    change_form_template = "admin/outbox/delivery/change_form.html"
    fieldsets = (
        (None, {"fields": ("event_link", "handler_link", "queue", "lane", "state", "tries")}),
        (_("Times"), {"fields": ("published", "available", "expires", "dispatched", "confirm", "finished")}),
        (_("Outcome"), {"fields": ("full_error",)}),
        (_("Payload"), {"fields": ("payload",), "classes": ("collapse",)}),
    )
    readonly_fields = (*admin.utils.flatten_fieldsets(fieldsets), "last_error")

    available = staticmethod(display.moment_of("available_at", _("available")))
    expires = staticmethod(display.moment_of("expires_at", _("expires")))
    dispatched = staticmethod(display.moment_of("dispatched_at", _("dispatched")))
    confirm = staticmethod(display.moment_of("confirm_by", _("confirm by")))
    finished = staticmethod(display.moment_of("finished_at", _("finished")))
    state = staticmethod(columns.state)
    progress = staticmethod(columns.progress)
    tries = staticmethod(columns.tries)
    last_change = staticmethod(columns.last_change)
    error_summary = staticmethod(columns.error_summary)
    full_error = staticmethod(columns.full_error)
    last_error = staticmethod(columns.last_error)

    # ------------------------------------------------------------ the list

    def search(self, term: str, rows: Any) -> Search:
        """Understand the search box."""
        return search_deliveries(term, rows)

    def get_order(self, chosen: dict[str, str]) -> Order:
        """Return the order of the index that the chosen state has, else the newest first."""
        return _ORDERS.get(chosen.get(StateFilter.parameter_name), super().get_order(chosen))

    def for_list(self, rows: Any) -> Any:
        """Fetch the two ends of the error instead of all of it."""
        ends = {
            "error_head": Left("error", display.ERROR_END),
            "error_tail": Right("error", display.ERROR_END),
        }
        return rows.defer("error").annotate(**ends)

    def after_load(self, rows: list[Any]) -> None:
        """Fetch the events of all deliveries of the page; a join might read all events."""
        prefetch_related_objects(rows, Prefetch("event", Event.objects.only("topic", "key")))

    @admin.display(description=_("delivery"))
    def number(self, delivery: Delivery) -> str:
        """Show the id."""
        return f"#{delivery.pk}"

    @admin.display(description=_("topic"))
    def topic(self, delivery: Delivery) -> SafeString | str:
        """Link the event."""
        event = getattr(delivery, "event", None)
        return (
            display.link(self.url("event_change", event.pk), display.dotted(event.topic))
            if event
            else str(_EVENT_GONE)
        )

    @admin.display(description=_("handler"))
    def dotted_handler(self, delivery: Delivery) -> SafeString:
        """Show the handler."""
        return display.dotted(delivery.handler)

    # ------------------------------------------------------------ one delivery

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Call the error by another name where it is not the outcome."""
        if obj is None or obj.status in (Delivery.Status.FAILED, Delivery.Status.DISCARDED):
            return self.fieldsets
        outcome: Any = {"fields": ("last_error",)}
        return [
            (title, outcome if "full_error" in options["fields"] else options)
            for title, options in self.fieldsets
        ]

    @admin.display(description=_("event"))
    def event_link(self, delivery: Delivery) -> SafeString | str:
        """Link the event."""
        event = getattr(delivery, "event", None)
        return display.link(self.url("event_change", event.pk), event) if event else str(_EVENT_GONE)

    @admin.display(description=_("handler"))
    def handler_link(self, delivery: Delivery) -> SafeString:
        """Link the statistics of the handler."""
        return display.link(self.url("handlerstats_handler", delivery.handler), delivery.handler)

    @admin.display(description=_("lane key"))
    def lane(self, delivery: Delivery) -> SafeString | str:
        """Show the key of an ordered handler's lane, and who waits in it for whom."""
        head = head_of_lane(delivery)
        if head is None or head.status != Delivery.Status.FAILED:
            return delivery.key or display.NOTHING
        if head.pk == delivery.pk:
            return format_html("{} {}", delivery.key, self._blocked_behind(delivery))
        url = self.url("delivery_change", head.pk)
        behind = _now("blocked by delivery #%d, which failed") % head.pk
        return format_html("{} {}", delivery.key, display.link(url, display.badge("failed", behind)))

    def _blocked_behind(self, delivery: Delivery) -> SafeString | str:
        count = waiting_behind(delivery)
        if not count:
            return ""
        shown = f"{count}+" if count == WAITING_LIMIT else str(count)
        text = ngettext("blocks %s delivery behind it", "blocks %s deliveries behind it", count) % shown
        query = urlencode({"state": HELD, "handler": delivery.handler, "q": delivery.key})
        return display.link(f"{self.url('delivery_changelist')}?{query}", display.badge("failed", text))

    @admin.display(description=_("published"))
    def published(self, delivery: Delivery) -> Any:
        """Show when the event was published."""
        event = getattr(delivery, "event", None)
        return display.moment(event.created_at if event else None)

    @admin.display(description=_("payload"))
    def payload(self, delivery: Delivery) -> Any:
        """Show what the handler got."""
        event = getattr(delivery, "event", None)
        return display.pretty_json(event.payload) if event else str(_EVENT_GONE)

    # ------------------------------------------------------------ operations

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may retry and discard: the change permission says so."""
        return self.may(request, "change_delivery")

    @admin.action(permissions=["operate"], description=_("Retry failed deliveries"))
    def retry_selected(self, request: HttpRequest, queryset: Any) -> None:
        """Send the selected deliveries again, if they failed."""
        self._retry(request, request.POST.getlist(ACTION_CHECKBOX_NAME))

    @admin.action(permissions=["operate"], description=_("Discard failed or pending deliveries…"))
    def discard_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        """Ask for the reason, then give the selected deliveries up."""
        return confirm_discard(
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
        """Send one delivery again."""
        self._require_operator(request)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        self._retry(request, [unquote(object_id)])
        return HttpResponseRedirect(self.url("delivery_change", object_id))

    def discard_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the reason, then give one delivery up."""
        self._require_operator(request)
        return confirm_discard(
            self, request, [unquote(object_id)], back=self.url("delivery_change", object_id)
        )

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the delivery with its event, which may be gone: no constraint keeps it."""
        delivery = super().get_object(request, object_id, from_field)
        prefetch_related_objects([delivery] if delivery else [], "event")
        return delivery

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show the delivery, with its buttons for those who may use them."""
        context = {
            "may_operate": self.has_operate_permission(request),
            "retry_url": self.url("delivery_retry", object_id),
            "discard_url": self.url("delivery_discard", object_id),
            "discardable": operations.DISCARDABLE,
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _require_operator(self, request: HttpRequest) -> None:
        if not self.has_operate_permission(request):
            raise PermissionDenied

    def _retry(self, request: HttpRequest, pks: list[str]) -> None:
        retried = operations.retry(operations.as_ids(pks), request.user)
        done = ngettext(
            "%(count)d delivery will be sent again.", "%(count)d deliveries will be sent again.", retried
        )
        if retried:
            self.message_user(request, done % {"count": retried}, messages.SUCCESS)
        if retried < len(pks):
            text = _now("Only failed deliveries can be retried; %(count)d selected were left as they are.")
            self.message_user(request, text % {"count": len(pks) - retried}, messages.WARNING)
