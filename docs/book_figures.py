"""How the book draws: colours for colour-blind readers, SVG that follows the page from light to dark.

Figures go into the page as inline SVG. Ink drawn in `INK` becomes ``currentColor``, so axes and labels take
the colour of the text around them; the fills are Okabe and Ito's palette, legible on both grounds.
"""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
INK = "#010203"  # no other ink has this value: it is exchanged for currentColor
LEAST_LETTER = 8.0  # CSS pixels to the em, on the narrowest screen

_numbers = itertools.count(1)

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "axes.edgecolor": INK,
        "axes.facecolor": "none",
        "axes.labelcolor": INK,
        "axes.prop_cycle": matplotlib.cycler(color=[BLUE, RED, GREEN, ORANGE, PINK, SKY]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "font.size": 10,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "savefig.facecolor": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "fastattention",
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


def _svg(figure: Figure, alt: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    # Ids are shared by the whole page: keep those that something refers to, and make them this figure's own.
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", text))
    prefix = f"fig{next(_numbers)}-"
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}", text)
    match = re.search(r'width="([\d.]+)pt"', text)
    assert match is not None
    width = float(match[1]) * 4 / 3  # a point is 4/3 of a CSS pixel
    size = f"max-width: {width:.0f}px"
    # Outlines of letters stand 100 to the em. Where the smallest would shrink below what can be read, the
    # drawing stays wider than its place and scrolls.
    letters = [float(scale) * 100 * 4 / 3 for scale in re.findall(r"scale\(([\d.]+) -[\d.]+\)", text)]
    if letters:
        size += f"; min-width: {np.ceil(width * min(1.0, LEAST_LETTER / min(letters))):.0f}px"
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    drawing = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" style="{size}" ', 1)
    return f'<div class="book-drawing">{drawing}</div>'


def show(figure: Figure, alt: str) -> HTML:
    """Put a figure into the page; `alt` says in words what it shows."""
    return HTML(f'<figure class="book-figure">{_svg(figure, alt)}</figure>')


def steps(frames: Sequence[tuple[Figure, str]]) -> HTML:
    """Put figures into the page as one that the reader steps through; without JavaScript all of them show."""
    parts = [
        f'<div class="book-step">{_svg(figure, alt)}<p>{html.escape(alt)}</p></div>' for figure, alt in frames
    ]
    return HTML(f'<figure class="book-figure book-steps">{"".join(parts)}</figure>')


def matrix(
    axes: Axes,
    values: np.ndarray,
    *,
    title: str = "",
    digits: int = 2,
    colour: str = BLUE,
    hidden: np.ndarray | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Draw a small matrix with its numbers; deeper fill is larger value, `hidden` cells are crossed out."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    for (i, j), value in np.ndenumerate(values):
        out = hidden is not None and bool(hidden[i, j])
        depth = 0.0 if out or not np.isfinite(value) else (value - low) / (high - low or 1.0)
        alpha = 0.08 + 0.45 * depth  # never so deep that the number is lost, on either ground
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
        axes.add_patch(Rectangle((j, i), 1, 1, fill=False, edgecolor=INK, linewidth=0.6))
        if out:
            axes.plot([j + 0.35, j + 0.65], [i + 0.65, i + 0.35], color=INK, linewidth=0.9)
        else:
            text = f"{value:.{digits}f}" if np.isfinite(value) else "−∞"
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=9)
    height, width = values.shape
    axes.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal", title=title)
    axes.title.set_fontsize(10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
