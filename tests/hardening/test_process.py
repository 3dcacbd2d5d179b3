"""What happens to the process around a call: signals, forks, threads, too little memory, thousands of calls.

Each test has a process of its own, so that signals and limits do not reach pytest. A child prints what it
found; what it prints last is "well".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from fastattention import cpu_kernels

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, limits memory")

SETUP = """
import gc, os, resource, signal, sys, threading, time
import ml_dtypes
import numpy as np
import fastattention

rng = np.random.default_rng(0)

def arrays(*shape, dtype=np.float32, count=3):
    return tuple(rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(count))

def check(q, k, v, got, **options):
    wanted = fastattention.attention(q, k, v, backend="reference", **options)
    np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=1e-2, atol=1e-4)
"""


def start(program: str, **environment: str) -> subprocess.Popen[str]:
    """Start a program after SETUP in a fresh interpreter."""
    # Where memory is refused or threads meet, the GNU library reserves another 64 MiB to allocate from.
    env = os.environ | {"MALLOC_ARENA_MAX": "1"} | environment
    return subprocess.Popen(
        [sys.executable, "-c", SETUP + textwrap.dedent(program)], text=True, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(child: subprocess.Popen[str], timeout: float = 120) -> str:
    """Wait for a program's end, which must be a good one; return what it printed before "well"."""
    try:
        out, error = child.communicate(timeout=timeout)
    finally:
        child.kill()
    assert child.returncode == 0, f"exit code {child.returncode}\n{out}{error}"
    assert out.rstrip().endswith("well"), out + error
    return out


def run(program: str, **environment: str) -> str:
    return finish(start(program, **environment))


# --- Signals -----------------------------------------------------------------------------------------------

# Heads, queries and keys of minutes of work. All keys lie at one address, so that they take no memory.
LONG = {
    "many items": (4, 100_000, 100_000),
    "keys split among items": (1, 64, 1_000_000_000),
    "each item minutes long": (48, 64, 1_000_000_000),
}
DTYPES = {"baseline": "np.float32", "avx2": "np.float16", "avx512": "np.float32", "avx512_vnni": "np.float16",
          "avx512_bf16": "ml_dtypes.bfloat16", "amx": "ml_dtypes.bfloat16"}  # fmt: skip

