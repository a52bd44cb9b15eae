"""The pytest plugin and the unittest runner, each in its own process, as in a project."""

import os
import subprocess
import sys
import textwrap
import uuid

import pytest

from tests.conftest import ROOT, SQLITE

pytestmark = pytest.mark.slow

SESSION_TIMEOUT_S = 120


@pytest.fixture
def project(tmp_path):
    """Return a function that runs a command in a folder with the given files and with its own database."""

    def run(files, *command, **env):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        for name, source in files.items():
            (tmp_path / name).write_text(textwrap.dedent(source))
        database = {"OUTBOX_TEST_DATABASE_NAME": f"test_outbox_{uuid.uuid4().hex[:8]}"}
        if SQLITE:
            database["OUTBOX_TEST_DATABASE_NAME"] = str(tmp_path / "test.sqlite3")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", *command],
            cwd=tmp_path,
            env={**inherited, **database, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", **env},
            capture_output=True,
            text=True,
            timeout=SESSION_TIMEOUT_S,
        )

    return run


def outcomes(result) -> str:
    """Return pytest's last line, such as `2 passed in 0.5s`, without the time."""
    lines = result.stdout.strip().splitlines() or [result.stderr]
    return lines[-1].partition(" in ")[0].strip("= ")


FIXTURES = """
    import pytest
    from django.db import transaction
    import outbox

    def pay(order_id):
        with transaction.atomic():
            outbox.publish("test.recorded", {"order_id": order_id})

    def test_an_order_is_announced(outbox_events):
        pay(7)
        outbox_events.assert_published("test.recorded", payload={"order_id": 7})

    def test_an_order_is_handled(outbox_events, deliver_outbox):
        pay(8)
        assert deliver_outbox().succeeded == 2
        assert len(outbox_events) == 1

    @pytest.mark.django_db(transaction=True)
    def test_an_order_is_handled_with_real_commits(deliver_outbox, outbox_events):
        from django.db import connection
        assert not connection.in_atomic_block
        pay(9)
        assert deliver_outbox().succeeded == 2
        assert outbox_events.topics == ["test.recorded"]
"""

MONITORED = """
    import threading
    import pytest
    from outbox import monitor

    @monitor(name="seen")
    def seen():
        pass

    def threads():
        return [one.name for one in threading.enumerate()]

    @pytest.mark.parametrize("n", [1, 2])
    def test_calls_count_only_within_a_test(n, db):
        from outbox.models import HandlerStats
        from outbox.testing import flush_counts
        seen()
        flush_counts()
        (counts,) = HandlerStats.objects.merged().values()
        assert counts.succeeded == 1
        seen()

    def test_calls_start_no_thread():
        seen()
        assert "outbox-confirmations" not in threads()
"""


def test_a_project_has_the_fixtures_after_installing_the_package(project):
    result = project({"test_orders.py": FIXTURES}, "pytest")
    assert outcomes(result) == "3 passed", result.stdout


def test_monitored_functions_do_not_disturb_tests(project):
    result = project({"test_monitored.py": MONITORED}, "pytest")
    assert outcomes(result) == "3 passed", result.stdout


def test_the_plugin_can_be_disabled(project):
    source = "def test_it(outbox_events): pass"
    result = project({"test_orders.py": source}, "pytest", "-p", "no:outbox")
    assert outcomes(result) == "1 error"
    assert "fixture 'outbox_events' not found" in result.stdout


def test_in_a_project_without_django_the_plugin_imports_nothing(project):
    source = """
        import sys

        def test_nothing_is_imported(request):
            assert request.config.pluginmanager.hasplugin("outbox")
            assert not {"django", "dramatiq", "outbox.confirmations"} & set(sys.modules)
    """
    result = project({"test_plain.py": source}, "pytest", "-p", "no:django", DJANGO_SETTINGS_MODULE="")
    assert outcomes(result) == "1 passed", result.stdout


def test_in_a_django_project_without_the_outbox_the_plugin_imports_nothing(project):
    settings = "SECRET_KEY = 'x'\nINSTALLED_APPS = []\nDATABASES = {}\n"
    source = """
        import sys
        from django.apps import apps

        def test_nothing_is_imported():
            assert apps.ready
            assert "outbox.confirmations" not in sys.modules
    """
    files = {"bare_settings.py": settings, "test_plain.py": source}
    result = project(files, "pytest", DJANGO_SETTINGS_MODULE="bare_settings")
    assert outcomes(result) == "1 passed", result.stdout


def test_the_unittest_runner_defers_counts_and_drops_the_database(project):
    source = """
        import threading
        from django.test import TestCase
        from outbox import monitor

        @monitor(name="seen")
        def seen():
            pass

        class SeenTests(TestCase):
            def test_calls_start_no_thread(self):
                seen()
                self.assertNotIn("outbox-confirmations", [one.name for one in threading.enumerate()])
    """
    runner = ["--testrunner", "outbox.testing.OutboxTestRunner"]
    result = project({"test_seen.py": source}, "django", "test", "test_seen", *runner)
    assert result.returncode == 0, result.stderr
    assert "Ran 1 test" in result.stderr
