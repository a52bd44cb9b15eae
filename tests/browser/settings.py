"""The test project with static files, and with a strict policy or a theme of the admin.

`OUTBOX_TEST_THEME`: `unfold` or `jazzmin`; these need inline scripts, so they have no policy.
"""

import os

from tests.settings import *  # noqa: F403  # every setting

INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.staticfiles"]  # noqa: F405  # from the line above

THEME = os.environ.get("OUTBOX_TEST_THEME", "")
if THEME:
    INSTALLED_APPS.insert(0, THEME)
else:
    MIDDLEWARE = [*MIDDLEWARE, "tests.browser.csp.strict_policy"]  # noqa: F405  # from the line above
