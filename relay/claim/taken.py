"""What a claim got."""

from __future__ import annotations

from typing import NamedTuple

from ..claimed import Claimed


class Taken(NamedTuple):
    """Deliveries that were claimed.

    Args:
        more: whether more may be due.
        held_lanes: lanes of which a delivery was due, but stands behind another one.
        paused: handlers whose deliveries are to be held instead, as of the claim.
    """

    rows: list[Claimed]
    more: bool
    held_lanes: frozenset[tuple[str, str]] = frozenset()
    paused: frozenset[str] = frozenset()
