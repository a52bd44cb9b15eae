"""The kit for unittest and Django's test runner."""

from __future__ import annotations

import unittest
from contextlib import ExitStack
from typing import Any

from django.test.runner import DiscoverRunner

from .capture import CapturedEvents, assert_not_published, assert_published
from .counts import held_counts
from .delivery import deliver
from .faults import fail_handler


class OutboxTestCaseMixin(unittest.TestCase):
    """Add the kit to a `TestCase`: `class OrderTests(OutboxTestCaseMixin, TestCase)`."""

    assertPublished = staticmethod(assert_published)
    assertNotPublished = staticmethod(assert_not_published)
    deliver_outbox = staticmethod(deliver)
    fail_handler = staticmethod(fail_handler)
    outbox_events: CapturedEvents

    def setUp(self) -> None:
        """Begin to capture events, and hold the counts of monitored functions."""
        super().setUp()
        self.enterContext(held_counts())
        self.outbox_events = CapturedEvents()


class OutboxTestRunner(DiscoverRunner):
    """Django's test runner, holding the counts of monitored functions throughout."""

    def setup_test_environment(self, **kwargs: Any) -> None:
        """Hold the counts."""
        super().setup_test_environment(**kwargs)
        self._held = ExitStack()
        self._held.enter_context(held_counts())

    def teardown_test_environment(self, **kwargs: Any) -> None:
        """Count as ever."""
        self._held.close()
        super().teardown_test_environment(**kwargs)
