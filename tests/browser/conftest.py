"""A browser, and a site with the rows of the test."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.processes import Process, wait_until

from .pages import Browser

# A test of a browser and a site waits for processes on a busy machine.
DEADLINE_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: they start a browser and a site."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")
            item.add_marker("slow")


def _programs() -> tuple[str, str] | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@pytest.fixture(scope="session")
def _driver() -> Iterator[Browser]:
    programs = _programs()
    require(programs and programs[0], "no chromium and chromedriver on PATH")
    assert programs
    browser = Browser(*programs)
    yield browser
    browser.quit()


@pytest.fixture
def browser(_driver: Browser) -> Browser:
    """Return the browser at its usual size, in light colours, without cookies or messages of another test."""
    _driver.reset()
    return _driver


@dataclass(frozen=True)
class Site:
    """A site whose admin is open to the browser; the address ends with `/admin/`."""

    address: str
    process: Process


OpenSite = Callable[..., Site]


@pytest.fixture
def open_site(process_env: dict[str, str], browser: Browser) -> Iterator[OpenSite]:
    """Return a function that starts a site and logs a superuser in."""
    with ExitStack() as stack:

        def open_site(*, module: str = "tests.browser.settings", **environment: str) -> Site:
            port = _free_port()
            environment = {**process_env, "DJANGO_SETTINGS_MODULE": module, **environment}
            command = ("runserver", f"127.0.0.1:{port}", "--noreload", "--insecure")
            site = stack.enter_context(Process.manage(*command, env=environment))
            address = f"http://127.0.0.1:{port}/admin/"
            wait_until(lambda: _answers(address) or site.returncode is not None, DEADLINE_S, "the site")
            browser.log_in(address, _session())
            return Site(address, site)

        yield open_site


def _session() -> str:
    # pytest reads this module before the settings have a name.
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    user, _created = User.objects.get_or_create(username="operator", is_staff=True, is_superuser=True)
    client.force_login(user)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}login/", timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture
def picture(browser: Browser) -> Callable[[str], None]:
    """Return a function that writes a picture of the page into `OUTBOX_PICTURES`, if that names a folder."""
    folder = os.environ.get("OUTBOX_PICTURES")

    def picture(name: str, *, whole: bool = False) -> None:
        if folder:
            browser.save_picture(Path(folder) / f"{name}.png", whole=whole)

    return picture
