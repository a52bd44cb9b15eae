"""What several files of integration tests need."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.benchmarks.surroundings import Surroundings


@pytest.fixture
def surroundings(postgres_url: str, redis_url: str) -> Iterator[Surroundings]:
    """Return servers and names for benchmarks, which leave nothing behind."""
    found = Surroundings(
        database_url=postgres_url,
        redis_url=redis_url,
        rabbitmq_url=None,
        prefix=f"bench_{uuid.uuid4().hex[:8]}",
        with_peers=False,
    )
    yield found
    found.clean()
