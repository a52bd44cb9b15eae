"""UUID version 7: ids that sort by the time of their creation (RFC 9562 §5.7).

The 12 bits of rand_a are the fraction of the millisecond (RFC 9562 §6.2, method 3). So the ids of one process
sort with a resolution of about 244 ns. No randomness is stored, so a forked child needs no reset.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NS_PER_MS = 1_000_000
_VERSION_AND_VARIANT = 0x7 << 76 | 0x2 << 62
_RANDOM_BITS = (1 << 62) - 1
_LAST_STAMP = (1 << 60) - 1
# If the clock is set back by more than this, ids follow the clock; otherwise they count on from the last id.
_MAX_LEAD = 10_000 << 12

_last = 0


def uuid7(*, clock: Callable[[], int] = time.time_ns) -> UUID:
    """Return a new id, greater than all earlier ids of this thread unless the clock was set back over 10 s.

    Args:
        clock: returns nanoseconds since 1970.
    """
    global _last
    ms, ns = divmod(clock(), _NS_PER_MS)
    stamp = ms << 12 | (ns << 12) // _NS_PER_MS
    if stamp <= _last < stamp + _MAX_LEAD:
        stamp = _last + 1
    # Threads may store in any order. A lock would cost as much as the id, and 62 random bits keep ids unique.
    _last = stamp
    return _build(stamp, int.from_bytes(os.urandom(8), "big") & _RANDOM_BITS)


def uuid7_floor(moment: datetime) -> UUID:
    """Return the smallest id of a moment: ids created before the moment are less, and all others are not.

    Raises:
        ValueError: for a naive datetime.
    """
    if moment.utcoffset() is None:
        raise ValueError(f"{moment!r} is naive; give it a timezone")
    ms, us = divmod(max((moment - _EPOCH) // _MICROSECOND, 0), 1000)
    return _build(min(ms << 12 | (us << 12) // 1000, _LAST_STAMP), 0)


def _build(stamp: int, random: int) -> UUID:
    """Combine 60 bits of time, 62 random bits, the version and the variant."""
    return UUID(int=(stamp >> 12) << 80 | (stamp & 0xFFF) << 64 | _VERSION_AND_VARIANT | random)
