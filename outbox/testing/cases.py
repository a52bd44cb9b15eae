"""The testing kit for unittest and Django's test runner."""

from __future__ import annotations

import unittest
from contextlib import ExitStack
from typing import Any

from django.test.runner import DiscoverRunner

from .capture import CapturedEvents, assert_not_published, assert_published
from .counts import deferred_counts
from .delivery import deliver
from .faults import fail_handler


class OutboxTestCaseMixin(unittest.TestCase):
    """Add the testing kit to a `TestCase`: `class OrderTests(OutboxTestCaseMixin, TestCase)`."""

    assertPublished = staticmethod(assert_published)
    assertNotPublished = staticmethod(assert_not_published)
    deliver_outbox = staticmethod(deliver)
    fail_handler = staticmethod(fail_handler)
    outbox_events: CapturedEvents

    def setUp(self) -> None:
        """Begin to capture events, and defer the counts of monitored functions."""
        super().setUp()
        self.enterContext(deferred_counts())
        self.outbox_events = CapturedEvents()


class OutboxTestRunner(DiscoverRunner):
    """Django's test runner, with the counts of monitored functions deferred for the whole run."""

    def setup_test_environment(self, **kwargs: Any) -> None:
        """Defer the counts."""
        super().setup_test_environment(**kwargs)
        self._deferred = ExitStack()
        self._deferred.enter_context(deferred_counts())

    def teardown_test_environment(self, **kwargs: Any) -> None:
        """Stop deferring the counts."""
        self._deferred.close()
        super().teardown_test_environment(**kwargs)
