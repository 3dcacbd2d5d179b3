"""Figures of several steps: by button, by keyboard, and without scripts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from .browser import HTML, Browser

PAGES = sorted(
    str(path.relative_to(HTML))
    for path in (HTML / "book").glob("*.html")
    if '<figure class="book-figure book-steps">' in path.read_text(encoding="utf-8")
)

# For each stepper, the numbers of the steps that can be seen, and how many there are.
SHOWN = """
return [...document.querySelectorAll("figure.book-steps")].map((figure) => {
  const steps = [...figure.querySelectorAll(".book-step")];
  const seen = (step) =>
    step.checkVisibility() && step.querySelector("svg").getBoundingClientRect().height > 20;
  return [steps.flatMap((step, i) => seen(step) ? [i] : []), steps.length];
});
"""

SCRIPTED = "return document.querySelector('.book-steps-bar') !== null || 'MathJax' in window"


def test_there_are_steppers() -> None:
    assert len(PAGES) >= 4


@pytest.fixture(params=PAGES)
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The browser with a page of steppers open."""
    browser.open(request.param)
    yield browser
    assert browser.faults() == []


def test_buttons_step(page: Browser) -> None:
    for number, stepper in enumerate(page.driver.find_elements(By.CSS_SELECTOR, "figure.book-steps")):
        back, forth = stepper.find_elements(By.TAG_NAME, "button")
        count = page.script(SHOWN)[number][1]
        assert count > 1
        # One press more than there are steps, each way: the ends hold.
        expected = [*range(1, count), count - 1, *range(count - 2, -1, -1), 0]
        for press, step in enumerate(expected):
            (forth if press < count else back).click()
            assert page.script(SHOWN)[number][0] == [step]
            assert f"{step + 1} of {count}" in stepper.text


def test_keys_step(page: Browser) -> None:
    for number, stepper in enumerate(page.driver.find_elements(By.CSS_SELECTOR, "figure.book-steps")):
        count = page.script(SHOWN)[number][1]
        assert page.script(SHOWN)[number][0] == [0]
        page.script("arguments[0].querySelector('button').focus()", stepper)
        for key, step in (
            (Keys.TAB, 0),  # to the slider
            (Keys.ARROW_RIGHT, 1),
            (Keys.END, count - 1),
            (Keys.ARROW_LEFT, count - 2),
            (Keys.HOME, 0),
            (Keys.TAB, 0),  # to the button that steps on
            (Keys.ENTER, 1),
            (Keys.SPACE, min(2, count - 1)),
        ):
            page.driver.switch_to.active_element.send_keys(key)
            assert page.script(SHOWN)[number][0] == [step], key


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_all_steps_show(browser: Browser, name: str) -> None:
    browser.set_scripts(False)
    try:
        browser.open(name, ready=False)
        assert browser.script(SCRIPTED) is False
        shown = browser.script(SHOWN)
        assert shown
        assert all(steps == list(range(count)) for steps, count in shown)
    finally:
        browser.set_scripts(True)
