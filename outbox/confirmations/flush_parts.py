"""Writing buffers in parts."""

from __future__ import annotations

from collections.abc import Callable

from outbox.conf import get_settings

from . import statements
from .buffer import Buffer
from .outcome import Outcome


def drop_unwanted_tallies(buffers: dict[str, Buffer]) -> None:
    """Drop the counts of runs if STATS is off: a run is counted faster than the setting is read."""
    if not get_settings().stats:
        for buffer in buffers.values():
            buffer.tallies = {}


def write_next(
    buffers: dict[str, Buffer],
    *,
    part_size: int,
    reported: list[Outcome],
    put_back: Callable[[str, Buffer], None],
) -> bool:
    """Write the first buffer in parts, and remove it; return whether nothing is left of it.

    Args:
        buffers: the buffers of one flush, by database.
        part_size: outcomes of one statement.
        reported: gets the written outcomes that telemetry signals report.
        put_back: called with the database and the content that was not written, also after an interrupt.
    """
    database, buffer = next(iter(buffers.items()))
    left, parts = Buffer(), buffer.split(part_size)
    try:
        del buffers[database]
        while parts:
            rest, written = statements.attempt(database, parts[0])
            reported += written
            if rest is parts[0]:
                # The other parts would fail too.
                break
            left.merge_older(rest)
            del parts[0]
    finally:
        for part in parts:
            left.merge_older(part)
        if left:
            put_back(database, left)
    return not left
