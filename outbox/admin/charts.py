"""Small bar charts of runs over time, as numbers for an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from django.utils.translation import gettext as _

from outbox.operations.stats import Slot

from .formatting import in_zone, number

# In units of the drawing; the browser scales it.
_BAR, _GAP, _HEIGHT = 8, 2, 60


@dataclass(frozen=True)
class Period:
    """A period that ends now, and the length of time that one bar or step of its charts covers."""

    name: str
    label: Any
    length: timedelta
    step: timedelta


class Bar(NamedTuple):
    """One bar, errors below successes; its numbers are text, so that no locale puts commas into an SVG."""

    x: str
    width: str
    succeeded_y: str
    succeeded_height: str
    errors_y: str
    errors_height: str
    title: str


class Chart(NamedTuple):
    """The bars, and the view box around them."""

    bars: list[Bar]
    view_box: str
    title: str


def chart_of(slots: Sequence[Slot]) -> Chart:
    """Draw runs over time, scaled to the highest bar."""
    highest = max((slot.succeeded + slot.errors for slot in slots), default=0)
    bars = [_bar(index, slot, highest) for index, slot in enumerate(slots) if slot.succeeded or slot.errors]
    errors = sum(slot.errors for slot in slots)
    title = _("at most %(highest)s runs a bar, %(errors)s retried or failed in all") % {
        "highest": number(highest),
        "errors": number(errors),
    }
    return Chart(bars, f"0 0 {len(slots) * (_BAR + _GAP)} {_HEIGHT}", title)


def _bar(index: int, slot: Slot, highest: int) -> Bar:
    succeeded, errors = (_height(number, highest) for number in (slot.succeeded, slot.errors))
    title = _("%(start)s: %(succeeded)s succeeded, %(errors)s retried or failed") % {
        "start": f"{in_zone(slot.start):%Y-%m-%d %H:%M %Z}",
        "succeeded": number(slot.succeeded),
        "errors": number(slot.errors),
    }
    top = _HEIGHT - errors
    x = index * (_BAR + _GAP)
    return Bar(str(x), str(_BAR), str(top - succeeded), str(succeeded), str(top), str(errors), title)


def _height(number: int, highest: int) -> int:
    # At least two units, so that even one error in a thousand runs is visible.
    return max(2, number * (_HEIGHT - 2) // highest) if number else 0
