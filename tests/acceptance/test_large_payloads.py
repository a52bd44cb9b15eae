"""Large payloads over a slow link to Redis: all events are dispatched, and the relay's memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import transaction

import outbox
from example.services import EmbeddedRedis, redis_executable
from outbox.models import Delivery
from tests.conftest import require
from tests.support.processes import Process
from tests.support.proxy import ThrottledProxy

from .stage import relay, wait_for_states, with_options

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

# Just within MAX_PAYLOAD_BYTES. PostgreSQL compresses this text to some 3 KB.
LARGE = {"text": "lorem ipsum dolor sit amet " * 9_600}
CHUNK = 25
SMALL = 20

MIB = 2**20
MOST_MEMORY = 150 * MIB
DEADLINE_S = 300


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    require(redis_executable(), "no redis-server of its own for a slow link")
    with EmbeddedRedis() as server:
        yield server


@contextmanager
def relay_over_a_slow_link(
    env: dict[str, str], server: EmbeddedRedis, *, bytes_per_s: float, dispatch_timeout_s: float
) -> Iterator[Process]:
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    with ThrottledProxy(port, bytes_per_s=bytes_per_s) as link:
        slow = env | {"OUTBOX_TEST_BROKER_URL": f"redis://127.0.0.1:{link.port}/0"}
        with relay(with_options(slow, DISPATCH_TIMEOUT=dispatch_timeout_s)) as process:
            yield process


def publish_large(count: int) -> None:
    """Publish large events, and small ones after them."""
    for _ in range(count // CHUNK):
        with transaction.atomic():
            outbox.publish_many([{"topic": "filed.mail", "payload": LARGE} for _ in range(CHUNK)])
    with transaction.atomic():
        outbox.publish_many([{"topic": "filed.mail"} for _ in range(SMALL)])


def most_memory(process: Process) -> int:
    """Return the most resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    ("count", "bytes_per_s", "dispatch_timeout_s"),
    [
        pytest.param(500, 12.5e6, 10, id="100-mbit-per-s"),
        # A full batch takes longer than the deadline, so the relay has to halve it more than once.
        pytest.param(75, 2e6, 3, id="16-mbit-per-s"),
    ],
)
def test_large_events_over_a_slow_link_are_dispatched_in_little_memory(
    process_env: dict[str, str],
    own_redis: EmbeddedRedis,
    count: int,
    bytes_per_s: float,
    dispatch_timeout_s: float,
) -> None:
    publish_large(count)
    with relay_over_a_slow_link(
        process_env, own_redis, bytes_per_s=bytes_per_s, dispatch_timeout_s=dispatch_timeout_s
    ) as process:
        wait_for_states(DEADLINE_S, dispatched=count + SMALL)
        memory = most_memory(process)
    assert memory < MOST_MEMORY, f"{memory / MIB:.0f} MiB"
    assert set(Delivery.objects.values_list("attempts", "refusals")) == {(1, 0)}
