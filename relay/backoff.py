"""How long to wait before another try."""

from __future__ import annotations

import random

BASE_S = 0.5
CAP_S = 30.0

# 2 to this power exceeds any cap, and a larger exponent would overflow a float.
MAX_EXPONENT = 64


def delay_for(attempt: int, *, base_s: float = BASE_S, cap_s: float = CAP_S) -> float:
    """Return a random wait in seconds before try `attempt + 1`, for attempts counted from 0.

    Full jitter, after "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): of the schemes compared
    there, the one with the fewest calls while many clients wait for the same resource.
    """
    ceiling_s = min(cap_s, base_s * 2 ** min(attempt, MAX_EXPONENT))
    return random.uniform(0, ceiling_s)  # noqa: S311 - spreads load, guards nothing


class Backoff:
    """Count failures in a row, and say how long to wait after each."""

    def __init__(self, *, base_s: float = BASE_S, cap_s: float = CAP_S) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._attempt = 0

    def next_s(self) -> float:
        """Note a failure and return the wait in seconds that follows it."""
        wait_s = delay_for(self._attempt, base_s=self._base_s, cap_s=self._cap_s)
        self._attempt += 1
        return wait_s

    def reset(self) -> None:
        """Forget the failures, after a success."""
        self._attempt = 0
