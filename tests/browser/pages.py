"""The browser of the tests, by the actions of an operator."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.processes import wait_until

DEADLINE_S = 60
WIDE = (1400, 900)
PHONE = (390, 844)


class Browser:
    """Chromium without a window."""

    def __init__(self, program: str, driver: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--lang=en-US",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self._driver: Any = webdriver.Chrome(options=options, service=Service(driver))

    def quit(self) -> None:
        """End the browser."""
        self._driver.quit()

    def reset(self) -> None:
        """Forget cookies and messages, and use a wide window and light colours."""
        self._driver.get("about:blank")
        self._driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self._driver.get_log("browser")
        self.resize(*WIDE)
        self.set_colours("light")

    def log_in(self, address: str, session: str) -> None:
        """Use the session of a user at a site."""
        cookie = {"name": "sessionid", "value": session, "url": address}
        self._driver.execute_cdp_cmd("Network.setCookie", cookie)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def set_colours(self, scheme: str) -> None:
        """Prefer `light` or `dark` colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, address: str) -> None:
        """Open a page."""
        self._driver.get(address)

    @property
    def address(self) -> str:
        """The address of the page."""
        return str(self._driver.current_url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of a script in the page."""
        return self._driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        """Return the first element, as soon as the page has it."""
        found = wait_until(lambda: self.find_all(selector), DEADLINE_S, f"{selector} at {self.address}")
        return found[0]

    def find_all(self, selector: str) -> list[WebElement]:
        """Return the elements of the page."""
        return list(self._driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self, selector: str = "body") -> str:
        """Return the text of an element; at once, even if the page changes meanwhile."""
        script = "return document.querySelector(arguments[0])?.innerText || ''"
        return str(self.run(script, selector))

    def wait_for(self, text: str, selector: str = "body", deadline_s: float = DEADLINE_S) -> None:
        """Wait until an element has a text."""
        what = f"{text!r} in {selector}"
        wait_until(lambda: text in self.text(selector), deadline_s, what)

    def click(self, label: str, selector: str = "body") -> None:
        """Click the link or button with a label inside an element."""
        script = """
            const within = document.querySelector(arguments[0]);
            return [...within.querySelectorAll("a, button, input[type=submit], summary")].find(
                (each) => (each.value || each.textContent).trim() === arguments[1]);
        """
        found = wait_until(lambda: self.run(script, selector, label), DEADLINE_S, f"{label!r} in {selector}")
        found.click()

    def point_at(self, selector: str) -> None:
        """Move the pointer to the middle of an element."""
        ActionChains(self._driver).move_to_element(self.find(selector)).perform()

    def press(self, *keys: str) -> None:
        """Press keys, at the element with the focus."""
        chain = ActionChains(self._driver)
        for key in keys:
            chain = chain.send_keys(key)
        chain.perform()

    def tab_to(self, selector: str, most: int = 200) -> WebElement:
        """Press Tab until an element has the focus, as a user without a pointer does."""
        for _ in range(most):
            self.press(Keys.TAB)
            if self.run("return document.activeElement.matches(arguments[0])", selector):
                return self._driver.switch_to.active_element
        raise AssertionError(f"{most} times Tab did not reach {selector}")

    def complaints(self) -> list[str]:
        """Return the errors of the pages, such as violations of their policy, since the last call."""
        errors = [each["message"] for each in self._driver.get_log("browser") if each["level"] == "SEVERE"]
        return [error for error in errors if "/favicon.ico" not in error]

    def save_picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a picture of the window, or of the whole page."""
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.run(
                "return [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
            )
            options["clip"] = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        answer = self._driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Few colours make a small file.
        image = Image.open(BytesIO(base64.b64decode(answer["data"]))).convert("RGB")
        image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
