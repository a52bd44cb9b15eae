"""UUID version 7: ids that sort by the time at which they were made (RFC 9562 §5.7).

The 12 bits of rand_a hold the fraction of the millisecond (RFC 9562 §6.2, method 3), so ids of one process
sort by a clock of about 244 ns. There is no stored randomness, so a forked child needs no reset.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NS_PER_MS = 1_000_000
_VERSION_AND_VARIANT = 0x7 << 76 | 0x2 << 62
_RANDOM_BITS = (1 << 62) - 1
_LAST_STAMP = (1 << 60) - 1
# A clock that was set back further than this is followed; until then ids keep counting from the last one.
_MAX_LEAD = 10_000 << 12

_last = 0


def uuid7() -> UUID:
    """Return a new id, greater than earlier ones of this thread unless the clock was set back over 10 s."""
    global _last
    ms, ns = divmod(time.time_ns(), _NS_PER_MS)
    stamp = ms << 12 | (ns << 12) // _NS_PER_MS
    if stamp <= _last < stamp + _MAX_LEAD:
        stamp = _last + 1
    # Threads may store out of order; a lock would cost as much as the id, and 62 random bits keep it unique.
    _last = stamp
    return _build(stamp, int.from_bytes(os.urandom(8), "big") & _RANDOM_BITS)


def uuid7_floor(moment: datetime) -> UUID:
    """Return the smallest id of a moment: ids made earlier are less, ids made then or later are not.

    Raises:
        ValueError: for a naive datetime.
    """
    if moment.utcoffset() is None:
        raise ValueError(f"{moment!r} is naive; give it a timezone")
    ms, us = divmod(max((moment - _EPOCH) // _MICROSECOND, 0), 1000)
    return _build(min(ms << 12 | (us << 12) // 1000, _LAST_STAMP), 0)


def _build(stamp: int, random: int) -> UUID:
    """Put 60 bits of time and 62 random bits around the version and the variant."""
    return UUID(int=(stamp >> 12) << 80 | (stamp & 0xFFF) << 64 | _VERSION_AND_VARIANT | random)
