"""An operator walks through the admin: from a problem to its repair."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import transaction
from selenium.webdriver import Keys

from outbox import publish
from outbox.models import Delivery, Event, PausedHandler
from outbox.operations.operator_jobs import run_chunk
from tests.support.factories import make_delivery, make_event, make_relay
from tests.support.processes import Process, wait_until
from tests.testapp.handlers import QUEUE
from tests.testapp.models import Effect

from .conftest import DEADLINE_S, OpenSite
from .pages import PHONE, Browser
from .rows import make_history

pytestmark = pytest.mark.postgres

HANDLERS = ("record", "flaky", "broken")
OVERVIEW = "outbox/backlogsample/"
PAGES = (
    "",
    OVERVIEW,
    f"{OVERVIEW}?period=week",
    f"{OVERVIEW}doctor/",
    "outbox/delivery/",
    "outbox/delivery/?state=failed",
    "outbox/event/",
    "outbox/operatorjob/",
    "outbox/operatorjob/request/?verb=discard",
    "outbox/operatorjob/replay/?topic=shop.*&since=2020-01-31T09:00",
    "outbox/handlerstats/",
    "outbox/pausedhandler/pause/",
    "outbox/processheartbeat/",
)


def make_blocked_key(handler: str = "in_order") -> Delivery:
    """Write a failed delivery that blocks its ordering key."""
    head = make_delivery(make_event(), "failed", handler=handler, queue=QUEUE, key="order-7")
    make_delivery(handler=handler, queue=QUEUE, key="order-7", waits_for="key")
    return head


def state_of(delivery: Delivery) -> str:
    delivery.refresh_from_db()
    return delivery.state


def test_without_a_worker_the_verdict_is_trouble(
    open_site: OpenSite, browser: Browser, process_env: dict[str, str], redis_url: str
) -> None:
    environment = {**process_env, "OUTBOX_TEST_BROKER_URL": redis_url}
    with Process.manage("run_relay", env=environment) as relay:
        relay.wait_for_line("relay", DEADLINE_S)
        site = open_site()
        browser.open(site.address + OVERVIEW)
        with transaction.atomic():
            publish("test.recorded", {})
        browser.wait_for("no worker serves queue", "#outbox-verdict")
        assert browser.find("#outbox-verdict").get_attribute("data-verdict") == "trouble"
        browser.click("Show processes", "#outbox-problems")
        browser.wait_for("running", "#result_list")


def test_a_failure_leads_over_its_cause_to_deliveries_that_succeed(
    open_site: OpenSite, browser: Browser, process_env: dict[str, str], redis_url: str
) -> None:
    environment = {**process_env, "OUTBOX_TEST_BROKER_URL": redis_url}
    worker = ("rundramatiq", "--processes", "1", "--threads", "2")
    with Process.manage("run_relay", env=environment), Process.manage(*worker, env=environment):
        with transaction.atomic():
            publish("broken.mail", {"order": 7})
        deliveries = Delivery.objects.filter(handler="broken")
        wait_until(lambda: deliveries.failed().exists(), DEADLINE_S, "the failure")
        site = open_site()
        browser.open(site.address + OVERVIEW)
        browser.wait_for("cannot handle {'order': 7}", "#outbox-problems")
        Effect.objects.create(handler="repaired", event_id=deliveries.get().event_id)
        browser.click("Retry all 1…", "#outbox-problems")
        browser.wait_for("1 delivery matches now.")
        browser.click("Retry all failed deliveries", "#content-main")
        browser.wait_for("A relay runs the job within seconds.")
        wait_until(lambda: deliveries.get().state == "succeeded", DEADLINE_S, "the success")
        browser.open(site.address + OVERVIEW)
        browser.wait_for("OK", "#outbox-verdict")
        assert browser.find("#outbox-verdict").get_attribute("data-verdict") == "ok"


def test_a_blocked_key_is_retried_with_the_keyboard_alone(open_site: OpenSite, browser: Browser) -> None:
    make_relay()
    head = make_blocked_key()
    browser.open(open_site().address + OVERVIEW)
    browser.find("#outbox-problems")
    button = browser.tab_to("#outbox-problems form[action*='/delivery/'] button")
    assert button.text == "Retry"
    browser.press(Keys.ENTER)
    browser.wait_for("1 delivery will be resent.")
    assert state_of(head) == "pending"
    assert browser.address.endswith(OVERVIEW)


def test_a_blocked_key_is_discarded_with_a_reason(open_site: OpenSite, browser: Browser) -> None:
    make_relay()
    head = make_blocked_key()
    browser.open(open_site().address + OVERVIEW)
    browser.click("Discard…", "#outbox-problems")
    browser.find("#id_reason").send_keys("the order was cancelled", Keys.ENTER)
    browser.wait_for("1 delivery was discarded.")
    assert state_of(head) == "discarded"
    assert "the order was cancelled" in browser.text("#outbox-actions")


def test_the_values_of_a_chart_are_read_with_the_keyboard(open_site: OpenSite, browser: Browser) -> None:
    make_history(minutes=5, handlers=HANDLERS)
    browser.open(open_site().address + OVERVIEW)
    browser.find(".outbox-canvas canvas")
    browser.tab_to("figure[data-plot=flow]")
    times = [
        row.split()[0]
        for row in browser.run(
            "return [...document.querySelectorAll('#outbox-timeline tbody th')].map((th) => th.textContent)"
        )
    ]
    readout = "figure[data-plot=flow] .outbox-readout"
    browser.press(Keys.END)
    browser.wait_for(times[0], readout)
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    browser.wait_for(times[2], readout)
    browser.wait_for("succeeded", readout)
    # The other charts show the same time.
    browser.wait_for(times[2], "figure[data-plot=errors] .outbox-readout")
    browser.press(Keys.HOME)
    browser.wait_for(times[-1], readout)
    browser.wait_for("no sample", readout)


def test_a_refresh_keeps_scroll_focus_and_open_parts(open_site: OpenSite, browser: Browser) -> None:
    make_relay()
    make_delivery(state="failed", handler="record", queue=QUEUE, error="ValueError: no")
    browser.resize(1000, 500)
    browser.open(open_site().address + OVERVIEW)
    browser.click("Values as a table", "#outbox-charts")
    link = "#outbox-handlers tbody tr:nth-child(4) a"
    browser.run("document.querySelector(arguments[0]).focus()", link)
    assert browser.run("return window.scrollY") > 0
    before = browser.run("return document.activeElement.getBoundingClientRect().top")
    make_delivery(state="failed", handler="record", queue=QUEUE, error="ValueError: no")
    browser.wait_for("record fails (2)", "#outbox-problems")
    assert browser.run("return document.activeElement.matches(arguments[0])", link)
    after = browser.run("return document.activeElement.getBoundingClientRect().top")
    assert after == pytest.approx(before, abs=2)
    assert browser.run("return document.querySelector('#outbox-charts details').open")


def test_a_paused_page_refreshes_again_when_asked(open_site: OpenSite, browser: Browser) -> None:
    make_relay()
    browser.open(open_site().address + OVERVIEW)
    browser.click("Pause", ".outbox-refresh")
    browser.wait_for("paused", "#outbox-refresh-state")
    make_delivery(state="failed", handler="record", queue=QUEUE)
    # The age grows past the time between two refreshes.
    wait_until(lambda: age_s(browser) > 12, DEADLINE_S, "old figures")
    assert "record fails" not in browser.text("#outbox-live")
    browser.click("Refresh again", ".outbox-refresh")
    browser.wait_for("record fails", "#outbox-problems")


def age_s(browser: Browser) -> int:
    found = re.search(r"(\d+) s ago", browser.text("#outbox-age"))
    return int(found[1]) if found else 0


def test_a_refresh_that_fails_says_so(open_site: OpenSite, browser: Browser) -> None:
    site = open_site()
    browser.open(site.address + OVERVIEW)
    browser.find("#outbox-verdict")
    site.process.kill()
    browser.wait_for("The refresh failed", "#outbox-refresh-state")


def test_the_search_leads_from_a_logged_number_to_the_delivery(open_site: OpenSite, browser: Browser) -> None:
    delivery = make_delivery(state="failed", error="ValueError: no")
    browser.open(open_site().address + OVERVIEW)
    browser.find("#outbox-q").send_keys(f"#{delivery.pk}", Keys.ENTER)
    browser.wait_for("ValueError: no")
    assert f"/delivery/{delivery.pk}/change/" in browser.address


def test_old_events_are_replayed_to_a_new_handler(open_site: OpenSite, browser: Browser) -> None:
    for number in range(3):
        make_event("test.recorded", {"number": number}, key=f"k{number}")
    address = open_site().address
    browser.open(f"{address}outbox/event/")
    browser.click("Replay…")
    browser.find("#id_topic").send_keys("test.*")
    browser.run("document.querySelector('#id_handler').value = 'record'")
    browser.click("Preview")
    browser.wait_for("3 events match, and 3 deliveries will be written.", "#outbox-preview")
    browser.click("Replay")
    browser.wait_for("A relay runs the job within seconds.")
    while run_chunk("default").has_more:
        continue
    assert Delivery.objects.filter(handler="record").count() == 3
    browser.open(browser.address)
    browser.wait_for("done", ".field-present_state")


def make_effect(cause: Event) -> Event:
    """Write an event that a handler of another event has published."""
    headers = {"causation_id": str(cause.pk), "correlation_id": str(cause.pk)}
    return make_event("shop.mail_bounced", key="mia@example.com", headers=headers)


def test_an_effect_leads_to_its_cause_and_back(open_site: OpenSite, browser: Browser) -> None:
    cause = make_event("shop.order_paid")
    make_delivery(cause, "failed", handler="shop.mail")
    effect = make_effect(cause)
    browser.open(f"{open_site().address}outbox/event/{effect.pk}/change/")
    assert "shop.mail failed" in browser.text(".outbox-tree")
    browser.click("shop.order_paid", ".outbox-tree")
    browser.wait_for("shop.order_paid", ".outbox-tree [aria-current] strong")
    browser.click("shop.mail_bounced", ".outbox-tree")
    browser.wait_for("shop.mail_bounced", ".outbox-tree [aria-current] strong")
    assert str(effect.pk) in browser.address


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_no_page_violates_a_strict_policy_and_every_badge_is_readable(
    open_site: OpenSite, browser: Browser, colours: str
) -> None:
    browser.set_colours(colours)
    head = make_blocked_key()
    PausedHandler.objects.pause("record", "no mail server")
    make_history(minutes=5, handlers=HANDLERS)
    make_effect(head.event)
    site = open_site()
    for page in (*PAGES, f"outbox/delivery/{head.pk}/change/", f"outbox/event/{head.event_id}/change/"):
        browser.open(site.address + page)
        browser.find("#content")
        for badge, ratio in browser.run(CONTRASTS):
            assert ratio >= 4.5, (page, badge, ratio)
    assert browser.complaints() == []


# The contrast of the text of each badge, by WCAG's formula.
CONTRASTS = """
    const luminance = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
            const value = part / 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    return [...document.querySelectorAll(".outbox-badge")].map((badge) => {
        const style = getComputedStyle(badge);
        const both = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => b - a);
        return [badge.textContent, (both[0] + 0.05) / (both[1] + 0.05)];
    });
