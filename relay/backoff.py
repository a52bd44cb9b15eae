"""Waits between attempts: exponential backoff with jitter."""

from __future__ import annotations

import random
from collections.abc import Callable

BASE_S = 0.5
CAP_S = 30.0

# 2 to this power exceeds any cap, and a larger exponent would overflow a float.
MAX_EXPONENT = 64

Jitter = Callable[[float, float], float]


def delay_for(
    attempt: int, *, base_s: float = BASE_S, cap_s: float = CAP_S, jitter: Jitter = random.uniform
) -> float:
    """Return a random wait in seconds before attempt `attempt + 1`, for attempts counted from 0.

    Full jitter, from "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015). When many clients wait
    for the same resource, it makes the fewest calls of all schemes compared there.

    Args:
        jitter: draws a number between its two arguments.
    """
    ceiling_s = min(cap_s, base_s * 2 ** min(attempt, MAX_EXPONENT))
    return jitter(0, ceiling_s)


class Backoff:
    """Count failures in a row, and return the wait that follows each.

    Args:
        jitter: draws a number between its two arguments.
    """

    def __init__(
        self, *, base_s: float = BASE_S, cap_s: float = CAP_S, jitter: Jitter = random.uniform
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._jitter = jitter
        self._attempt = 0

    def next_s(self) -> float:
        """Count a failure and return the wait in seconds that follows it."""
        wait_s = delay_for(self._attempt, base_s=self._base_s, cap_s=self._cap_s, jitter=self._jitter)
        self._attempt += 1
        return wait_s

    def reset(self) -> None:
        """Forget the failures, after a success."""
        self._attempt = 0
