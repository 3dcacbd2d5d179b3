"""Threads that compute for minutes, each result checked: ``make soak`` runs it.

Every thread draws problems of its own, all options, layouts and types at once. A problem is computed several
times, with different numbers of threads, while the others compute theirs: the first result is held to the
float64 specification, the others are the same bit for bit. Every other turn, a thread does something to its
caches, and compares what they hold and how they attend with plain arrays. The threads of the first seconds
end, then others run until the time is over: memory, files and threads of the process must be afterwards what
they were in between.

    python -m tests.soak [--seconds 300] [--threads 8] [--seed 0] [--isa amx] [--record]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import fastattention
from fastattention import KVCache, cpu_kernels
from fastattention.bench.environment import describe

from .conftest import Engine, check
from .hardening.oracle import KEPT, denormals_lost, expected, meant, query_dtypes, rounded
from .test_random import draw
from .tolerances import DTYPES

ROOT = Path(__file__).resolve().parents[1]
BATCH, MOST = 2, 300
WARM = 10  # seconds, or a fifth of the run: until then, pools and caches take what they keep
GROWTH = 16 << 20  # bytes: what the interpreter and its allocators may still take after that
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of the GNU library's malloc.h


class Kept:
    """A cache, and arrays that say what it must hold."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.kept = str(rng.choice(KEPT))
        self.kv_heads, self.group = int(rng.integers(1, 3)), int(rng.integers(1, 5))
        self.dims = [int(x) for x in rng.choice([8, 20, 64, 128], 2)]
        page_size = [None, 8, 64][rng.integers(3)]
        self.cache = KVCache(
            BATCH, self.kv_heads, self.dims[0], dtype=DTYPES.get(self.kept, self.kept), v_dim=self.dims[1],
            max_length=MOST, page_size=page_size,
        )  # fmt: skip
        self.rows = [[np.zeros((self.kv_heads, 0, dim)) for _ in range(BATCH)] for dim in self.dims]

    def lengths(self) -> np.ndarray:
        return np.array([rows.shape[1] for rows in self.rows[0]])

    def append(self) -> None:
        room = MOST - int(self.lengths().max())
        width = int(self.rng.integers(0, min(room, int(self.rng.choice([1, 40, MOST]))) + 1))
        counts = self.rng.integers(0, width + 1, BATCH) if self.rng.random() < 0.5 else np.full(BATCH, width)
        new = [self.rng.standard_normal((BATCH, self.kv_heads, width, dim), np.float32) for dim in self.dims]
        self.cache.append(*new, counts)
        for x, lists in zip(new, self.rows, strict=True):
            for b, n in enumerate(counts.tolist()):
                own = meant(rounded(x[b, :, :n], self.kept)).astype(np.float64)
                lists[b] = np.concatenate((lists[b], own), axis=1)

    def shorten(self) -> None:
        if self.rng.random() < 0.5:
            b = int(self.rng.integers(BATCH))
            self.cache.free(b)
            for lists in self.rows:
                lists[b] = lists[b][:, :0]
        else:
            keep = int(self.rng.integers(0, MOST))
            self.cache.truncate(keep)
            self.rows = [[rows[:, :keep] for rows in lists] for lists in self.rows]

    def attend(self) -> None:
        dtypes = query_dtypes(self.kept)
        shape = (BATCH, self.group * self.kv_heads, int(self.rng.choice([1, 1, 3, 30])), self.dims[0])
        q = self.rng.standard_normal(shape).astype(DTYPES[dtypes[self.rng.integers(len(dtypes))]])
        lengths = self.lengths()
        padded = []
        for lists, dim in zip(self.rows, self.dims, strict=True):
            x = np.zeros((BATCH, self.kv_heads, int(lengths.max()), dim))
            for b, rows in enumerate(lists):
                x[b, :, : rows.shape[1]] = rows
            padded.append(x)
        options: dict[str, Any] = {"causal": True, "window": (int(self.rng.integers(1, MOST)), None)}
        wanted = expected(q, *padded, self.kept, {**options, "kv_lengths": lengths})
        count = 1 + int(self.rng.integers(3))
        check(*self.cache.attend(q, **options, return_lse=True, num_threads=count), wanted)