INTERRUPTED = """
fastattention.set_isa({isa!r})
heads, q_len, k_len = {sizes}
q, k, v = (np.broadcast_to(row, (1, heads, length, 128))
           for row, length in zip(arrays(1, heads, 1, 128, dtype={dtype}), (q_len, k_len, k_len)))
small = arrays(2, 2, 90, 32)
print("begins", flush=True)
try:
    fastattention.attention(q, k, v, num_threads={threads})
except KeyboardInterrupt:
    print("stopped", flush=True)
else:
    sys.exit("it ended before it was stopped")
for threads in (1, 2):
    for _ in range(3):
        check(*small, fastattention.attention(*small, causal=True, num_threads=threads), causal=True)
print("well")
"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("isa", cpu_kernels.ISAS)
def test_ctrl_c_ends_a_long_call_within_a_second(isa: str, shape: str, threads: int) -> None:
    """And what is called next gives the right answer. One call alone would go on for far longer."""
    if isa not in cpu_kernels.available_isas():
        pytest.skip(f"this machine or this build lacks {isa}")
    program = INTERRUPTED.format(isa=isa, sizes=LONG[shape], dtype=DTYPES[isa], threads=threads)
    child = start(program)
    assert child.stdout is not None
    assert child.stdout.readline() == "begins\n"
    time.sleep(0.3)
    before = time.perf_counter()
    child.send_signal(signal.SIGINT)
    impatience = threading.Timer(20, child.kill)
    impatience.start()
    line = child.stdout.readline()
    took = time.perf_counter() - before
    impatience.cancel()
    finish(child)
    assert line == "stopped\n"
    assert took < 1, f"{took:.2f} s"


def test_a_handler_that_raises_nothing_stops_nothing() -> None:
    """It runs in the middle of a call, and may call attention itself; the result is right bit for bit."""
    run(
        """
        small = arrays(1, 2, 300, 64)
        q, k, v = arrays(1, 4, 6000, 64)
        answers = []
        def handler(number, frame):
            answers.append(fastattention.attention(*small, num_threads=2).tobytes())
        signal.signal(signal.SIGALRM, handler)
        for dtype in (np.float32, ml_dtypes.bfloat16):
            long = [x.astype(dtype) for x in (q, k, v)]
            for threads in (1, 2):
                signal.setitimer(signal.ITIMER_REAL, 0)
                quiet = fastattention.attention(*long, num_threads=threads).tobytes()
                signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
                seen = len(answers)
                assert fastattention.attention(*long, num_threads=threads).tobytes() == quiet
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(answers) > 4, len(answers)
        assert set(answers) == {fastattention.attention(*small, num_threads=2).tobytes()}
        print("well")
        """
    )


def test_what_a_handler_raises_comes_out_of_the_call() -> None:
    """As it was raised, be it no KeyboardInterrupt; also of a cache, and where lengths are packed."""
    run(
        """
        class Late(Exception):
            pass
        def handler(number, frame):
            raise Late("0.2 s are over")
        signal.signal(signal.SIGALRM, handler)
        q, k, v = arrays(1, 4, 40_000, 64)
        cache = fastattention.KVCache(1, 4, 64, dtype="int8", max_length=40_000, page_size=64)
        cache.append(k, v)
        starts = np.array([0, 10_000, 40_000])
        packed = [x[0].swapaxes(0, 1) for x in (q, k, v)]
        for call in (
            lambda: fastattention.attention(q, k, v, num_threads=2),
            lambda: cache.attend(q, num_threads=1),
            lambda: fastattention.attention_varlen(*packed, starts, starts, num_threads=2),
        ):
            before = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                call()
            except Late as late:
                assert str(late) == "0.2 s are over"
                assert time.perf_counter() - before < 1.2
            else:
                sys.exit("it ended before the alarm came")
        cache.truncate(100)
        got = cache.attend(q[:, :, :3])
        wanted = cache.attend(q[:, :, :3], backend="reference")
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
        print("well")
        """
    )


def test_ctrl_c_while_another_thread_computes() -> None:
    """The main thread is interrupted; the other one's call goes on and ends with the right result."""
    run(
        """
        q, k, v = arrays(1, 2, 5000, 64)
        wanted = fastattention.attention(q, k, v, num_threads=1).tobytes()
        got = []
        other = threading.Thread(
            target=lambda: got.extend(fastattention.attention(q, k, v, num_threads=2).tobytes() == wanted
                                      for _ in range(4)))
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        other.start(); timer.start()
        try:
            while True:
                fastattention.attention(q, k, v, num_threads=1)
        except KeyboardInterrupt:
            pass
        other.join()
        assert got == [True] * 4
        print("well")
        """
    )


def test_a_daemon_thread_in_a_call_does_not_hinder_the_end() -> None:
    run(
        """
        q, k, v = arrays(1, 8, 60_000, 64)
        threading.Thread(target=fastattention.attention, args=(q, k, v), kwargs={"num_threads": 2},
                         daemon=True).start()
        time.sleep(0.3)
        print("well")
        """
    )


# --- Forks and threads -------------------------------------------------------------------------------------


def test_ctrl_c_in_a_forked_child() -> None:
    """Where the parent had threads: the child computes in a thread of its own, and still heeds signals.

    So does a child that another thread than the main one forked, which is its main thread then.
    """
    run(
        """
        small = arrays(2, 4, 200, 64)
        expected = fastattention.attention(*small, num_threads=2).tobytes()
        long = arrays(1, 4, 60_000, 64)

        def child():
            code = 1
            try:
                timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
                timer.start()
                before = time.perf_counter()
                try:
                    fastattention.attention(*long, num_threads=2)
                    code = 2
                except KeyboardInterrupt:
                    code = 0 if time.perf_counter() - before < 1.3 else 3
                    if fastattention.attention(*small, num_threads=2).tobytes() != expected:
                        code = 4
            finally:
                os._exit(code)

        def fork():
            number = os.fork()
            if number == 0:
                child()
            codes.append(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))

        codes = []
        fork()
        thread = threading.Thread(target=fork)
        thread.start(); thread.join()
        assert codes == [0, 0], codes
        assert fastattention.attention(*small, num_threads=2).tobytes() == expected
        print("well")
        """
    )


