"""The test project with Wagtail and modelsearch, which enqueue tasks in the queue `default`."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, TASKS

INSTALLED_APPS += ["django.contrib.postgres", "wagtail", "wagtail.search", "taggit", "modelcluster"]
WAGTAIL_SITE_NAME = "Test"
WAGTAILADMIN_BASE_URL = "http://testserver"
TASKS["default"]["QUEUES"].append("default")
