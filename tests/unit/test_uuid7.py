"""UUIDs version 7, which sort by time."""

from __future__ import annotations

import os
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from outbox.uuid7 import uuid7, uuid7_floor


class Clock:
    """A clock that stands still, in nanoseconds; `PAST` is too far back to continue ids of the present."""

    PAST = 1_700_000_000_123_456_789

    def __init__(self) -> None:
        self.now = self.PAST

    def __call__(self) -> int:
        return self.now


def test_the_fields_are_those_of_rfc_9562() -> None:
    uuid7()
    found = uuid7(clock=Clock())
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == 1_700_000_000_123
    assert found.int >> 64 & 0xFFF == 456_789 * 4096 // 1_000_000


def test_ids_ascend_while_the_clock_stands_still_or_goes_back() -> None:
    clock = Clock()
    found = [uuid7(clock=clock) for _ in range(3)]
    clock.now -= 5_000_000_000
    found.append(uuid7(clock=clock))
    assert found == sorted(found)
    assert len(set(found)) == 4


def test_ids_follow_a_clock_that_is_set_back_far() -> None:
    clock = Clock()
    uuid7(clock=clock)
    clock.now -= 3_600_000_000_000
    assert uuid7(clock=clock).int >> 80 == 1_700_000_000_123 - 3_600_000


def test_ids_of_one_thread_ascend_in_order() -> None:
    found = [uuid7() for _ in range(20_000)]
    assert found == sorted(found)


def test_threads_make_no_duplicates() -> None:
    found: list[uuid.UUID] = []
    threads = [
        threading.Thread(target=lambda: found.extend([uuid7() for _ in range(5000)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 20_000


def test_a_forked_child_makes_other_ids() -> None:
    clock = Clock()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, uuid7(clock=clock).bytes)
        os._exit(0)
    os.waitpid(child, 0)
    assert uuid.UUID(bytes=os.read(reader, 16)) != uuid7(clock=clock)
    os.close(reader)
    os.close(writer)


def test_the_floor_separates_earlier_ids_from_later_ids() -> None:
    earlier = uuid7()
    time.sleep(0.000_01)
    moment = datetime.now(UTC)
    later = uuid7()
    assert earlier < uuid7_floor(moment) <= later
    assert uuid7_floor(moment).version == 7
    assert uuid7_floor(moment) < uuid7_floor(moment + timedelta(microseconds=1))


def test_the_floor_of_moments_out_of_range_is_the_nearest_id() -> None:
    assert uuid7_floor(datetime(1900, 1, 1, tzinfo=UTC)) == uuid7_floor(datetime(1970, 1, 1, tzinfo=UTC))
    assert uuid7_floor(datetime.max.replace(tzinfo=UTC)).version == 7


def test_a_naive_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="naive"):
        uuid7_floor(datetime(2026, 1, 1))