def test_fork_while_other_threads_compute() -> None:
    """The child has none of them, and computes what they would have."""
    run(
        """
        q, k, v = arrays(2, 4, 300, 64)
        expected = fastattention.attention(q, k, v, num_threads=2).tobytes()
        cache = fastattention.KVCache(2, 4, 64, dtype=np.float16, max_length=300, page_size=16)
        cache.append(k, v)
        kept = cache.attend(q, num_threads=2).tobytes()
        over = threading.Event()
        wrong = []
        def work():
            while not over.is_set():
                if fastattention.attention(q, k, v, num_threads=2).tobytes() != expected:
                    wrong.append(1)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            number = os.fork()
            if number == 0:
                right = all(fastattention.attention(q, k, v, num_threads=n).tobytes() == expected
                            for n in (2, 1, 3))
                os._exit(0 if right and cache.attend(q, num_threads=2).tobytes() == kept else 5)
            assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
        over.set()
        for thread in threads:
            thread.join()
        assert not wrong
        print("well")
        """
    )


def test_multiprocessing_after_threads() -> None:
    """A pool of forked workers, as data loaders have them."""
    run(
        """
        import multiprocessing
        q, k, v = arrays(2, 4, 200, 64)
        expected = fastattention.attention(q, k, v, causal=True, num_threads=2)
        def work(turn):
            return fastattention.attention(q, k, v, causal=True, num_threads=1 + turn % 3).tobytes()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert set(pool.map(work, range(12))) == {expected.tobytes()}
        print("well")
        """
    )


def test_many_threads_at_once_and_gone_again() -> None:
    """Threads come and go, each with calls of its own; none is left behind, and each result is right."""
    run(
        """
        q, k, v = arrays(2, 4, 250, 64)
        expected = fastattention.attention(q, k, v, num_threads=1).tobytes()
        wrong = []
        def work(n):
            for turn in range(3):
                if fastattention.attention(q, k, v, num_threads=1 + (n + turn) % 3).tobytes() != expected:
                    wrong.append(n)
        for _ in range(6):
            threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong
        assert threading.active_count() == 1
        if os.path.exists("/proc/self/task"):
            deadline = time.monotonic() + 10
            while len(os.listdir("/proc/self/task")) > 4 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(os.listdir("/proc/self/task")) <= 4, os.listdir("/proc/self/task")
        print("well")
        """,
        OPENBLAS_NUM_THREADS="1",
    )


# --- Memory ------------------------------------------------------------------------------------------------

MEMORY = """
def used():
    gc.collect()
    with open("/proc/self/statm") as file:
        return [int(pages) * resource.getpagesize() for pages in file.read().split()[:2]]

def limit(room):
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used()[0] + room if room else hard, hard))

def refused(call):
    try:
        call()
    except MemoryError as error:
        assert error.__traceback__ is not None
        return True
    return False
"""


@LINUX
def test_no_room_for_the_result_or_the_workspace() -> None:
    """MemoryError, `out` untouched, nothing kept; smaller calls go on, and later the same one does."""
    run(
        MEMORY
        + textwrap.dedent("""
        small = arrays(1, 2, 64, 32)
        for threads in (1, 2):
            fastattention.attention(*small, num_threads=threads)  # the team's stacks are there
        # The output takes 512 MiB; the inputs are views of little memory.
        one = np.ones((1, 1, 1, 64), np.float32)
        wide = np.broadcast_to(one, (64, 16, 2048, 64))
        # A workspace of many items: 2**19 sequences of one query.
        many = np.broadcast_to(one, (2**19, 2, 1, 64))
        out = np.full(many.shape, 7, np.float32)
        limit(40 << 20)
        for turn in range(40):
            if turn == 10:  # what the allocators keep for later, they have by now
                before = used()
            assert refused(lambda: fastattention.attention(wide, wide, wide))
            assert refused(lambda: fastattention.attention(many, many, many, out=out, num_threads=2))
            assert out.min() == out.max() == 7
            check(*small, fastattention.attention(*small, num_threads=2))
        grown = [a - b for a, b in zip(used(), before)]
        assert max(grown) < 4 << 20, grown
        limit(None)
        fastattention.attention(many, many, many, out=out, num_threads=2)
        assert out.min() == out.max() == 1
        print("well")
        """)
    )


