"""The Django project of the fault tests: that of the other tests, with the app that keeps the ledger."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

# Without the app of the other tests: each of its queues would cost the worker two more consumers.
INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "tests.testapp"] + ["tests.faults.app"]

# Connections that are kept are connections that may turn out to be dead.
DATABASES["default"]["CONN_MAX_AGE"] = 60
