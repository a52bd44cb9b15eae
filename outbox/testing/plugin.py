"""Fixtures for pytest, and deferred counts of monitored functions during tests.

pytest loads the plugin in every project of the environment. So the plugin imports neither Django nor the
outbox before the project does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from outbox.confirmations import Confirmations

    from .capture import CapturedEvents
    from .delivery import Delivered


@pytest.fixture
def outbox_events(db: Any) -> CapturedEvents:
    """Return the events published since the test began; the list is always up to date."""
    from .capture import CapturedEvents

    return CapturedEvents()


@pytest.fixture
def deliver_outbox(db: Any) -> Callable[..., Delivered]:
    """Return `outbox.testing.deliver`."""
    from .delivery import deliver

    return deliver


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Defer the counts of monitored functions during the test."""
    confirmations = _confirmations()
    if confirmations is not None:
        confirmations.defers_counts = True


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Drop the counts of the test."""
    confirmations = _confirmations()
    if confirmations is not None:
        confirmations.drop_counts()


def _confirmations() -> Confirmations | None:
    registry = sys.modules.get("django.apps")
    if registry is None or not registry.apps.ready or not registry.apps.is_installed("outbox"):
        return None
    from outbox.confirmations import confirmations

    return confirmations
