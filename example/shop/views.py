"""The shop's pages."""

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.html import escape
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from .forms import OrderForm
from .models import AuditEntry, DailyReport, Order, OrderStatus, Product
from .services import InvalidMove, move_order, place_and_roll_back, place_order, request_report
from .signals import order_status_changed
from .timeline import events_of, timeline

PAGE_SIZE = 20
OFFICE_SIZE = 10


@require_GET
def order_list(request: HttpRequest) -> HttpResponse:
    """Show the recent orders, with all statuses or with one."""
    status = request.GET.get("status", "")
    orders = Order.objects.select_related("customer")
    if status in OrderStatus.values:
        orders = orders.filter(status=status)
    page = Paginator(orders, PAGE_SIZE).get_page(request.GET.get("page"))
    return render(request, "shop/orders.html", {"page": page, "status": status, "statuses": OrderStatus})


@require_http_methods(["GET", "HEAD", "POST"])
def order_new(request: HttpRequest) -> HttpResponse:
    """Place an order, or roll it back on purpose."""
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return _place(request, form)
    return render(request, "shop/order_new.html", {"form": form}, status=422 if form.errors else 200)


def _place(request: HttpRequest, form: OrderForm) -> HttpResponse:
    customer, quantities = form.cleaned_data["customer"], form.quantities()
    if form.cleaned_data["roll_back"]:
        number = place_and_roll_back(customer, quantities)
        messages.warning(request, f"Order {number} was rolled back: no row is saved and no handler runs.")
        return redirect("shop:orders")
    order = place_order(customer, quantities)
    messages.success(request, f"{order} was placed. Its handlers start now.")
    return redirect(order)


@require_GET
def order_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Show an order, its events and the effects of its handlers."""
    order = get_object_or_404(Order.objects.select_related("customer"), pk=pk)
    lines = [(line, line.price * line.quantity) for line in order.lines.select_related("product")]
    shown = {"order": order, "lines": lines, "entries": timeline(order), "events": events_of(order)}
    return render(request, "shop/order.html", shown)


@require_POST
def order_move(request: HttpRequest, pk: int) -> HttpResponse:
    """Move an order to the requested status."""
    get_object_or_404(Order, pk=pk)
    status = request.POST.get("status", "")
    if status not in OrderStatus.values:
        return HttpResponseBadRequest(f"There is no status {escape(status)!r}.")
    try:
        order = move_order(pk, OrderStatus(status))
    except InvalidMove as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{order} is now {order.status}.")
    return redirect("shop:order", pk=pk)


@require_GET
def product_list(request: HttpRequest) -> HttpResponse:
    """Show the stock."""
    return render(request, "shop/products.html", {"products": Product.objects.all()})


@require_GET
def office(request: HttpRequest) -> HttpResponse:
    """Show the latest moves of orders, the audit and the reports."""
    shown = {
        "moves": [
            {"at": send.created_at, **send.arguments} for send in order_status_changed.recent(OFFICE_SIZE)
        ],
        "audit": AuditEntry.objects.all()[:OFFICE_SIZE],
        "reports": DailyReport.objects.all()[:OFFICE_SIZE],
    }
    return render(request, "shop/office.html", shown)


@require_POST
def report_new(request: HttpRequest) -> HttpResponse:
    """Have today's report written in the background."""
    request_report(timezone.localdate())
    messages.success(request, "A worker is writing the report. Reload the page.")
    return redirect("shop:office")