@LINUX
@pytest.mark.parametrize("page_size", [None, 64])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_room_for_a_cache_to_grow(dtype: str, page_size: int | None) -> None:
    """It is as it was before, and takes what there is room for."""
    run(
        MEMORY
        + textwrap.dedent(f"""
        cache = fastattention.KVCache(2, 8, 64, dtype={dtype!r}, max_length=10**6, page_size={page_size})
        k, v = arrays(2, 8, 3000, 64, count=2)
        q = rng.standard_normal((2, 8, 2, 64), np.float32)
        cache.append(k[:, :, :100], v[:, :, :100])
        """)
        + textwrap.dedent("""
        answer = cache.attend(q, num_threads=2)
        wide = np.broadcast_to(np.ones((1, 1, 1, 64), np.float32), (2, 8, 200_000, 64))
        limit(64 << 20)
        state, before = (cache.lengths.tolist(), cache.pages_in_use, cache.nbytes), used()
        for _ in range(20):
            assert refused(lambda: cache.append(wide, wide))
            assert refused(lambda: cache.reserve(900_000))
            assert (cache.lengths.tolist(), cache.pages_in_use, cache.nbytes) == state
            assert (cache.attend(q, num_threads=2) == answer).all()
        grown = [a - b for a, b in zip(used(), before)]
        assert max(grown) < 4 << 20, grown
        cache.append(k[:, :, 100:130], v[:, :, 100:130])
        limit(None)
        cache.append(k[:, :, 130:], v[:, :, 130:])
        assert cache.lengths.tolist() == [3000, 3000]
        wanted = cache.attend(q, backend="reference")
        np.testing.assert_allclose(cache.attend(q), wanted, rtol=1e-3, atol=1e-5)
        print("well")
        """)
    )


GROWTH = """
import pathlib
cache = fastattention.KVCache(2, 2, 32, dtype="int8", max_length=64, page_size=8)
one = rng.standard_normal((2, 2, 1, 32), np.float32)
q, k, v = arrays(2, 2, 24, 32)
half = [x.astype(ml_dtypes.bfloat16) for x in (q, k, v)]
starts = np.array([0, 9, 24])
mask = rng.random((24, 24)) < 0.7
out = np.empty_like(q)

def fails():
    try:
        fastattention.attention(q, k, v[:, :1])
    except ValueError:
        pass
    try:
        cache.append(one, one[..., :3])
    except ValueError:
        pass

def grows():
    cache.append(one, one)
    cache.attend(one, return_lse=True)
    if cache.lengths[0] > 60:
        cache.free(0)
        cache.truncate(3)

def parts():
    done = [fastattention.attention(q, k[:, :, a:b], v[:, :, a:b], return_lse=True)
            for a, b in ((0, 9), (9, 24))]
    fastattention.merge(done)

KINDS = {
    "attention": lambda: fastattention.attention(q, k, v, causal=True),
    "with options": lambda: fastattention.attention(
        q, k, v, mask=mask, sinks=np.zeros(2, np.float32), softcap=3.0, return_lse=True, out=out),
    "two threads, bfloat16": lambda: fastattention.attention(*half, num_threads=2),
    "varlen": lambda: fastattention.attention_varlen(
        q[0].swapaxes(0, 1), k[0].swapaxes(0, 1), v[0].swapaxes(0, 1), starts, starts),
    "copies": lambda: fastattention.attention(q[..., ::2], k[..., ::2], v[..., ::2]),
    "merge": parts,
    "cache": grows,
    "new cache": lambda: fastattention.KVCache(1, 1, 8, dtype=np.float16, max_length=8).append(
        one[:1, :1, :, :8], one[:1, :1, :, :8]),
    "explain": lambda: fastattention.explain(q, k, v),
    "errors": fails,
}

def state():
    gc.collect()
    return used()[1], len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

for call in KINDS.values():
    for _ in range(300):
        call()
for name, call in KINDS.items():
    before = state()
    for _ in range(10_000):
        call()
    after = state()
    print(name, [a - b for a, b in zip(after, before)])
    assert after[0] - before[0] < 1 << 20, (name, before, after)
    assert after[1:] == before[1:], (name, before, after)
print("well")
"""


@LINUX
def test_ten_thousand_calls_take_no_more_memory_than_a_few() -> None:
    """Nor files, nor threads: calls of each kind, failing ones too."""
    run(MEMORY + GROWTH)
