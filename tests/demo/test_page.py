"""The page in Chromium: drawn on, dropped on, by keyboard, wide and narrow, light and dark."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from shutil import which
from typing import Any

import pytest
from PIL import Image
from running import ONE_AND_SEVEN, SEVEN, Demo

from mnist_ce import load_model, predict
from mnist_ce.demo import live, server
from mnist_ce.explain.image import explain_image
from mnist_ce.system.errors import RunError

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

    def choose_truth(self, name: str) -> None:
        self.run(f"document.querySelector('#truths input[value=\"{name}\"]').click()")

    def drop(self, content: bytes) -> None:
        script = """
            const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.querySelector("#pad").dispatchEvent(
                new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        """
        self.run(script, base64.b64encode(content).decode())

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

    page.answered_after(lambda: page.choose_truth("1"))
    values = "return [...document.querySelectorAll(arguments[0])].map((one) => Number(one.value))"
    (shown,) = page.run(values, ".loss .value")
    _, _, p, loss, gradient = page.run(values, ".loss tr.target data")
    assert loss == pytest.approx(shown)
    assert gradient == pytest.approx(p - 1)
    assert page.run(values, ".methods data") == pytest.approx([shown] * 4, abs=1e-4)
    assert page.run(values, ".loss tfoot data")[1:] == pytest.approx([1, 0], abs=1e-6)
    assert "100.00" not in page.find("#answers").text

    move = (
        "const input = document.querySelectorAll('.loss input')[1]; input.value = input.max;"
        "input.dispatchEvent(new Event('input'))"
    )
    page.run(move)
    assert page.run(values, ".loss .value")[0] < shown
    page.find(".loss .reset").click()
    assert page.run(values, ".loss .value") == [shown]

    page.answered_after(lambda: page.find("#undo").click())
    assert not page.find("#answers").is_displayed()


def test_training_steps_on_a_drawing_lower_its_loss_until_they_are_undone(page: Page) -> None:
    def step(number: int) -> Any:
        button = f"document.querySelector('[data-steps=\"{number}\"]').click()"
        page.answered_after(lambda: page.run(button))
        return page.run(
            "return [...document.querySelectorAll('.stepped data')].map((one) => Number(one.value))"
        )

    page.answered_after(page.draw)
    page.answered_after(lambda: page.choose_truth("1"))
    first, after_one = step(1)
    same, after_eleven = step(10)
    assert first == same > after_one > after_eleven
    assert step(-1) == [first, after_one]
    assert step(-1) == []


def test_nothing_of_an_earlier_image_stands_beside_a_new_one(page: Page) -> None:
    checked = "return document.querySelectorAll('#truths :checked').length"
    top = "return document.querySelector('#pad').getBoundingClientRect().top"
    page.answered_after(page.draw)
    page.answered_after(lambda: page.choose_truth("5"))
    before = page.run(top)
    page.run(
        "window.answer = fetch; window.fetch = () => new Promise((done) => { window.late = done; })"
    )
    page.find("#clear").click()
    page.draw()  # of which no answer comes yet
    assert page.run(checked) == 0
    assert not page.find("#keep").is_enabled()
    assert not page.find("#answers").is_displayed()
    assert page.find("#reading").is_displayed()
    page.run("window.first = window.late; window.fetch = window.answer")
    page.answered_after(lambda: page.find("#clear").click())
    page.run("window.first(new Response('[]'))")  # late, and of an image that is no more
    assert page.find("#empty").is_displayed()

    page.run("window.fetch = () => Promise.reject(new TypeError())")
    page.answered_after(page.draw)
    assert "does not answer" in page.find("#error").text
    assert page.run(top) == before  # so that a stroke stays whole
    page.run("window.fetch = window.answer")
    page.answered_after(lambda: page.find("#clear").click())
    assert not page.find("#error").is_displayed()


def test_a_digit_of_several_is_saved_alone(page: Page, demo: Demo) -> None:
    page.answered_after(lambda: page.drop(ONE_AND_SEVEN))
    assert page.find(".lines").text == "17"
    page.answered_after(lambda: page.run("document.querySelectorAll('.digits button')[1].click()"))
    page.answered_after(lambda: page.choose_truth("7"))
    before = set(demo.folder.glob("corrections/*"))
    page.run("document.querySelector('#keep').click()")
    WebDriverWait(page.browser, 20).until(lambda _: page.find("#keep").text == "Saved as 7")
    (saved,) = set(demo.folder.glob("corrections/7_*")) - before
    (record,) = predict(saved)
    assert (record.label, record.status) == (7, "ok")
    assert Image.open(saved).size == (28, 28)
    command = page.find("#kept code").text
    assert command.startswith("mnist-ce train --config adapt --init world --dataset mnist+folder:")


def test_a_dropped_image_is_read_as_by_explain(page: Page) -> None:
    assert page.answered_after(lambda: page.drop(SEVEN)) == "7"
    page.answered_after(lambda: page.choose_truth("3"))
    expected = explain_image(SEVEN, "3", checkpoint=load_model("world"))
    shown = float(page.run("return document.querySelector('.loss .value').value"))
    assert shown == pytest.approx(expected.training_loss, abs=1e-3)
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
    WebDriverWait(page.browser, 20).until(lambda _: page.find("#keep").text == "Saved as 1")
    assert list(demo.folder.glob("corrections/1_*.png"))


def test_runs_are_drawn(page: Page, demo: Demo) -> None:
    steps = demo.folder / "runs" / "small" / "steps.csv"
    rows = "".join(f"{10 * step},1,{2 / step:.4f},0.5,0.1\n" for step in range(1, 7))
    steps.write_text("step,epoch,loss,accuracy,learning_rate\n" + rows)
    page.find("nav a[href='#runs']").click()
    paths = "return document.querySelectorAll('.chart path').length"
    WebDriverWait(page.browser, 20).until(lambda _: page.run(paths) == 5)  # training and test
    assert "small" in page.find("#run-list").text
    assert "guessing: ln 10 = 2.303" in page.find("#loss-chart").text
    needed, given = page.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert needed <= given


def test_a_mistake_opens_with_its_truth_in_the_network_that_made_it(
    page: Page, small_data: None
) -> None:
    live.snapshot.cache_clear()  # it may say that the data was missing
    page.find("nav a[href='#runs']").click()
    first = "return document.querySelector('#mistakes button')?.textContent"
    WebDriverWait(page.browser, 20).until(lambda _: page.run(first))
    caption = page.run(first)
    open_it = "document.querySelector('#mistakes button').click()"
    prediction = page.answered_after(lambda: page.run(open_it)).rstrip("?")
    truth = page.run("return document.querySelector('#truths :checked').value")
    assert caption.startswith(f"true {truth}, predicted {prediction} (")
    assert page.run("return document.querySelector('#network').value") == "small"


def test_a_damaged_token_in_the_address_leaves_the_page_working(page: Page, demo: Demo) -> None:
    page.browser.get("about:blank")
    page.browser.get(f"{demo.url}/#token=%E0%A4%A")
    WebDriverWait(page.browser, 20).until(lambda _: page.find("#error").text == "URI malformed")
    assert page.answered_after(page.draw) == "7"


def test_runs_that_are_refused_are_not_asked_for_again(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(*_: object) -> None:
        asked.append(1)
        raise RunError("no figures")

    monkeypatch.setattr(server, "runs_now", fail)
    page.find("nav a[href='#runs']").click()
    error = page.find("#error")
    WebDriverWait(page.browser, 20).until(lambda _: "no figures" in error.text)
    time.sleep(3)
    assert len(asked) == 1
    assert page.browser.get_log("browser")  # the status, which Chromium logs
