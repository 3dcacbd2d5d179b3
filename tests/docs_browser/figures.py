"""What a figure's letters look like to a reader: how large they are, and how they stand out.

Letters in figures are outlines, which axe-core does not read as text. So each word is looked at as it is
drawn: its colour as computed, against the pixels that lie under it once all letters are hidden.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .browser import Browser

# The outlines stand 100 units to the em; words are the groups that hold them.
WORDS = """
for (const step of document.querySelectorAll(".book-step")) step.hidden = false;
const found = [];
for (const svg of document.querySelectorAll("figure.book-figure svg")) {
  const figure = svg.getBoundingClientRect();
  if (!figure.width) continue;
  const words = [];
  for (const group of svg.querySelectorAll("g")) {
    const letter = [...group.children].find((child) => child.matches('use[*|href*="DejaVu"]'));
    if (!letter) continue;
    const place = group.getBoundingClientRect(), matrix = group.getScreenCTM();
    let opacity = 1;
    for (let node = letter; node !== svg; node = node.parentElement)
      opacity *= Number(getComputedStyle(node).opacity);
    opacity *= Number(getComputedStyle(letter).fillOpacity);
    words.push({
      x: place.x - figure.x, y: place.y - figure.y, width: place.width, height: place.height, opacity,
      colour: getComputedStyle(letter).fill, size: 100 * Math.hypot(matrix.b, matrix.d),
    });
  }
  found.push({
    x: figure.x + scrollX, y: figure.y + scrollY, width: figure.width, height: figure.height,
    title: svg.getAttribute("aria-label") || "", words,
  });
}
return found;
"""
HIDE = """
const sheet = document.createElement("style");
sheet.id = "letters-hidden";
sheet.textContent = 'figure.book-figure svg use[*|href*="DejaVu"] { visibility: hidden }';
document.head.append(sheet);
"""
SHOW = "document.getElementById('letters-hidden').remove()"


class Word(NamedTuple):
    """A word of a figure: which figure, letter height in CSS pixels (em), contrast as WCAG defines it."""

    figure: str
    x: float
    y: float
    size: float
    contrast: float


def luminance(colour: np.ndarray) -> np.ndarray:
    """Return the relative luminance of sRGB in [0, 1], after WCAG 2."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def contrast(colour: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return the contrast ratio, 1 to 21, of colours against grounds."""
    one, two = luminance(colour), luminance(ground)
    return np.asarray((np.maximum(one, two) + 0.05) / (np.minimum(one, two) + 0.05))


def measure(browser: Browser) -> list[dict[str, Any]]:
    """Return the page's figures with their words, all steps of steppers shown."""
    found: list[dict[str, Any]] = browser.script(WORDS)
    return found


def look(browser: Browser) -> list[Word]:
    """Return the words of the page's figures with their contrast, as the page now stands."""
    figures = measure(browser)
    browser.script(HIDE)
    result = []
    for figure in figures:
        picture = browser.picture(figure["x"], figure["y"], figure["width"], figure["height"])
        for word in figure["words"]:
            x, y = max(int(word["x"]), 0), max(int(word["y"]), 0)
            under = picture[y : int(word["y"] + word["height"]) + 1, x : int(word["x"] + word["width"]) + 1]
            ground = under.reshape(-1, 3)
            parts = [float(part) for part in word["colour"][word["colour"].index("(") + 1 : -1].split(",")]
            opacity = word["opacity"] * (parts[3] if len(parts) > 3 else 1.0)
            ink = np.array(parts[:3]) / 255 * opacity + ground * (1 - opacity)
            # A thin line behind a word does not hide it; a third of the word on a bad ground does.
            seen = float(np.quantile(contrast(ink, ground), 1 / 3))
            result.append(Word(figure["title"][:60], word["x"], word["y"], word["size"], seen))
    browser.script(SHOW)
    return result
