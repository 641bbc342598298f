"""The page in a real browser, opened from its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.slow
WAIT = 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    """A headless Chromium that records its console and what it fetches."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1440,1000"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    yield driver
    driver.quit()


def rows(browser) -> list[list[str]]:
    """The cells of the rows that the table shows."""
    script = "return [...document.querySelectorAll('#runs tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    return browser.execute_script(script)


def heading(browser, name: str):
    """The words over a column that is on the screen, and the column's place."""
    from selenium.webdriver.common.by import By

    headings = browser.find_elements(By.CSS_SELECTOR, ".dt-scroll-head thead th")
    names = [each.text.strip() for each in headings]
    place = names.index(name)
    return headings[place].find_element(By.CSS_SELECTOR, ".dt-column-title"), place


def filter_of(browser, name: str):
    """The filter of a column, opened."""
    from selenium.webdriver.common.by import By

    place = heading(browser, name)[1]
    browser.find_elements(By.CSS_SELECTOR, ".dt-scroll-head thead th")[place].find_element(
        By.CSS_SELECTOR, ".dtcc-button_dropdown"
    ).click()
    return next(each for each in browser.find_elements(By.CSS_SELECTOR, ".dtcc-dropdown") if each.is_displayed())


def test_it_loads_sorts_and_filters_and_fetches_nothing(whole, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    wait = WebDriverWait(browser, WAIT)
    browser.get(whole.report.page.as_uri())
    wait.until(lambda b: len(rows(b)) == 25)
    info = browser.find_element(By.CSS_SELECTOR, ".dt-info")
    assert "of 75 entries" in info.text

    label, place = heading(browser, "λ̂")
    for descending in (False, True):
        before = rows(browser)
        label.click()
        wait.until(lambda b, before=before: rows(b) != before)
        shown = [float(row[place]) for row in rows(browser) if row[place]]
        assert len(shown) == (25 if descending else 20)
        assert shown == sorted(shown, reverse=descending)

    search = browser.find_element(By.CSS_SELECTOR, ".dt-search input")
    search.send_keys("nuts")
    wait.until(lambda b: "filtered from 75" in b.find_element(By.CSS_SELECTOR, ".dt-info").text)
    place = heading(browser, "sampler")[1]
    assert {row[place] for row in rows(browser)} == {"nuts"}
    search.clear()
    search.send_keys("window.pwned")
    wait.until(lambda b: all("<script>" in row[0] for row in rows(b)))
    search.clear()
    search.send_keys(Keys.SPACE, Keys.BACKSPACE)
    wait.until(lambda b: b.find_element(By.CSS_SELECTOR, ".dt-info").text.endswith("75 entries"))

    verdict, estimate = heading(browser, "verdict")[1], heading(browser, "λ̂")[1]
    choices = filter_of(browser, "verdict").find_elements(By.CSS_SELECTOR, ".dtcc-list-buttons button")
    next(each for each in choices if each.text == "ok").click()
    wait.until(lambda b: {row[verdict] for row in rows(b)} == {"ok"})
    between = filter_of(browser, "λ̂")
    Select(between.find_element(By.TAG_NAME, "select")).select_by_visible_text("Less than")
    values = sorted({float(row[estimate]) for row in rows(browser)})
    between.find_element(By.TAG_NAME, "input").send_keys(str(values[len(values) // 2]))
    wait.until(lambda b: {float(row[estimate]) < values[len(values) // 2] for row in rows(b)} == {True})
    assert {row[verdict] for row in rows(browser)} == {"ok"}

    colour = browser.execute_script(
        "return getComputedStyle(document.querySelector('#runs td[data-value=ok]')).backgroundColor"
    )
    assert colour == "rgb(215, 240, 221)"
    broken = "return [...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    wait.until(lambda b: b.execute_script(broken) == 0)
    assert browser.execute_script("return window.pwned === undefined")

    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert whole.report.page.as_uri() in sent
    # Chromium's own start page is a chrome: address.
    assert {url.partition(":")[0] for url in sent} <= {"file", "data", "blob", "chrome"}