class Worker(threading.Thread):
    """One thread's turns until the time is over, or something is wrong."""

    def __init__(self, seed: int, until: float, over: threading.Event) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.until, self.over = until, over
        self.counts: Counter[str] = Counter()
        self.failure: str | None = None
        self.caches: list[Kept] = []
        self.engine = Engine("cpu", fastattention.get_isa())

    def run(self) -> None:
        try:
            while time.monotonic() < self.until and not self.over.is_set():
                self.attention()
                self.cache()
        except BaseException:
            self.failure = traceback.format_exc()
            self.over.set()

    def attention(self) -> None:
        seed = int(self.rng.integers(2**62))
        # Past its little memory of problems, which the threads would drive each other out of.
        problem, answer, text = draw.__wrapped__(seed, self.engine.accumulation)
        try:
            first = self.engine.attention(problem, num_threads=1)
            check(*first, denormals_lost(answer, problem.v))
            for count in self.rng.integers(1, 5, 4).tolist():
                again = self.engine.attention(problem, num_threads=count)
                if any(a.tobytes() != b.tobytes() for a, b in zip(first, again, strict=True)):
                    raise AssertionError(f"{count} threads give other bits")
        except Exception as error:
            raise AssertionError(f"attention, seed {seed}: {text}") from error
        self.counts["attention calls"] += 5
        self.counts["attention results checked"] += 1

    def cache(self) -> None:
        if len(self.caches) < 3 or self.rng.random() < 0.05:
            self.caches = [*self.caches[-2:], Kept(self.rng)]
            self.counts["caches made"] += 1
        kept = self.caches[self.rng.integers(len(self.caches))]
        for what in self.rng.choice(["append", "append", "append", "shorten"], 2).tolist():
            getattr(kept, what)()
            self.counts[f"cache: {what}"] += 1
        kept.attend()
        self.counts["cache: attend, checked"] += 1
        if kept.cache.lengths.tolist() != kept.lengths().tolist():
            raise AssertionError(f"lengths {kept.cache.lengths}, expected {kept.lengths()}")


def return_what_is_freed() -> None:
    """Have the GNU library give every array back to the system once it is freed.

    It otherwise keeps what eight threads freed in pools of theirs, hundreds of MiB that come and go by
    chance, beside which nothing that leaks would be seen.
    """
    with contextlib.suppress(AttributeError):  # another C library: it may keep more
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)


def held() -> dict[str, int]:
    """Return what the process holds now: resident bytes, files, threads. Empty where Linux does not say."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    process = Path("/proc/self")
    if not (process / "statm").exists():
        return {}
    pages = int((process / "statm").read_text().split()[1])
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGESIZE"),
        "files": len(os.listdir(process / "fd")),
        "threads": len(os.listdir(process / "task")),
    }


def kept_too_much(early: dict[str, int], late: dict[str, int]) -> list[str]:
    """Say what a process holds more of than before: more than `GROWTH` bytes, a file, a thread."""
    allowed = {"resident_bytes": GROWTH, "files": 0, "threads": 0}
    return [
        f"{name.replace('_', ' ')}: {early[name]:,} before, {late[name]:,} after"
        for name, more in allowed.items()
        if late.get(name, 0) > early.get(name, 0) + more
    ]


def run_threads(start: float, seconds: float, threads: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Start threads that compute until `seconds` after `start`; return what they did and what went wrong."""
    over = threading.Event()
    workers = [Worker(1000 * seed + n, start + seconds, over) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(10)
            done = sum((w.counts["attention results checked"] for w in workers), 0)
            print(f"{time.monotonic() - start:5.0f} s  {done} problems checked", flush=True)
    counts: Counter[str] = sum((worker.counts for worker in workers), Counter())
    return counts, [worker.failure for worker in workers if worker.failure]


def soak(seconds: float, threads: int, seed: int) -> dict[str, Any]:
    """Run the threads; return what they did, what went wrong, and what the process held."""
    start = time.monotonic()
    return_what_is_freed()
    counts, failures = run_threads(start, min(WARM, seconds / 5), threads, 2 * seed)
    early = held()
    if not failures:
        more, failures = run_threads(start, seconds, threads, 2 * seed + 1)
        counts += more
    late = held()
    if not failures:  # what went wrong holds on to its arrays by its traceback
        failures = kept_too_much(early, late)
    return {
        "seconds": round(time.monotonic() - start, 1),
        "threads": threads,
        "seed": seed,
        "counts": dict(counts),
        "failures": failures,
        "held_early": early,
        "held_late": late,
    }


def main() -> int:
    """Soak, print, and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="how long (default 300)")
    parser.add_argument("--threads", type=int, default=8, help="how many at once (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--isa", choices=cpu_kernels.available_isas(), help="instruction set")
    parser.add_argument("--record", action="store_true", help="write results/soak-<date>.json")
    args = parser.parse_args()
    fastattention.set_isa(args.isa)
    result = soak(args.seconds, args.threads, args.seed)
    for name, count in sorted(result["counts"].items()):
        print(f"{count:9} {name}")
    for failure in result["failures"]:
        print(failure)
    print("early:", result["held_early"], "late:", result["held_late"])
    if args.record:
        now = datetime.now(UTC)
        content = {
            "schema": "soak-1",
            "date": now.isoformat(timespec="seconds"),
            "environment": describe(fastattention.get_isa()),
            **result,
        }
        path = ROOT / "results" / f"soak-{now.date()}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print("Wrote", path)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
