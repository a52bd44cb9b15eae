"""The size of the next claims after lost, slow and quick batches."""

from __future__ import annotations

from relay.batch_limit import BatchLimit

ROWS, SIZE = 500, 8_000_000
TIMEOUT_S = 10.0


def limit() -> BatchLimit:
    return BatchLimit(rows=ROWS, size=SIZE)


def send(limit: BatchLimit, rows: int, size: int, *, took_s: float = 0.01) -> tuple[int, int]:
    limit.note_sent(rows, size, took_s=took_s, timeout_s=TIMEOUT_S)
    return limit.rows, limit.size


def test_batches_of_small_events_keep_the_full_size() -> None:
    assert send(limit(), ROWS, ROWS * 1000) == (ROWS, SIZE)


def test_a_lost_batch_halves_the_next_claim_down_to_one_delivery() -> None:
    found = limit()
    found.note_lost(400, 6_000_000)
    assert (found.rows, found.size) == (200, 3_000_000)
    found.note_lost(1, 1)
    found.note_lost(1, 0)
    assert (found.rows, found.size) == (1, 1)


def test_quick_batches_restore_the_full_size_step_by_step() -> None:
    found = limit()
    found.note_lost(4, 4_000)
    assert send(found, 2, 2_000) == (4, 4_000)
    for _ in range(20):
        send(found, found.rows, found.rows * 1000)
    assert (found.rows, found.size) == (ROWS, SIZE)


def test_a_slow_batch_keeps_its_size() -> None:
    found = limit()
    found.note_lost(400, 4_000_000)
    assert send(found, 200, 2_000_000, took_s=TIMEOUT_S / 2) == (200, 2_000_000)


def test_a_claim_of_large_events_locks_about_twice_the_rows_that_fit() -> None:
    assert send(limit(), 30, 30 * 260_000)[0] == 2 * SIZE // 260_000


def test_a_batch_without_a_payload_counts() -> None:
    assert send(limit(), 5, 0) == (ROWS, SIZE)
