"""Fixtures for pytest, and no thread that writes counts behind a test's back.

pytest loads this in every project of the environment, so nothing of Django or of the outbox is imported
before a project has done so.
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
    """Return the events published since the test began, as a list that is always up to date."""
    from .capture import CapturedEvents

    return CapturedEvents()


@pytest.fixture
def deliver_outbox(db: Any) -> Callable[..., Delivered]:
    """Return `outbox.testing.deliver`."""
    from .delivery import deliver

    return deliver


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold the counts of monitored functions while tests run."""
    confirmations = _confirmations()
    if confirmations is not None:
        confirmations.holds_counts = True


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Forget what a test has counted."""
    confirmations = _confirmations()
    if confirmations is not None:
        confirmations.drop_counts()


def _confirmations() -> Confirmations | None:
    registry = sys.modules.get("django.apps")
    if registry is None or not registry.apps.ready or not registry.apps.is_installed("outbox"):
        return None
    from outbox.confirmations import confirmations

    return confirmations
