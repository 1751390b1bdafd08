"""The page in a real browser; skipped where Chromium, its driver or selenium are missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_page import HOSTILE, empty, finished, half  # noqa: F401

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed")
AXE = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
PAGES = ("finished", "half", "empty")
BLOCKS = "figure, tr, li, .top, math, .command"  # what the end of a sheet may not cut


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=PAGES)
def opened(request, browser):
    """The browser with a page opened in it."""
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get((request.getfixturevalue(request.param) / "report.html").as_uri())
    return browser


def emulate(browser, width: int = 1280, scheme: str = "light", media: str = "") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def test_nothing_leaves_the_disk_and_all_pictures_are_loaded(opened):
    requests = [entry["message"] for entry in opened.get_log("performance")]
    sent = [r for r in requests if '"Network.requestWillBeSent"' in r]
    assert sent and not [r for r in sent if '"url":"http' in r]
    assert opened.get_log("browser") == []
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth)"
    assert opened.execute_script(broken) == []
    assert opened.title != "run" and (HOSTILE in opened.title or "see?" in opened.title)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, scheme):
    emulate(opened, scheme=scheme)
    opened.execute_script(AXE)
    found = opened.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    problems = [(v["id"], [node["html"][:200] for node in v["nodes"]][:3]) for v in found["violations"]]
    assert problems == [] and len(found["passes"]) > 10


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows(opened, width):
    emulate(opened, width)
    scroll, client = opened.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll <= client <= width < client + 20  # a scroll bar


def test_all_is_reached_by_the_keyboard(opened):
    """The first stop is the skip link, which is then seen."""
    emulate(opened)
    from selenium.webdriver.common.keys import Keys

    opened.switch_to.active_element.send_keys(Keys.TAB)
    link = opened.switch_to.active_element
    assert link.text == "Skip to the answers" and link.location["x"] >= 0
    link.send_keys(Keys.ENTER)
    assert opened.execute_script("return document.activeElement.id") == "answers"


@pytest.mark.parametrize("height_cm", [29.7, 27.9])
def test_no_sheet_is_more_than_half_empty(opened, height_cm):
    """On A4 and on Letter, with margins of 16 mm: a block that is not broken is at most half a sheet high."""
    emulate(opened, width=round(18 / 2.54 * 96), media="print")
    heights = opened.execute_script(
        f"return [...document.querySelectorAll('{BLOCKS}')].map(e => "
        "[e.getBoundingClientRect().height, getComputedStyle(e).breakInside, e.outerHTML.slice(0, 80)])"
    )
    highest = (height_cm - 3.2) / 2.54 * 96 / 2
    assert [block for block in heights if block[0] > highest or block[1] != "avoid"] == []
