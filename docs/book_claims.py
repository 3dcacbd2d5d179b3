"""The paper's claims, one by one, how far each was followed, and how the book shows that.

The figures are ``book_evidence``'s. When more is recorded in ``results/``, a claim changes its status by
itself.
"""

from __future__ import annotations

import enum
import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import book_evidence as evidence
import matplotlib.pyplot as plt
from book_evidence import COOPERATION, END_TO_END, NPU, RESULTS, THROUGHPUT, VOLTA
from book_figures import BLUE, INK, ORANGE
from fastattention.reference import offload, tiling_mask, two_level_counts
from fastattention.reference.ascend import sweep
from IPython.display import HTML
from matplotlib.figure import Figure

from fastattention.offload import hardware


class Status(enum.Enum):
    """How far a claim was followed: a shape, a word, and what the word means."""

    MEASURED = "●", "measured", "the figure is read from a file in results/, which has hardware and date"
    COUNTED = "◆", "counted", "exact on any machine: the algorithm was run, or its bytes and steps added up"
    MODELLED = (
        "◐",
        "modelled",
        "a model says so, whose parameters name their sources; nobody measured it here",
    )
    UNCHECKED = "○", "not checked", "it needs hardware or a model that was not at hand"

    @property
    def shape(self) -> str:
        """The sign before the word."""
        return self.value[0]

    @property
    def word(self) -> str:
        """The word itself."""
        return self.value[1]

    @property
    def meaning(self) -> str:
        """What the word means, for the legend."""
        return self.value[2]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what became of it here.

    Attributes
    ----------
    part : str
        Of the paper: what it is about.
    what, source : str
        The claim in words, and who reports it.
    status : Status
    found : str
        What this project computed or measured.
    chapter : str
        The page that has the whole of it: a file's stem in ``docs/book``.
    """

    part: str
    what: str
    source: str
    status: Status
    found: str
    chapter: str


def claims(folder: Path = RESULTS) -> list[Claim]:
    """Return all claims, part by part."""
    return [*_npu(folder), *_volta(folder), *_cooperation(folder), *_whole(folder)]


def _npu(folder: Path) -> Iterator[Claim]:
    part = "Ascend NPUs"
    ratios = [ratio for row in evidence.npu_speedups().values() for ratio in row]
    yield Claim(
        part,
        f"Attention is up to {NPU:g} times as fast as standard attention.",
        "abstract",
        Status.MODELLED,
        f"By shape, and by the code that it is compared with, the model says {_range(ratios)} times. {NPU:g} "
        "lies within, which is no proof. No Ascend was at hand.",
        "05-two-levels",
    )
    shape = (65536, 65536, 128, 128)
    one, two = (
        two_level_counts.expected(shape, blocks, causal=True).handovers
        for blocks in (evidence.ONE_LEVEL, evidence.TWO_LEVELS)
    )
    yield Claim(
        part,
        "Two-level tiling: Cube and Vector cores wait less for each other.",
        "abstract; a review's account",
        Status.COUNTED,
        f"64K tokens, causal: {one:,} hand-overs in blocks of 128 keys, {two:,} in blocks of 512. What that "
        f"gains in time, {_range(evidence.level_gains(), 2)} times, is the model's word alone.",
        "05-two-levels",
    )
    full, small = tiling_mask.full_mask_bytes(65536), tiling_mask.m_mask_bytes(512)
    yield Claim(
        part,
        "The tiling-mask stands for the whole mask and saves 99 % of its memory.",
        "abstract; the figure is a review's",
        Status.COUNTED,
        f"64K tokens, M = 512, a byte a cell: {_size(full)} become {_size(small)}, which saves "
        f"{100 * tiling_mask.saving(65536, 512):.4f} %. Windows of the small mask are the mask by definition "
        f"at all {evidence.offsets_that_agree()} offsets tried.",
        "04-masks",
    )
    most = ", ".join(f"{evidence.most_by_overlap(sums):.1f}" for sums in (0.2, 0.5, 1.0))
    measured = evidence.overlaps(folder)
    words = "".join(f" Measured, {name}: {ratio:.2f} times at best." for name, ratio in measured.items())
    yield Claim(
        part,
        "Tiling-AllReduce hides communication.",
        "abstract, without a figure",
        Status.MEASURED if measured else Status.MODELLED,
        f"Where sums take 0.2, 0.5 and 1 of the compute, overlap gains at most {most} times.{words} That the "
        "answer stays the same was run.",
        "11-allreduce-in-tiles",
    )


def _volta(folder: Path) -> Iterator[Claim]:
    part = "Volta GPUs"
    ratios, cards = evidence.against_xformers(folder), evidence.volta_cards(folder)
    own = [
        f"{card}: {_range(values, 2)} times"
        for (card, name), values in ratios.items()
        if card in cards and name == "atom 70"
    ]
    others = [
        f"{card} with {evidence.ATOMS[name]}{', which it emulates' if name == 'atom 70' else ''}, "
        f"{_range(values, 2)} times"
        for (card, name), values in ratios.items()
        if card not in cards and name in evidence.ATOMS
    ]
    beside = f" The same comparison on other cards: {'; '.join(others)}." if others else ""
    yield Claim(
        part,
        f"Attention is {VOLTA:g} times as fast as that of xformers.",
        "abstract",
        Status.MEASURED if own else Status.UNCHECKED,
        ("; ".join(own) + ", over all cases." if own else "No V100 was at hand.") + beside,
        "09-turing-ampere",
    )
    cycles = evidence.bank_cycles(folder)
    audit = (
        f" In Volta's machine code, run by an emulator, loads take {_range(cycles['launched'], 2)} times the "
        f"fewest cycles possible; as tiles come, {_range(cycles['step before'])} times."
        if cycles
        else ""
    )
    yield Claim(
        part,
        "Operands laid out anew in shared memory suit m8n8k4, without bank conflicts.",
        "abstract; a review's account",
        Status.COUNTED,
        f"A search finds layouts without a conflict.{audit}",
        "08-volta",
    )


def _cooperation(folder: Path) -> Iterator[Claim]:
    part = "CPU and GPU together"
    machine, measured = hardware("v100-16gb"), evidence.against_classical(folder)
    words = "".join(f" Measured, {way}: {_range(values, 2)} times." for way, values in measured.items())
    yield Claim(
        part,
        f"Cooperation is {COOPERATION[0]:g} to {COOPERATION[1]:g} times as fast as classical offloading.",
        "a review's account",
        Status.MEASURED if measured else Status.MODELLED,
        f"For eight V100s the bound is {offload.ratio(cpu=machine.cpu, bus=machine.bus):.2f} times; by the "
        f"model a token of LLaMA-7B gains {_range(evidence.modelled_gains(), 2)} times.{words}",
        "10-cpu-and-gpu",
    )
    place, runs = evidence.share_of_eight(evidence.CONTEXT).placement, evidence.long_runs(folder)
    words = "".join(
        f" Run: {run.context:,} tokens of {run.model} where {run.largest_without:,} fit without."
        for run in runs
    )
    cache = 32 * offload.cache_bytes(1, evidence.CONTEXT, 32, 128, 128, 2)
    yield Claim(
        part,
        "Eight V100s take inputs of 256K tokens.",
        "abstract, without the model's name",
        Status.MEASURED if runs else Status.MODELLED,
        f"LLaMA-7B's caches are {_size(cache)} then. With its eighth of the heads each card of 16 GB holds "
        f"{place.gpu_layers} of 32 layers; {place.host_layers} lie in host memory.{words}",
        "10-cpu-and-gpu",
    )


def _whole(folder: Path) -> Iterator[Claim]:
    part = "Whole models"
    yield Claim(
        part,
        f"Llama-7B has up to {THROUGHPUT:g} times the throughput.",
        "abstract",
        Status.UNCHECKED,
        f"No Ascend was at hand. From attention alone, {NPU:g} times as fast, it follows only where that "
        f"takes {100 * sweep.share_of_attention(THROUGHPUT, NPU):.0f} % of a model's time.",
        "05-two-levels",
    )
    shares = [100 * share for share in evidence.attention_shares(folder).values()]
    words = f" In our own small model, attention takes {_range(shares, 0)} % of prefill." if shares else ""
    yield Claim(
        part,
        f"Pangu-38B is {END_TO_END:g} times as fast from end to end, on FasterTransformer.",
        "abstract",
        Status.UNCHECKED,
        f"Neither the model nor a V100 was at hand. Attention {VOLTA:g} times as fast cannot do it alone, "
        f"whatever its share.{words}",
        "10-cpu-and-gpu",
    )
    errors = ", ".join(
        f"{dtype} {error:.0e}".replace("-", "−")
        for dtype, error in sorted(evidence.largest_errors(folder).items())
    )
    yield Claim(
        part,
        "It extends FlashAttention-2, which is exact: the answer is that of standard attention.",
        "title",
        Status.MEASURED if errors else Status.COUNTED,
        "The specification's tiles give the oracle's answer."
        + (
            f" Our kernels' largest relative errors over all benchmarks, by type of the cache: {errors}."
            if errors
            else ""
        ),
        "02-online-softmax",
    )


# -- How they are shown ----------------------------------------------------------------------------


def legend() -> HTML:
    """Say what the four words mean."""
    rows = "".join(f"<li>{_sign(status)}: {html.escape(status.meaning)}.</li>" for status in Status)
    return HTML(f'<div class="book-claims"><ul>{rows}</ul></div>')


def table(folder: Path = RESULTS) -> HTML:
    """Show the claims as a table, a heading for each part of the paper; on a phone, one below the other."""
    body, part = [], None
    for claim in claims(folder):
        if claim.part != part:
            part = claim.part
            body.append(f'<tr class="part"><th colspan="3" scope="colgroup">{html.escape(part)}</th></tr>')
        number = claim.chapter[:2].lstrip("0")
        body.append(
            f"<tr><td>{html.escape(claim.what)} <small>({html.escape(claim.source)})</small></td>"
            f"<td>{_sign(claim.status)}</td>"
            f"<td>{html.escape(claim.found)} "
            f'<a href="{claim.chapter}.html">Chapter&nbsp;{number}</a></td></tr>'
        )
    head = "<tr><th>The paper</th><th>Here</th><th>What this project found</th></tr>"
    read = ", ".join(html.escape(name) for name in evidence.files(folder)) or "nothing is recorded"
    return HTML(
        f'<div class="book-claims"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table>'
        f"<p><small>Read from <code>results/</code>: {read}.</small></p></div>"
    )


def figure(folder: Path = RESULTS) -> tuple[Figure, str]:
    """Draw each factor that the paper claims, and what this project has beside it."""
    modelled = [ratio for row in evidence.npu_speedups().values() for ratio in row]
    cards = evidence.volta_cards(folder)
    kernels = [
        (Status.MEASURED, f"{card.removeprefix('NVIDIA ')}, {name}", values)
        for (card, name), values in evidence.against_xformers(folder).items()
        if name in evidence.ATOMS and (name != "atom 70" or card in cards)
    ]
    offloading = [
        (Status.MEASURED, way, values) for way, values in evidence.against_classical(folder).items()
    ]
    rows: list[tuple[str, Sequence[float], list[tuple[Status, str, list[float]]]]] = [
        ("attention\non Ascend", (NPU,), [(Status.MODELLED, "an NPU", modelled)]),
        ("Llama-7B\non Ascend", (THROUGHPUT,), []),
        ("attention\non Volta", (VOLTA,), kernels),
        ("Pangu-38B\non Volta", (END_TO_END,), []),
        (
            "cooperation\non Volta",
            COOPERATION,
            [(Status.MODELLED, "8 V100s", evidence.modelled_gains()), *offloading],
        ),
    ]
    looks = {Status.MEASURED: ("o", BLUE), Status.MODELLED: ("s", ORANGE)}
    drawn, axes = plt.subplots(figsize=(4.8, 4.4), layout="constrained")
    said, place, ticks = [], 0.0, []
    for name, claimed, ours in rows:
        ticks.append(place)
        axes.plot(claimed, [place] * len(claimed), "-", color=INK, linewidth=1)
        axes.plot(claimed, [place] * len(claimed), "D", color=INK, markersize=7)
        line = f"{name}: claimed {' to '.join(f'{value:g}' for value in claimed)}".replace("\n", " ")
        if not ours:
            axes.text(claimed[-1] * 1.15, place, Status.UNCHECKED.word, va="center", fontsize=9)
            line += f", {Status.UNCHECKED.word}"
        for status, label, values in ours:
            low, high = min(values), max(values)
            marker, colour = looks[status]
            place += 0.7
            axes.plot([low, high], [place, place], f"{marker}-", color=colour, markersize=5, linewidth=3)
            if high > 10:  # no room to its right
                place += 0.45
                axes.text(low, place, f"{status.word}: {label}", va="center", fontsize=9)
            else:
                axes.text(high * 1.12, place, f"{status.word}: {label}", va="center", fontsize=9)
            line += f", {status.word} ({label}) {_range(values, 2)}"
        said.append(line)
        place += 1.1
    axes.axvline(1, color=INK, linewidth=0.6)
    axes.set(xscale="log", xlim=(0.9, 40), ylim=(place - 0.5, -0.7), xlabel="times as fast")
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.set_yticks(ticks, [name for name, _, _ in rows])
    axes.minorticks_off()
    axes.tick_params(axis="y", length=0)
    plt.close(drawn)
    return drawn, "The paper's factors, as diamonds, and this project's. " + "; ".join(said) + "."


def _sign(status: Status) -> str:
    return (
        f'<span class="status"><span aria-hidden="true">{status.shape}</span>&nbsp;'
        f"{status.word.replace(' ', '&nbsp;')}</span>"
    )


def _range(values: Iterable[float], digits: int = 1) -> str:
    known = list(values)
    low, high = (f"{bound:.{digits}f}" for bound in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:g} {unit}"
        count /= 1024
    return f"{count:g} TiB"
