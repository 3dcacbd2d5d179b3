"""Search, from disk: what a reader types into the search field is found."""

from __future__ import annotations

import time

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from .browser import Browser


def results(browser: Browser) -> dict[str, str]:
    """Return the pages found, titles by address, once the search says that it is done."""
    for _ in range(250):
        done = browser.driver.find_elements(By.CSS_SELECTOR, "#search-results .search-summary")
        if done and "found" in done[0].text:
            break
        time.sleep(0.02)
    links = browser.driver.find_elements(By.CSS_SELECTOR, "#search-results ul.search > li > a")
    return {(link.get_attribute("href") or "").split("#")[0].split("?")[0]: link.text for link in links}


def test_search_finds_log_sum_exp(browser: Browser) -> None:
    browser.open("index.html")
    browser.driver.find_element(By.CSS_SELECTOR, ".search-button__button").click()
    field = browser.driver.switch_to.active_element
    field.send_keys("log-sum-exp", Keys.ENTER)
    found = results(browser)
    pages = {address.split("/html/")[-1] for address in found}
    assert {"book/01-attention-by-hand.html", "glossary.html"} <= pages
    assert browser.faults() == []
    browser.driver.find_element(By.CSS_SELECTOR, "#search-results a[href*='01-attention']").click()
    assert "log-sum-exp" in browser.driver.find_element(By.TAG_NAME, "main").text
    assert browser.faults() == []


def test_search_finds_nothing_where_there_is_nothing(browser: Browser) -> None:
    browser.open("search.html?q=quixotism")
    assert results(browser) == {}
    assert browser.faults() == []
