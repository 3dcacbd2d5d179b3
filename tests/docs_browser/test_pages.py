"""Every page of the built book: opened once, then looked at in light, in dark, and on a phone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import figures
from .browser import DESKTOP, HTML, PHONE, Browser

# What the theme ships for its own templates is no page.
PAGES = sorted(str(path.relative_to(HTML)) for path in HTML.rglob("*.html") if "_static" not in path.parts)

# Pages made from docstrings are made alike: all must load, one in twenty is looked at closely.
GENERATED = [page for page in PAGES if "generated" in page]
WRITTEN = [page for page in PAGES if "generated" not in page]
LOOKED_AT = {*WRITTEN, *GENERATED[::20]}

LEAST_CONTRAST = 4.5  # of letters, WCAG 2 AA
LEAST_LETTER = 8.0  # CSS pixels to the em: a footnote's size on a phone

# TeX that MathJax refused is an merror; a macro that it does not know stands there in red.
FORMULAS = r"""
const faults = [], main = document.querySelector("main") || document.body;
for (const place of document.querySelectorAll(".math"))
  if (!place.querySelector("mjx-container")) faults.push("not set: " + place.textContent.slice(0, 80));
const wrong = "mjx-merror, [data-mml-node=merror], [data-mjx-error], [data-mml-node=mtext][fill=red]";
for (const place of document.querySelectorAll(wrong))
  faults.push("error: " + (place.closest("mjx-container") || place).textContent.slice(0, 80));
const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode;
  if (node.parentElement.closest("pre, code, script, style, mjx-container, svg")) continue;
  if (/\\[([]|\\[a-zA-Z]{2,}|\$[^\s$][^$]*\$/.test(node.data))
    faults.push("raw: " + node.data.trim().slice(0, 80));
}
return faults;
"""

# A parameter whose name and type say it all has no description.
EMPTY = """
return [...document.querySelectorAll("article :is(li, dl:not(.simple, .py) > dd)")]
  .filter((entry) => !entry.textContent.trim() && !entry.querySelector("img, svg, input"))
  .map((entry) => entry.parentElement.outerHTML.slice(0, 120));
"""

# A part may be wider than the window only within something that scrolls by itself.
TOO_WIDE = """
const faults = [], width = document.documentElement.clientWidth, page = document.scrollingElement;
if (page.scrollWidth > width) faults.push(`the page is ${page.scrollWidth} px wide`);
for (const part of document.querySelectorAll("main *")) {
  if (part.parentElement.closest("svg, mjx-container") || !part.checkVisibility()) continue;
  if (part.getBoundingClientRect().right <= width + 1) continue;
  let around = part.parentElement;
  while (around && !/auto|scroll/.test(getComputedStyle(around).overflowX)) around = around.parentElement;
  if (!around) faults.push("sticks out: " + part.outerHTML.slice(0, 120));
}
return faults;
"""


# Whether every listing that scrolls can be reached by the tabulator key.
STOPS = """
return [...document.querySelectorAll("pre, .pst-scrollable-table-container")]
  .every((part) => part.scrollWidth <= part.clientWidth || part.tabIndex === 0);
"""


@pytest.fixture(scope="module", params=PAGES)
def loaded(browser: Browser, request: pytest.FixtureRequest) -> tuple[Browser, list[str]]:
    """The browser with a page open, and what went wrong on the way."""
    browser.open(request.param)
    return browser, browser.faults()


@pytest.fixture
def page(loaded: tuple[Browser, list[str]]) -> Iterator[Browser]:
    """The browser with a page open, in light, on a desk; what a test sets is set back."""
    yield loaded[0]
    loaded[0].set_dark(False)
    loaded[0].set_width(*DESKTOP)


@pytest.fixture
def closely(page: Browser, request: pytest.FixtureRequest) -> Browser:
    """The browser with a page open that is looked at closely."""
    if request.node.callspec.params["loaded"] not in LOOKED_AT:
        pytest.skip("made from docstrings as others that are looked at")
    return page


def test_loads_without_faults(loaded: tuple[Browser, list[str]]) -> None:
    assert loaded[1] == []


def test_formulas_are_set(page: Browser) -> None:
    assert page.script(FORMULAS) == []


def test_no_entry_of_a_list_is_empty(page: Browser) -> None:
    """A letter with a full stop that begins a text ("L.") is easily taken for the number of an entry."""
    assert page.script(EMPTY) == []


def test_phone_scrolls_only_down(page: Browser) -> None:
    page.set_width(*PHONE)
    assert page.script("return innerWidth") == PHONE[0]
    assert page.script(TOO_WIDE) == []


def test_what_scrolls_on_a_phone_does_so_by_keyboard(closely: Browser) -> None:
    closely.set_width(*PHONE)
    closely.wait(STOPS, "the theme gives what scrolls a tab stop some time after the width has changed")
    assert closely.axe(runOnly=["scrollable-region-focusable"]) == []


def test_letters_in_figures_are_large_enough_on_a_phone(closely: Browser) -> None:
    closely.set_width(*PHONE)
    small = {
        figure["title"][:80]: size
        for figure in figures.measure(closely)
        if (size := min((word["size"] for word in figure["words"]), default=LEAST_LETTER))
        < LEAST_LETTER - 0.05
    }
    assert small == {}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_letters_in_figures_stand_out(closely: Browser, dark: bool) -> None:
    closely.set_dark(dark)
    faint = {
        (word.figure, round(word.contrast, 1))
        for word in figures.look(closely)
        if word.contrast < LEAST_CONTRAST
    }
    assert faint == set()


def test_accessible(closely: Browser) -> None:
    assert closely.axe() == []


def test_accessible_in_dark(closely: Browser) -> None:
    closely.set_dark(True)
    assert closely.axe(runOnly=["color-contrast", "link-in-text-block"]) == []
