"""The result of a claim."""

from __future__ import annotations

from typing import NamedTuple

from relay.claimed_delivery import ClaimedDelivery


class ClaimResult(NamedTuple):
    """The deliveries that one claim has locked and marked as dispatched.

    Args:
        rows: the deliveries, in the order of insertion.
        more: whether more deliveries may be due.
        blocked_keys: pairs of handler and ordering key of which the claim blocked a due delivery.
        paused: the paused handlers.
    """

    rows: list[ClaimedDelivery]
    more: bool
    blocked_keys: frozenset[tuple[str, str]] = frozenset()
    paused: frozenset[str] = frozenset()
