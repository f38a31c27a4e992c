"""The page in Chromium: drawn on, dropped on, by keyboard, wide and narrow, light and dark."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from shutil import which
from typing import Any

import pytest
from running import SEVEN, Demo

from mnist_ce import load_model
from mnist_ce.demo import server
from mnist_ce.explain.image import explain_image

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

POINTS = [(70, 60), (210, 60), (120, 230)]  # a 7 on 280 × 280
SIZES = {"wide light": (1280, 900, "light"), "narrow dark": (390, 844, "dark")}


class Page:
    """The demo's page in a browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def answered_after(self, act: Callable[[], object]) -> str:
        """Return the label shown once the page has settled after an action."""
        count = "return Number(document.body.dataset.answers ?? 0)"
        before = self.run(count)
        act()
        wait = WebDriverWait(self.browser, 20, 0.05)
        wait.until(lambda _: self.run(count) > before)
        wait.until(lambda _: self.run("return !document.body.hasAttribute('data-busy')"))
        return str(self.run("return document.querySelector('.label')?.textContent"))

    def press(self, keys: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(keys).perform()

    def draw(self) -> None:
        canvas = self.find("#pad")
        actions: Any = ActionBuilder(self.browser, duration=10)
        size = canvas.size
        corners = [
            (int((x / 280 - 0.5) * size["width"]), int((y / 280 - 0.5) * size["height"]))
            for x, y in POINTS
        ]
        actions.pointer_action.move_to(canvas, *corners[0]).pointer_down()
        for corner in corners[1:]:
            actions.pointer_action.move_to(canvas, *corner)
        actions.pointer_action.pointer_up()
        actions.perform()


@pytest.fixture(scope="module", params=SIZES)
def page(request: pytest.FixtureRequest, demo: Demo) -> Iterator[Page]:
    driver, chromium = which("chromedriver"), which("chromium") or which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("needs Chromium and chromedriver, which are not installed")
    width, height, scheme = SIZES[request.param]
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        yield Page(browser)
    finally:
        browser.quit()


@pytest.fixture(autouse=True)
def _open(page: Page, demo: Demo) -> Iterator[None]:
    page.browser.get("about:blank")
    page.browser.get(f"{demo.url}/#draw")
    options = "return document.querySelectorAll('#network option').length"
    WebDriverWait(page.browser, 20, 0.05).until(lambda _: page.run(options) == 3)
    yield
    messages = [entry["message"] for entry in page.browser.get_log("browser")]
    assert not messages  # a violation of the policy is one, too


def test_a_drawn_seven_is_read_and_its_loss_is_that_of_explain(page: Page) -> None:
    assert page.answered_after(page.draw) == "7"
    sizes = "return [document.documentElement.scrollWidth, innerWidth]"
    needed, given = page.run(sizes)
    assert needed <= given

    choose = "document.querySelector('#truths input[value=\"1\"]').click()"
    page.answered_after(lambda: page.run(choose))
    url = page.run("return document.querySelector('#pad').toDataURL()")
    assert len(base64.b64decode(url.split(",")[1])) > 500
    shown = float(page.find(".loss .value").text)
    rows = page.run(
        "return [...document.querySelectorAll('.loss tbody tr.target td')]"
        ".map(cell => Number(cell.textContent))"
    )
    assert rows[2] == pytest.approx(shown, abs=0.006)
    assert rows[3] == pytest.approx(rows[1] - 1, abs=1e-4)
    methods = page.run(
        "return [...document.querySelectorAll('.methods dt')].map(term => Number(term.textContent))"
    )
    assert methods == pytest.approx([shown] * 4, abs=1e-4)

    page.answered_after(lambda: page.find("#undo").click())
    assert not page.find("#answers").is_displayed()


def test_a_dropped_image_is_read_as_by_explain(page: Page) -> None:
    drop = """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "seven.png", { type: "image/png" }));
        document.querySelector("#pad").dispatchEvent(
            new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    """
    content = base64.b64encode(SEVEN).decode()
    assert page.answered_after(lambda: page.run(drop, content)) == "7"
    choose = "document.querySelector('#truths input[value=\"3\"]').click()"
    page.answered_after(lambda: page.run(choose))
    expected = explain_image(SEVEN, "3", checkpoint=load_model("world"))
    assert float(page.find(".loss .value").text) == pytest.approx(expected.training_loss, abs=1e-3)
    page.answered_after(
        lambda: page.run(
            "const beside = document.querySelector('#beside'); beside.value = 'small';"
            "beside.dispatchEvent(new Event('change'))"
        )
    )
    assert page.run("return document.querySelectorAll('#answers article').length") == 2


def test_a_digit_is_drawn_by_keyboard_alone(page: Page, demo: Demo) -> None:
    def tab_to(name: str) -> None:
        focused = "const e = document.activeElement; return [e.id, e.name]"
        for _ in range(30):
            if name in page.run(focused):
                return
            page.press(Keys.TAB)
        pytest.fail(f"Tab does not reach {name}")

    tab_to("pad")
    page.press(Keys.ARROW_UP * 8 + " ")
    assert page.answered_after(lambda: page.press(Keys.ARROW_DOWN * 16 + " ")) == "1"
    tab_to("truth")
    page.answered_after(lambda: page.press(Keys.ARROW_RIGHT))
    tab_to("keep")
    page.press(Keys.ENTER)
    kept = page.find("#kept")
    WebDriverWait(page.browser, 20).until(lambda _: "Kept as 1_" in kept.text)
    assert list(demo.folder.glob("corrections/1_*.png"))


def test_runs_are_drawn(page: Page, demo: Demo) -> None:
    steps = demo.folder / "runs" / "small" / "steps.csv"
    rows = "".join(f"{10 * step},1,{2 / step:.4f},0.5,0.1\n" for step in range(1, 7))
    steps.write_text("step,epoch,loss,accuracy,learning_rate\n" + rows)
    page.find("nav a[href='#runs']").click()
    paths = "return document.querySelectorAll('.chart path').length"
    WebDriverWait(page.browser, 20).until(lambda _: page.run(paths) == 3)
    assert "small" in page.find("#run-list").text
    needed, given = page.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert needed <= given


def test_a_damaged_token_in_the_address_leaves_the_page_working(page: Page, demo: Demo) -> None:
    page.browser.get("about:blank")
    page.browser.get(f"{demo.url}/#token=%E0%A4%A")
    WebDriverWait(page.browser, 20).until(lambda _: page.find("#error").text == "URI malformed")
    assert page.answered_after(page.draw) == "7"


def test_a_stream_that_fails_is_reported_and_not_opened_again(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Failing:
        def __init__(self, *_: object) -> None:
            opened.append(self)

        def changes(self) -> None:
            raise ValueError("no figures")

    monkeypatch.setattr(server, "RunWatcher", Failing)
    page.find("nav a[href='#runs']").click()
    error = page.find("#error")
    WebDriverWait(page.browser, 20).until(lambda _: "no figures" in error.text)
    time.sleep(5)  # a browser connects again after three
    assert len(opened) == 1
