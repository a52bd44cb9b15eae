"""Whether and when a delivery that failed is tried again, decided as Dramatiq's `Retries` does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import dramatiq
from dramatiq.common import compute_backoff
from dramatiq.middleware import Retries
from dramatiq.middleware.retries import DEFAULT_MAX_BACKOFF


def retry_in(actor: dramatiq.Actor[..., Any], retries: int, error: BaseException) -> timedelta | None:
    """Return how long to wait before the next try, None if there is none.

    Args:
        retries: how often it has been tried again so far.
    """
    rules = next((one for one in actor.broker.middleware if isinstance(one, Retries)), None)
    if rules is None or isinstance(error, actor.options.get("throws") or ()):
        return None
    if not _is_retried(actor.options, rules, retries, error):
        return None
    if isinstance(error, dramatiq.Retry) and error.delay is not None:
        return timedelta(milliseconds=error.delay)
    longest = min(actor.options.get("max_backoff", rules.max_backoff), DEFAULT_MAX_BACKOFF)
    shortest = actor.options.get("min_backoff", rules.min_backoff)
    _, delay_ms = compute_backoff(retries, factor=shortest, max_backoff=longest)
    return timedelta(milliseconds=delay_ms)


def _is_retried(options: dict[str, Any], rules: Retries, retries: int, error: BaseException) -> bool:
    retry_when = options.get("retry_when", rules.retry_when)
    if retry_when is not None:
        return bool(retry_when(retries, error))
    limit = options.get("max_retries", rules.max_retries)
    return limit is None or retries < limit
