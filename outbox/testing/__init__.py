"""The testing kit: look at published events, deliver them inline, and make handlers fail.

Each name is imported when it is first used, because pytest loads the plugin before Django is set up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import CapturedEvents as CapturedEvents
    from .capture import assert_not_published as assert_not_published
    from .capture import assert_published as assert_published
    from .capture import captured_events as captured_events
    from .cases import OutboxTestCaseMixin as OutboxTestCaseMixin
    from .cases import OutboxTestRunner as OutboxTestRunner
    from .counts import deferred_counts as deferred_counts
    from .counts import flush_counts as flush_counts
    from .delivery import Delivered as Delivered
    from .delivery import TooManyDeliveries as TooManyDeliveries
    from .delivery import deliver as deliver
    from .faults import Injected as Injected
    from .faults import InjectedFailure as InjectedFailure
    from .faults import fail_handler as fail_handler

_MODULES = {
    "CapturedEvents": "capture",
    "Delivered": "delivery",
    "Injected": "faults",
    "InjectedFailure": "faults",
    "OutboxTestCaseMixin": "cases",
    "OutboxTestRunner": "cases",
    "TooManyDeliveries": "delivery",
    "assert_not_published": "capture",
    "assert_published": "capture",
    "captured_events": "capture",
    "deliver": "delivery",
    "fail_handler": "faults",
    "flush_counts": "counts",
    "deferred_counts": "counts",
}

__all__ = [
    "CapturedEvents",
    "Delivered",
    "Injected",
    "InjectedFailure",
    "OutboxTestCaseMixin",
    "OutboxTestRunner",
    "TooManyDeliveries",
    "assert_not_published",
    "assert_published",
    "captured_events",
    "deferred_counts",
    "deliver",
    "fail_handler",
    "flush_counts",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
