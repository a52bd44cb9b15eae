"""The example shop's settings, for pictures: its handlers have telling names."""

from example.project.settings import *  # noqa: F403  # every setting

DEBUG = False
# The key of the test project signs the session.
SECRET_KEY = "only-for-tests"
