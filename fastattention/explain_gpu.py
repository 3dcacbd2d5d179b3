"""What a call on a GPU would do: which kernel, in which arrangement, in how many parts."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from . import gpu
from .table import kib, table

__all__ = ["GpuExplanation", "nothing", "of_call"]


@dataclass(frozen=True, slots=True, repr=False)
class GpuExplanation:
    """The plan of one call on a GPU; it prints as a table.

    Attributes
    ----------
    device : str
        The GPU's name.
    atom : int
        The generation whose kernels run: 70 (Volta), 75 (Turing) or 80 (Ampere and later).
    reason : str
        Why that one.
    kernel : str
        "decode": bound by reading K and V; "prefill": bound by arithmetic; "none": nothing to compute.
    file : str
        The kernel's source, in ``fastattention/gpu/kernels``.
    why : str
        Why that kernel.
    macros : dict
        What it is compiled with.
    item_rows, key_tile : int
        Query rows that a CTA (thread block) takes, in decode of all heads that share a KV head, and keys that
        it works on at a time.
    key_splits, split_keys : int
        Into how many parts the keys are split, and how many keys each has at most.
    items, launches : int
        CTAs in all, and how many launches they need.
    warps, registers : int
        Warps of a CTA, and registers of a thread.
    block_bytes : int
        Shared memory of a CTA.
    resident, sms : int
        CTAs that a multiprocessor holds at a time, and the multiprocessors.
    shared_bytes : int
        Device memory beyond inputs and outputs, for the parts of split keys.
    """

    device: str
    atom: int
    reason: str
    kernel: str
    file: str = ""
    why: str = ""
    macros: dict[str, str] | None = None
    item_rows: int = 0
    key_tile: int = 0
    key_splits: int = 0
    split_keys: int = 0
    items: int = 0
    launches: int = 0
    warps: int = 0
    registers: int = 0
    block_bytes: int = 0
    resident: int = 0
    sms: int = 0
    shared_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Device memory beyond inputs and outputs, in bytes; that of the multiprocessors is not counted."""
        return self.shared_bytes

    def __repr__(self) -> str:
        lines = [("kernels of", f"{_NAMES[self.atom]} ({self.reason}) on {self.device}")]
        if self.kernel == "none":
            return table([*lines, ("kernel", "none (no query, or no key)")])
        several = f" in {self.launches} launches" if self.launches > 1 else ""
        lines += [
            ("kernel", f"{self.kernel} ({self.why})"),
            ("source", f"{self.file}, {', '.join(f'{k}={v}' for k, v in (self.macros or {}).items())}"),
            ("tile", f"{self.item_rows} query rows x {self.key_tile} keys"),
            (
                "block",
                f"{self.warps} warps, {self.registers} registers a thread, {kib(self.block_bytes)} shared",
            ),
            ("keys split in", f"{self.key_splits} x {self.split_keys}" if self.key_splits > 1 else "1"),
            ("pieces of work", f"{self.items} blocks for {self.sms} x {self.resident} at a time{several}"),
            ("memory", kib(self.shared_bytes)),
        ]
        return table(lines)


_NAMES = {70: "Volta", 75: "Turing", 80: "Ampere"}


def nothing(number: int) -> GpuExplanation:
    """Return the plan of a call without a query or a key on a device."""
    here = gpu.card(number)
    atom = gpu.get_atom(number)
    return GpuExplanation(here.name, atom, _reason(here, atom), "none")


def _reason(here: gpu.Card, atom: int) -> str:
    if gpu.forced_atom() is not None:
        return "asked for by set_gpu_atom"
    major, minor = here.capability
    return f"the newest for compute capability {major}.{minor}"


def of_call(found: gpu.Explained, *, rows: int, kv_dtype: str, q_dtype: str, paged: bool) -> GpuExplanation:
    """Return a plan in words.

    Parameters
    ----------
    found : gpu.Explained
    rows : int
        Query rows of a KV head.
    kv_dtype, q_dtype : str
    paged : bool
        Keys and values lie in pages.
    """
    c, here = found.configuration, found.card
    macros = dict(c.macros)
    if c.entry == "decode":
        cores = "CUDA cores" if macros.get("ATOM") == "70" else "tensor cores"
        few = f"{rows} query rows of a KV head: bound by reading K and V"
        if rows > gpu.DECODE_ROWS:
            what = "pages" if paged else f"{q_dtype} queries on {kv_dtype}"
            few = f"{rows} query rows of a KV head; prefill's kernels do not take {what}"
        why = f"{few}; {cores}"
    else:
        cores = "CUDA cores, for float32" if q_dtype == "float32" else "tensor cores"
        why = f"{rows} query rows of a KV head: bound by arithmetic; {cores}"
    first = found.launches[0]
    return GpuExplanation(
        here.name, found.atom, _reason(here, found.atom), "decode" if c.entry == "decode" else "prefill",
        c.file, why, macros, c.rows, c.step, first.splits, first.split_keys,
        sum(prod(launch.grid) for launch in found.launches), len(found.launches), c.threads // 32,
        found.registers, first.shared, first.resident, here.sms,
        max(launch.workspace for launch in found.launches),
    )  # fmt: skip
