"""Threads: their number changes nothing, they may come from anywhere, and a fork survives them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastattention

from .cases import Case, Sizes, options, solved
from .conftest import Engine, check

# Large enough that the driver starts a team: several million multiply-adds.
PREFILL = Case("threads, prefill", Sizes(2, 4, 2, 180, 400, 64, 64), options(causal=True))
SPLIT = Case("threads, split prefill", Sizes(1, 1, 1, 40, 2500, 64, 64), options(causal=True))
DECODE = Case("threads, decode", Sizes(2, 8, 2, 1, 3000, 64, 64), options(kv_lengths=(2500, 3000)))
# The first visible key moves with the query: tiles of keys must not begin where a thread's rows happen to.
WINDOW = Case("threads, window", Sizes(2, 4, 4, 700, 700, 64, 64), options(window=(150, 3)))
CASES = (PREFILL, SPLIT, DECODE, WINDOW)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_any_number_gives_the_same_bits(case: Case, dtype: str, cpu_engine: Engine) -> None:
    problem, expected = solved(case, dtype, cpu_engine.accumulation)
    out, lse = cpu_engine.attention(problem, num_threads=1)
    check(out, lse, expected)
    for threads in (2, 3, 4, 16):
        same_out, same_lse = cpu_engine.attention(problem, num_threads=threads)
        assert same_out.tobytes() == out.tobytes()
        assert same_lse.tobytes() == lse.tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_again_gives_the_same_bits(case: Case, cpu_engine: Engine) -> None:
    problem, _ = solved(case, "float32", "float32")
    first = cpu_engine.attention(problem, num_threads=2)[0].tobytes()
    for _ in range(5):
        assert cpu_engine.attention(problem, num_threads=2)[0].tobytes() == first


@pytest.mark.parametrize("inner", [1, 2])
def test_called_from_several_threads_at_once(inner: int, cpu_engine: Engine) -> None:
    """Each caller gets its own answer: no workspace is shared."""
    problems = [solved(case, "float32", "float32") for case in CASES]
    whole = [cpu_engine.attention(problem, num_threads=1)[0].tobytes() for problem, _ in problems]
    start = threading.Barrier(4)

    def work(worker: int) -> None:
        start.wait()
        for turn in range(6):
            which = (worker + turn) % len(problems)
            problem, expected = problems[which]
            out, lse = cpu_engine.attention(problem, num_threads=inner)
            check(out, lse, expected)
            assert out.tobytes() == whole[which]

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, worker) for worker in range(4)]:
            future.result(timeout=60)


def test_python_goes_on_meanwhile() -> None:
    """The kernels release the interpreter's lock: other Python threads get their turns during a long call."""
    problem = Case("long", Sizes(1, 4, 4, 1500, 1500, 64, 64)).problem("float32")
    ended = threading.Event()

    def work() -> None:
        Engine("cpu").attention(problem, num_threads=1)
        ended.set()

    Engine("cpu").attention(Case("warm", Sizes()).problem("float32"))
    worker = threading.Thread(target=work)
    turns, longest, before = 0, 0.0, time.perf_counter()
    begin = before
    worker.start()
    while not ended.is_set():
        time.sleep(0.0005)
        now = time.perf_counter()
        turns, longest, before = turns + 1, max(longest, now - before), now
    worker.join()
    whole = before - begin
    # Holding the lock, the call would be one single gap as long as itself.
    assert turns >= 4, f"{turns} turns in {whole:.3f} s"
    assert longest < 0.8 * whole, f"a gap of {longest:.3f} s in {whole:.3f} s"


_FORK = """
import os
import numpy as np
import fastattention

def same(threads):
    out = fastattention.attention(q, k, v, causal=True, num_threads=threads)
    return out.tobytes() == expected.tobytes()

rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 2, 4, 200, 64)).astype(np.float32)
expected = fastattention.attention(q, k, v, causal=True, num_threads={before})
for generation in range({generations}):
    if child := os.fork():
        right = same({before})
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if right else 4)
    if not all(same({after}) for _ in range(3)):
        os._exit(3)
os._exit(0)
"""


@pytest.mark.parametrize("generations", [1, 2])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (2, 4)])
def test_fork_after_a_parallel_region(before: int, after: int, generations: int) -> None:
    """A forked child computes with threads of its own; with OpenMP's inherited team it would hang.

    So does the child's child, and the parent goes on. Exit code 3: a child's result is wrong; 4: a parent's.
    """
    _run(_FORK.format(before=before, after=after, generations=generations))


def _run(script: str) -> None:
    """Run a script in a fresh interpreter, which must end well and in time."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


def test_setting_the_number() -> None:
    """The setting reaches the calls, and a call's own number goes before it."""
    problem, expected = solved(PREFILL, "float32", "float32")
    for count in (1, 2):
        with fastattention.num_threads(count):
            assert fastattention.num_threads() == count
            check(*Engine("cpu").attention(problem), expected)
            check(*Engine("cpu").attention(problem, num_threads=3), expected)


def test_more_threads_than_work() -> None:
    case = Case("tiny", Sizes(1, 1, 1, 2, 3, 4, 5))
    problem, expected = solved(case, "float32", "float32")
    check(*Engine("cpu").attention(problem, num_threads=64), expected)
    assert np.isfinite(expected.out).all()
