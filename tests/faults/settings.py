"""The Django project of the fault tests: the project of the other tests, with the app of the ledger."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS, TASKS

# Each queue of the other tests' app would cost the worker two more consumers.
INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "tests.testapp"] + ["tests.faults.app"]
# The tasks are in that app.
TASKS.clear()

# A kept connection may be found dead at its next use.
DATABASES["default"]["CONN_MAX_AGE"] = 60
