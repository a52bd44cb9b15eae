"""Which of the claimed deliveries of a packed handler travel together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from .claimed import Claimed

# A pack is bounded in its size as well, as a worker has to hold all of it before it begins with the first
# event. Counted are characters, of which one may take up to four bytes.
MAX_PACK_CHARS = 1024 * 1024


def packs_of(rows: Sequence[Claimed], size: int) -> Iterator[Sequence[Claimed]]:
    """Divide rows, in the order of their ids, into packs of up to `size`.

    A pack is what lies within one block of ids, so that its name can be told from any of its deliveries:
    see `block_of`. Of deliveries that were written one after the other all packs but the outer two are full.
    """
    level, number = block_of(rows, size)
    # The first block of each level holds the smallest ids, which would have to ask for all of these.
    if len(rows) > size or (level and not number):
        upper = (2 * number + 1 << level - 1) * size
        cut = bisect_left(rows, upper, key=lambda row: row.delivery_id)
        yield from packs_of(rows[:cut], size)
        yield from packs_of(rows[cut:], size)
    elif len(rows) > 1 and sum(len(row.payload) + len(row.headers) for row in rows) > MAX_PACK_CHARS:
        # What is large itself has little to gain.
        yield from ([row] for row in rows)
    else:
        yield rows


def block_of(rows: Sequence[Claimed], size: int) -> tuple[int, int]:
    """Return the smallest block that holds rows: its level, and its number on that level.

    On level 0 a block is `size` consecutive ids, on each further one it is two of those below.
    """
    first, last = (rows[end].delivery_id // size for end in (0, -1))
    level = (first ^ last).bit_length()
    return level, first >> level


def blocks_around(delivery_id: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield every block that may be that of a pack with this delivery."""
    level, number = 0, delivery_id // size
    yield level, number
    while number > 1:
        level, number = level + 1, number >> 1
        yield level, number
