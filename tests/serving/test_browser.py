"""The pages in a real headless Chromium: asking, streaming, stopping, reading a source, keyboard, narrow and dark."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from serving.app import create_app
from serving.language_model import LanguageModelError

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the dev extra)")
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver on this machine"),
]
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
)
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
# Relative luminance and contrast: WCAG 2.2, "contrast ratio".
CONTRAST = """
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parse = c => c.match(/[\\d.]+/g).map(Number);
const light = c => { const [r, g, b] = parse(c).map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (parse(c).length < 4 || parse(c)[3] > 0) return c;
  }
  return 'rgb(255,255,255)';
};
return [...document.querySelectorAll('body *')].filter(e =>
  [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length
).map(e => {
  const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.tagName + '.' + e.className + ': ' + e.textContent.trim().slice(0, 40)];
}).filter(([ratio]) => ratio < 4.5);
"""
UNNAMED = """
const named = e => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length || e.type === 'hidden';
return [...document.querySelectorAll('a, button, input, select, textarea')]
  .filter(e => !named(e)).map(e => e.outerHTML.slice(0, 100));
"""


class PacedModel:
    """Says its pieces one by one, waiting before each until it is let go on; fails at the end if told to."""

    def __init__(self, pieces: list[str], pause: float = 0.0, failure: Exception | None = None) -> None:
        self.pieces, self.pause, self.failure = pieces, pause, failure
        self.ended = threading.Event()
        self.name = "paced-1"

    async def stream(self, messages: Any) -> Any:
        try:
            for piece in self.pieces:
                await asyncio.sleep(self.pause)
                yield piece
            if self.failure:
                raise self.failure
        finally:
            self.ended.set()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    os.environ |= {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page of an app over these parts in a window of this size; afterwards the console must hold no error."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def opened(parts: Any, path: str = "/", width: int = 1280, height: int = 800, scheme: str = "light") -> Any:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        config = uvicorn.Config(create_app(parts), host="127.0.0.1", port=port, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get_log("browser")
        browser.get(f"http://127.0.0.1:{port}{path}")
        return browser

    yield opened
    browser.get("about:blank")
    for server, thread in running:
        server.should_exit = True
        thread.join()


def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def one(page: Any, selector: str) -> Any:
    return until(lambda: page.find_elements("css selector", selector), f"no {selector}")[0]


def all_of(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def text(page: Any, selector: str) -> str:
    return str(page.execute_script(f"return document.querySelector({selector!r})?.innerText ?? ''"))


def ask(page: Any, question: str) -> None:
    one(page, "#question").send_keys(question + "\n")


def errors(page: Any) -> list[str]:
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def test_an_answer_comes_with_its_source_beside_it(harbour: Any, show: Any) -> None:
    page = show(harbour.parts())
    ask(page, "What does the zqbacedi station report?")
    one(page, ".citation")
    assert "The zqbacedi station reports" in text(page, ".answer")
    until(lambda: "zqbacedi" in text(page, "#passage mark"), "the cited words are not marked")
    assert text(page, "#passage h2") == "Notes on harbours"
    assert one(page, ".citation").get_attribute("aria-current") == "true"
    assert errors(page) == []


def test_a_stream_is_shown_as_it_comes_and_then_rendered(harbour: Any, show: Any) -> None:
    model = PacedModel(["The tide **rises** ", "by four ", "metres [1].", " [9]"], pause=0.3)
    page = show(harbour.parts(language_model=model))
    ask(page, "zqbacedi tide")
    until(lambda: "Reading" in text(page, ".turn .label"), "it is not said what is being done")
    until(lambda: "**rises**" in text(page, ".streaming"), "nothing streams")
    assert "metres" not in text(page, ".streaming")
    assert one(page, ".stop").is_displayed()
    one(page, ".marker")
    assert one(page, ".answer strong").text == "rises"
    assert text(page, ".answer + .model") == "Answered by paced-1"
    assert "[9]" not in text(page, ".answer")
    assert not one(page, ".stop").is_displayed()


def test_escape_stops_the_answer_and_keeps_what_was_written(harbour: Any, show: Any) -> None:
    model = PacedModel(["First words. "] + ["and more "] * 500, pause=0.05)
    page = show(harbour.parts(language_model=model))
    ask(page, "zqbacedi tide")
    until(lambda: "First words." in text(page, ".streaming"), "nothing streams")
    page.switch_to.active_element.send_keys("\ue00c")
    until(lambda: "Stopped. What was written so far is kept." in text(page, ".turn"), "it did not stop")
    assert "First words." in text(page, ".turn")
    assert model.ended.wait(5)
    assert one(page, ".send").is_displayed()


def test_a_model_that_fails_midway_leaves_what_it_said_and_why(harbour: Any, show: Any) -> None:
    model = PacedModel(["It rises [1]"], failure=LanguageModelError("The language model at http://x broke off."))
    page = show(harbour.parts(language_model=model))
    ask(page, "zqbacedi tide")
    one(page, ".citation")
    assert "It rises" in text(page, ".answer")
    assert "The answer stops here. The language model at http://x broke off." in text(page, ".notice")


def test_an_app_that_has_gone_is_told_and_the_question_is_kept(harbour: Any, show: Any) -> None:
    page = show(harbour.parts())
    page.execute_script("window.fetch = () => Promise.reject(new TypeError('gone'))")
    ask(page, "Is anybody there?")
    until(lambda: "cannot be reached" in text(page, ".turn .notice"), "it is not told")
    assert one(page, "#question").get_attribute("value") == "Is anybody there?"


def test_the_keyboard_reaches_the_question_and_every_source(harbour: Any, show: Any) -> None:
    harbour.add("More on harbours", "# More\n\nThe zqbacedi station has a second gauge in the harbour.")
    page = show(harbour.parts())
    ask(page, "zqbacedi station harbour")
    first = one(page, '.citation[aria-current="true"]')
    page.execute_script("document.activeElement.blur()")
    one(page, "body").send_keys("\ue015")
    second = page.switch_to.active_element
    assert (first.get_attribute("data-n"), second.get_attribute("data-n")) == ("1", "2")
    until(lambda: second.get_attribute("aria-current") == "true", "the source does not follow the keyboard")
    second.send_keys("\ue013")
    assert page.switch_to.active_element == first
    first.send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "question"
    assert one(page, "#question").get_attribute("value") == ""


def test_on_a_narrow_screen_the_source_slides_over_and_goes_again(harbour: Any, show: Any) -> None:
    page = show(harbour.parts(), width=390)
    ask(page, "zqbacedi tide")
    citation = one(page, ".citation")
    assert not one(page, "#passage").is_displayed()
    citation.click()
    until(lambda: "zqbacedi" in text(page, "#passage mark"), "the source does not open")
    assert page.execute_script("return document.querySelector('#passage').getBoundingClientRect().width") == 390
    one(page, ".close").send_keys("\ue00c")
    assert not one(page, "#passage").is_displayed()
    assert page.switch_to.active_element == citation
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [1280, 390])
def test_back_closes_the_source_and_forward_opens_it_again(harbour: Any, show: Any, width: int) -> None:
    page = show(harbour.parts(), width=width)
    address = page.current_url
    ask(page, "zqbacedi tide")
    one(page, ".citation").click()
    until(lambda: "zqbacedi" in text(page, "#passage mark"), "the source does not open")
    page.back()
    until(lambda: not page.find_elements("css selector", "#passage mark"), "the source stays open")
    assert (page.current_url, one(page, ".citation").is_displayed()) == (address, True)
    assert one(page, "#passage").is_displayed() == (width == 1280)
    page.forward()
    until(lambda: "zqbacedi" in text(page, "#passage mark"), "the source does not come back")


def test_labels_of_chunks_stand_beside_no_code_and_dead_links_look_like_text(library: Any, show: Any) -> None:
    code = "def grow(tree):\n    return tree  # " + "a long remark " * 20
    id = library.add("src/grow.py", f"{code}\n\n{code}", category="code")
    dead = library.add("Dead", "A [dead link](other.md) and a [live one](https://example.org/).")
    page = show(library.parts(), path=f"/documents/{id}", width=400)
    covered = """
    const lines = document.createRange(), label = document.querySelector('#chunk-2').getBoundingClientRect();
    lines.selectNodeContents(document.querySelector('pre code'));
    return [...lines.getClientRects()].filter(line => line.width > label.width
      && line.top < label.bottom - 2 && line.bottom > label.top + 2).length"""
    assert page.execute_script(covered) == 0
    assert page.execute_script("return document.documentElement.scrollWidth") <= 400
    page.get(page.current_url.replace(id, dead))
    colours = "return [...document.querySelectorAll('.prose p, .prose a')].map(e => getComputedStyle(e).color)"
    words, gone, live = page.execute_script(colours)
    assert gone == words != live


def test_what_an_author_wrote_is_never_run(library: Any, show: Any) -> None:
    id = library.add(
        HOSTILE, f"# {HOSTILE}\n\nThe zqevil {HOSTILE} <script>document.title='owned'</script> word.", author=HOSTILE
    )
    page = show(
        library.parts(language_model=PacedModel([f"{HOSTILE} [1] ", "<script>document.title='owned'</script>"]))
    )
    ask(page, "zqevil " + HOSTILE)
    until(lambda: "zqevil" in text(page, "#passage mark"), "the source does not open")
    origin = page.current_url.rstrip("/")
    for path in ("/", "/documents", f"/documents/{id}", "/documents?author=" + HOSTILE):
        assert page.title != "owned"
        assert page.execute_script("return document.images.length") == 0
        page.get(origin + path)
        time.sleep(0.1)
    assert page.title != "owned"
    assert errors(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_text_has_contrast_and_every_control_a_name(harbour: Any, show: Any, scheme: str, width: int) -> None:
    harbour.fail(harbour.add("Scan", "x", indexed=False), "the PDF holds no text")
    harbour.add("Coming", "x", indexed=False)
    page = show(harbour.parts(), width=width, scheme=scheme)
    ask(page, "zqbacedi tide")
    one(page, ".citation").click()
    until(lambda: "zqbacedi" in text(page, "#passage mark"), "the source does not open")
    origin, id = page.current_url.rstrip("/"), next(iter(harbour.index.kept))
    for path in (
        "",
        "/?question=zqbacedi",
        "/documents",
        f"/documents/{id}?version=1&start=40&end=60",
        "/reference",
        "/login",
    ):
        if path:
            page.get(origin + path)
        assert page.execute_script(CONTRAST) == [], path
        assert page.execute_script(UNNAMED) == [], path
        assert page.execute_script("return document.documentElement.scrollWidth") <= width, path
        axe(page, path)


def axe(page: Any, path: str) -> None:
    """Run axe-core where somebody has put it: TWIN_TEST_AXE names its axe.min.js."""
    source = os.environ.get("TWIN_TEST_AXE")
    if not source:
        return
    # Through the debugger: the page's own policy lets no script in.
    page.execute_cdp_cmd("Runtime.evaluate", {"expression": Path(source).read_text()})
    found = page.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert len(found["passes"]) > 5, path
    assert [(each["id"], each["nodes"][0]["html"][:120]) for each in found["violations"]] == [], path


def test_the_first_paint_is_quick(harbour: Any, show: Any) -> None:
    page = show(harbour.parts())
    paints = "return performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)"
    times = []
    for _ in range(3):
        page.refresh()
        times.append(until(lambda: page.execute_script(paints), "nothing is painted")[0])
    print(f"first contentful paint: {min(times):.0f} ms of {[round(each) for each in times]}")
    assert min(times) < 1_000
