"""The pages of a bad day; `make pictures` writes the pictures of the documentation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outbox.models import Delivery

from .conftest import OpenSite
from .pages import PHONE, Browser
from .rows import MAIL, make_bad_day

pytestmark = pytest.mark.postgres

OVERVIEW = "outbox/backlogsample/"


@pytest.fixture
def address(open_site: OpenSite, browser: Browser) -> str:
    """Return the address of the admin of the example shop on a bad day."""
    make_bad_day()
    found = open_site(module="tests.browser.shop").address
    browser.open(found)
    browser.run("localStorage.setItem('django.admin.navSidebarIsOpen', 'false')")
    return found


@pytest.mark.parametrize(
    ("size", "colours", "name"),
    [
        ((1200, 1060), "light", "admin-overview"),
        ((1200, 1060), "dark", "admin-overview-dark"),
        (PHONE, "light", "admin-overview-phone"),
    ],
)
def test_the_overview_of_a_bad_day_fits_the_window(
    address: str,
    browser: Browser,
    picture: Callable[..., None],
    size: tuple[int, int],
    colours: str,
    name: str,
) -> None:
    browser.resize(*size)
    browser.set_colours(colours)
    browser.open(address + OVERVIEW)
    browser.find(".outbox-canvas canvas")
    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    picture(name)


def test_the_list_of_failed_deliveries_fits_the_window(
    address: str, browser: Browser, picture: Callable[..., None]
) -> None:
    browser.resize(1200, 900)
    browser.open(f"{address}outbox/delivery/?state=failed")
    assert "IntegrityError" in browser.text("#result_list")
    assert browser.run("return document.documentElement.scrollWidth") <= 1200
    picture("admin-deliveries")


def test_a_failed_delivery_has_its_buttons_and_its_error(
    address: str, browser: Browser, picture: Callable[..., None]
) -> None:
    failed = Delivery.objects.failed().filter(handler=MAIL).latest("pk")
    browser.resize(1100, 900)
    browser.open(f"{address}outbox/delivery/{failed.pk}/change/")
    assert browser.find(".outbox-buttons input[type=submit]").get_attribute("value") == "Retry"
    assert "ValueError: no address" in browser.text("#content")
    picture("admin-delivery")
