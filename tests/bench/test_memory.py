"""The memory of a call is what the system counts, not only what the kernels plan."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

import fastattention
from fastattention.bench import memory
from fastattention.bench.cases import Case
from fastattention.bench.memory import MIB, Memory, measure_memory
from fastattention.bench.plan import Plan, explain

CASE = Case("memory", "float32", 4, 4, 4096, 4096, 64, causal=True)

linux = pytest.mark.skipif(not memory._STATUS.exists(), reason="this system has no /proc")


@linux
def test_a_call_takes_what_it_plans() -> None:
    isa = fastattention.get_isa()
    found = measure_memory(CASE, isa)
    plan = explain(CASE, isa)
    assert (found.thread_bytes, found.shared_bytes) == (plan.thread_bytes, plan.shared_bytes)
    assert found.measured_bytes is not None
    # Pages that the system counts late or a call does not touch, and some that Python takes.
    assert abs(found.measured_bytes - plan.thread_bytes - plan.shared_bytes) < MIB
    assert "peak RSS" in found.how


@linux
def test_a_forgotten_buffer_is_found() -> None:
    # What a call takes beside its workspace counts too: here 64 MiB that no plan knows of.
    code = (
        "import sys, numpy as np\n"
        "from fastattention.bench import memory\n"
        "from fastattention.bench.cases import Case\n"
        "plain = memory.attention\n"
        "def greedy(q, *rest, **options):\n"
        "    if q.shape[2] > 512: np.ones(16 * 2**20, np.float32)\n"
        "    return plain(q, *rest, **options)\n"
        "memory.attention = greedy\n"
        "print(memory.growth(Case('memory', 'float32', 4, 4, 4096, 4096, 64, causal=True)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 63 * MIB < int(done.stdout) < 68 * MIB


def test_a_window_that_changes_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "explain", lambda case, isa: Plan(isa, 1, 2 if case.window else 1, 0))
    with pytest.raises(RuntimeError, match="a window changes the plan"):
        measure_memory(CASE, "baseline")


@linux
def test_a_child_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="measuring the memory failed"):
        measure_memory(CASE, "baseline")


def test_without_proc_the_plan_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", memory.Path("/nowhere"))
    found = measure_memory(CASE, "baseline")
    assert found.measured_bytes is None
    assert "not measured" in found.how
    assert found.per_thread == found.planned_per_thread > 0


def test_threads_share_what_is_shared() -> None:
    found = Memory(replace(CASE, threads=4), 100, 400, 1000, "")
    assert found.planned_per_thread == 200
    assert found.per_thread == 250
