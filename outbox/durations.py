"""Durations as text with units."""

from __future__ import annotations

import re
from datetime import timedelta

# Both databases can add this to the current time, and every system call can wait for it.
LONGEST = timedelta(days=36_500)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")


def parse_duration(text: str) -> timedelta:
    """Parse `90s`, `15m`, `1h`, `7d` or `2w`; a number without a unit is in seconds.

    Raises:
        ValueError: for any other text, and for a duration that is too long.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m, 1h or 7d")
    try:
        duration = timedelta(seconds=float(match[1]) * _UNITS[match[2] or "s"])
    except OverflowError:
        duration = timedelta.max
    if duration > LONGEST:
        raise ValueError(f"{text!r} is too long; give at most {LONGEST.days}d")
    return duration


def format_duration(seconds: float) -> str:
    """Return a duration with its unit in three significant digits, such as `4.07 ms` or `1.5 min`."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (60, 1, "s"), (3600, 1 / 60, "min")):
        if seconds < limit * 0.9995:
            return _three_digits(seconds * factor, unit)
    if seconds < 86_400:
        return _three_digits(seconds / 3600, "h")
    return f"{seconds / 86_400:,.1f} d"


def _three_digits(number: float, unit: str) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    text = f"{number:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