"""


def test_a_list_on_a_phone_has_cards_with_the_error_on_the_screen(
    open_site: OpenSite, browser: Browser, picture: Any
) -> None:
    for _ in range(30):
        make_delivery(state="failed", handler="record", queue=QUEUE, error="ValueError: no address")
    site = open_site()
    browser.resize(*PHONE)
    browser.open(f"{site.address}outbox/delivery/")
    cell = browser.find("#result_list tbody td.field-error_summary")
    assert cell.get_attribute("data-label") == "Error"
    assert "ValueError: no address" in cell.text
    box = cell.rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    assert browser.find("#changelist-filter").rect["width"] > PHONE[0] / 2
    # The filters are closed, and come before the rows.
    assert browser.find("#changelist-filter").rect["y"] < browser.find("#result_list").rect["y"]
    assert not browser.find_all("#changelist-filter details[open]")
    picture("phone-deliveries")


def test_every_page_fits_a_phone(open_site: OpenSite, browser: Browser) -> None:
    head = make_blocked_key()
    PausedHandler.objects.pause("record", "no mail server")
    make_history(minutes=5, handlers=HANDLERS)
    make_effect(head.event)
    site = open_site()
    browser.resize(*PHONE)
    for page in (*PAGES, f"outbox/delivery/{head.pk}/change/", f"outbox/event/{head.event_id}/change/"):
        browser.open(site.address + page)
        browser.find("#content")
        assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0], page
        # Nor does a table of cards scroll sideways.
        assert browser.run(
            "return [...document.querySelectorAll('.outbox-scroll:has(.outbox-cards)')]"
            ".every((each) => each.scrollWidth <= each.clientWidth)"
        ), page


@pytest.mark.parametrize("theme", ["", "unfold", "jazzmin"])
def test_the_buttons_of_a_delivery_work_under_each_theme(
    open_site: OpenSite, browser: Browser, theme: str, picture: Any
) -> None:
    retried, discarded = (make_delivery(state="failed", error="ValueError: no") for _ in range(2))
    site = open_site(OUTBOX_TEST_THEME=theme)
    browser.open(f"{site.address}outbox/delivery/{retried.pk}/change/")
    browser.click("Retry", ".outbox-buttons")
    wait_until(lambda: state_of(retried) == "pending", DEADLINE_S, "the retry")
    browser.open(f"{site.address}outbox/delivery/{discarded.pk}/change/")
    picture(f"delivery-{theme or 'django'}")
    browser.click("Discard…", ".outbox-buttons")
    browser.find("#id_reason").send_keys("spam")
    picture(f"discard-{theme or 'django'}")
    browser.find("input.outbox-danger").click()
    wait_until(lambda: state_of(discarded) == "discarded", DEADLINE_S, "the discard")


@pytest.mark.parametrize("theme", ["unfold", "jazzmin"])
def test_the_pages_open_under_each_theme(
    open_site: OpenSite, browser: Browser, theme: str, picture: Any
) -> None:
    head = make_blocked_key()
    PausedHandler.objects.pause("record", "no mail server")
    make_history(minutes=30, handlers=HANDLERS)
    site = open_site(OUTBOX_TEST_THEME=theme)
    for page in (*PAGES, f"outbox/event/{head.event_id}/change/"):
        browser.open(site.address + page)
        assert browser.find(".outbox-panel, .outbox-periods, #result_list, form")
    browser.open(f"{site.address}outbox/pausedhandler/")
    assert browser.find(".outbox-buttons").text == "Pause a handler…"
    browser.open(site.address)
    assert browser.find(".outbox-panel .outbox-badge").text == "Trouble"
    picture(f"theme-{theme}-home")
    browser.open(site.address + OVERVIEW)
    browser.find(".outbox-canvas canvas")
    picture(f"theme-{theme}-overview", whole=True)
    assert browser.run("return document.documentElement.scrollWidth") <= 1400


def test_the_pointer_shows_the_values_of_its_time_in_every_chart(
    open_site: OpenSite, browser: Browser
) -> None:
    make_history(minutes=5, handlers=HANDLERS)
    browser.open(open_site().address + OVERVIEW)
    browser.find(".outbox-canvas canvas")
    before = browser.text("figure[data-plot=errors] .outbox-readout b")
    browser.point_at("figure[data-plot=flow] .u-over")
    for plot in ("flow", "backlog", "errors"):
        time = f"figure[data-plot={plot}] .outbox-readout b"
        wait_until(lambda time=time: browser.text(time) != before, DEADLINE_S, f"another time in {plot}")
