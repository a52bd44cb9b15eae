"""The table of the handlers' statistics."""

from collections.abc import Callable

from django.db.models import Count
from rich.table import Table

from example.shop.models import Order, OrderStatus
from example.shop.receivers import add_up_spending, report_back_orders, report_orders
from outbox.models import Delivery
from outbox.operations.stats import get_stats

from .screen import Screen

NUMBERS = ("dispatched", "succeeded", "retried", "failed", "mean", "p95")


def is_complete() -> bool:
    """Return whether the statistics count every succeeded delivery and the ordinary receivers."""
    counted = {summary.handler: summary.succeeded_runs for summary in get_stats()}
    succeeded = Delivery.objects.filter(state=Delivery.State.SUCCEEDED)
    counts = succeeded.values_list("handler").annotate(Count("pk")).order_by()
    return all(counted.get(name, 0) >= count for name, count in counts) and _monitored() <= counted.keys()


def _monitored() -> set[str]:
    """Return the names of the monitored receivers that must have run."""
    functions: list[Callable[..., None]] = [report_orders, report_back_orders]
    if Order.objects.exclude(status=OrderStatus.PENDING).exists():
        functions.append(add_up_spending)
    return {f"{function.__module__}.{function.__qualname__}" for function in functions}


def show_handlers(screen: Screen) -> None:
    """Write the table."""
    table = Table("handler", title="Runs of the handlers", title_justify="left")
    for name in NUMBERS:
        table.add_column(name, justify="right")
    for summary in get_stats():
        table.add_row(
            summary.handler,
            *(
                f"{count:,}"
                for count in (
                    summary.dispatched,
                    summary.succeeded_runs,
                    summary.retried_runs,
                    summary.failed_runs,
                )
            ),
            *(f"{time_s * 1000:,.1f} ms" for time_s in (summary.mean_s, summary.p95_s)),
        )
    screen.write_table(table)
