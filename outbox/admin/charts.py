"""Small bar charts of runs over time, as numbers for an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from django.utils import timezone
from django.utils.translation import gettext as _

from ..stats import Slot

# The units of the drawing; the browser scales it.
_BAR, _GAP, _HEIGHT = 8, 2, 60


class Bar(NamedTuple):
    """One bar: errors below, successes above them. Text, so that no locale puts commas into an SVG."""

    x: str
    width: str
    ok_y: str
    ok_height: str
    error_y: str
    error_height: str
    title: str


class Chart(NamedTuple):
    """The bars, and the box they fill."""

    bars: list[Bar]
    view_box: str
    title: str


def chart_of(slots: Sequence[Slot]) -> Chart:
    """Draw runs over time, scaled to the highest bar."""
    highest = max((slot.succeeded + slot.errors for slot in slots), default=0)
    bars = [_bar(index, slot, highest) for index, slot in enumerate(slots) if slot.succeeded or slot.errors]
    errors = sum(slot.errors for slot in slots)
    title = _("at most %(highest)d runs a bar, %(errors)d errors in all") % {
        "highest": highest,
        "errors": errors,
    }
    return Chart(bars, f"0 0 {len(slots) * (_BAR + _GAP)} {_HEIGHT}", title)


def _bar(index: int, slot: Slot, highest: int) -> Bar:
    ok, errors = (_height(number, highest) for number in (slot.succeeded, slot.errors))
    start = timezone.localtime(slot.start) if timezone.is_aware(slot.start) else slot.start
    title = _("%(start)s: %(succeeded)d succeeded, %(errors)d errors") % {
        "start": f"{start:%Y-%m-%d %H:%M}",
        "succeeded": slot.succeeded,
        "errors": slot.errors,
    }
    top = _HEIGHT - errors
    x = index * (_BAR + _GAP)
    return Bar(str(x), str(_BAR), str(top - ok), str(ok), str(top), str(errors), title)


def _height(number: int, highest: int) -> int:
    # Whatever happened can be seen, were it one error in a thousand.
    return max(2, number * (_HEIGHT - 2) // highest) if number else 0
