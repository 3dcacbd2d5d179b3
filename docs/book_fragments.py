"""Drawings of which lane holds what, from the maps of ``reference.volta``: no lane is placed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from book_figures import BLUE, GREEN, INK, ORANGE, PINK, RED, SKY, YELLOW
from fastattention.reference.volta.fragments import FRAGMENTS, Fragment, quad_lane
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

#: A colour for each of eight lanes, or groups of lanes; numbers in the cells say the same without colour.
EIGHT = (BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, "#808080")
FILL = 0.38  # so pale that a number in the text's colour stays legible on either ground


def cell(
    axes: Axes, row: float, column: float, text: str = "", *, colour: str = "", alpha: float = FILL,
    size: float = 8, bold: bool = False,
) -> None:  # fmt: skip
    """Draw one cell of a matrix, without a fill where there is no colour."""
    if colour:
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
    axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=INK, linewidth=0.5))
    if text:
        weight = "bold" if bold else "normal"
        axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", fontsize=size, fontweight=weight)


def frame(axes: Axes, rows: int, columns: int, title: str = "") -> None:
    """Set up axes for a matrix of cells, row 0 on top."""
    axes.set(xlim=(-0.05, columns + 0.05), ylim=(rows + 0.05, -0.05), aspect="equal", title=title)
    axes.title.set_fontsize(10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set(xticks=[], yticks=[])


def fragment_map(
    axes: Axes, fragment: Fragment, colour_of: Callable[[int], str], *, matrix: int = 0, title: str = ""
) -> None:
    """Draw one matrix of a fragment: each cell has the number of the lane that holds it, in its colour."""
    frame(axes, *fragment.shape, title)
    for lane, i in np.ndindex(fragment.rows.shape):
        if fragment.group[lane, 0] == matrix:
            place = int(fragment.rows[lane, i]), int(fragment.columns[lane, i])
            cell(axes, *place, str(lane), colour=colour_of(lane))


def by_quad_lane(lane: int) -> str:
    """Return the colour of a lane's number in its quad-pair."""
    return EIGHT[quad_lane(lane)]


def by_quad(lane: int) -> str:
    """Return the colour of a lane's four neighbours: 0 to 3, 4 to 7 and so on."""
    return EIGHT[lane >> 2]


def listed(numbers: Sequence[int]) -> str:
    """Return distinct numbers in words: ``4, 5 and 6``.

    Examples
    --------
    >>> listed([6, 4, 4, 5]), listed([7])
    ('4, 5 and 6', '7')
    """
    words = [str(n) for n in sorted(set(numbers))]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def product_of_lane(lane: int) -> tuple[Figure, str]:
    """Draw what one lane has of an m8n8k4 product by ``row.col`` with float32 sums, and where the rest is."""
    a, b, c = (FRAGMENTS[f"m8n8k4 {name}"] for name in ("A row", "B col", "C f32"))
    results = list(zip(c.rows[lane].tolist(), c.columns[lane].tolist(), strict=True))
    rows, columns = [row for row, _ in results], [column for _, column in results]
    sizes = {"width_ratios": (4, 8), "height_ratios": (4, 8), "wspace": 0.12, "hspace": 0.16}
    figure, panels = plt.subplots(2, 2, figsize=(4.2, 4.3), gridspec_kw=sizes)
    panels[0, 0].axis("off")
    for axes, fragment, letter, colour, needed in (
        (panels[1, 0], a, "a", BLUE, {(row, k) for row in rows for k in range(4)}),
        (panels[0, 1], b, "b", GREEN, {(k, column) for column in columns for k in range(4)}),
        (panels[1, 1], c, "c", ORANGE, set()),
    ):
        frame(axes, *fragment.shape)
        held = {
            (int(row), int(column)): f"${letter}_{i}$"
            for i, (row, column) in enumerate(zip(fragment.rows[lane], fragment.columns[lane], strict=True))
        }
        for place in np.ndindex(*fragment.shape):
            if place in held:
                cell(axes, *place, held[place], colour=colour, alpha=0.5, size=9)
            else:
                cell(axes, *place, colour=colour if place in needed else "", alpha=0.14)
    panels[1, 0].set_title("A", y=-0.13)
    panels[0, 1].set_title("B", loc="left", x=-0.12, y=0.4)
    panels[1, 1].set_title("C", y=-0.13)
    plt.close(figure)
    same = [other for other in range(32) if a.group[other, 0] == a.group[lane, 0]]
    from_a = [n for n in same if a.rows[n, 0] in rows]
    from_b = [n for n in same if b.columns[n, 0] in columns]
    return figure, (
        f"Lane {lane} holds row {a.rows[lane, 0]} of A, column {b.columns[lane, 0]} of B, and of C the rows "
        f"{listed(rows)} in columns {listed(columns)}. These results take rows of A from lanes "
        f"{listed(from_a)}, and columns of B from lanes {listed(from_b)}."
    )
