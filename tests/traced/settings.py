"""The settings of the test project, with Sentry if the environment names a file for its events."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS
from tests.traced.files import SENTRY_FILE, FileTransport

ROOT_URLCONF = "tests.traced.urls"
INSTALLED_APPS = [*INSTALLED_APPS, "tests.traced"]

if SENTRY_FILE:
    import sentry_sdk
    from sentry_sdk.integrations.dramatiq import DramatiqIntegration

    from outbox.contrib.sentry import OutboxIntegration

    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=FileTransport,
        traces_sample_rate=1.0,
        integrations=[OutboxIntegration(site_url="https://shop.example/"), DramatiqIntegration()],
    )
