"""Instruction set and threads: what is forced holds, what is missing is refused, what was set comes back."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import fastattention
from fastattention import config, cpu_kernels, gpu

ISAS = cpu_kernels.available_isas()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("FASTATTENTION_ISA", raising=False)
    for name in ("_forced_isa", "_isa", "_threads"):
        monkeypatch.setattr(config, name, None)


def recorded(monkeypatch):
    """Run one attention and return the keywords that reached the kernels."""
    seen = []
    real = cpu_kernels.attention

    def spy(*args, **kwargs):
        seen.append(kwargs)
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cpu_kernels, "attention", spy)
        q = np.ones((1, 1, 2, 8), np.float32)
        fastattention.attention(q, q, q)
    (kwargs,) = seen
    return kwargs


def test_the_fastest_is_chosen_by_itself(monkeypatch):
    assert fastattention.get_isa() == ISAS[-1]
    assert recorded(monkeypatch)["isa"] == ISAS[-1]


@pytest.mark.parametrize("isa", ISAS)
def test_a_forced_isa_is_what_runs(isa, monkeypatch):
    fastattention.set_isa(isa)
    assert fastattention.get_isa() == isa
    assert recorded(monkeypatch)["isa"] == isa
    fastattention.set_isa(None)
    assert recorded(monkeypatch)["isa"] == ISAS[-1]


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_names_one(isa, monkeypatch):
    monkeypatch.setenv("FASTATTENTION_ISA", isa)
    assert recorded(monkeypatch)["isa"] == isa
    fastattention.set_isa(ISAS[0])
    assert fastattention.get_isa() == ISAS[0]
    fastattention.set_isa(None)
    assert fastattention.get_isa() == isa


@pytest.mark.parametrize("wrong", ["avx1024", "", 7, "AVX2"])
def test_an_unknown_isa_is_refused_and_nothing_changes(wrong):
    fastattention.set_isa("baseline")
    with pytest.raises(ValueError, match=f"set_isa: {wrong!r}: no such instruction set; available: baseline"):
        fastattention.set_isa(wrong)
    assert fastattention.get_isa() == "baseline"


def test_an_isa_the_machine_lacks(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "available_isas", lambda: ("baseline",))
    lacking = cpu_kernels.ISAS[-1]
    with pytest.raises(
        ValueError, match=f"set_isa: '{lacking}': this machine or this build lacks it; available: base"
    ):
        fastattention.set_isa(lacking)


def test_a_bad_environment_fails_at_first_use_and_leaves_out_alone(monkeypatch):
    monkeypatch.setenv("FASTATTENTION_ISA", "sse9")
    q = np.ones((1, 1, 2, 8), np.float32)
    out = np.full_like(q, 42)
    message = "FASTATTENTION_ISA: 'sse9': no such instruction set; available: baseline"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            fastattention.attention(q, q, q, out=out)
    assert (out == 42).all()
    with pytest.raises(ValueError, match=message):
        fastattention.show_config()
    fastattention.attention(q, q, q, backend="reference")
    fastattention.set_isa("baseline")
    fastattention.attention(q, q, q, out=out)
    assert (out == 1).all()


def test_a_bad_environment_does_not_stop_the_import():
    environment = {**os.environ, "FASTATTENTION_ISA": "sse9"}
    subprocess.run([sys.executable, "-c", "import fastattention"], env=environment, check=True)


def test_threads(monkeypatch):
    default = cpu_kernels.max_threads()
    assert fastattention.num_threads() == default
    assert recorded(monkeypatch)["num_threads"] == default
    assert fastattention.num_threads(3) == 3
    assert fastattention.num_threads() == 3
    assert recorded(monkeypatch)["num_threads"] == 3
    with fastattention.num_threads(1) as count:
        assert count == 1
        assert recorded(monkeypatch)["num_threads"] == 1
        with fastattention.num_threads(None):
            assert fastattention.num_threads() == default
        assert fastattention.num_threads() == 1
    assert fastattention.num_threads() == 3
    with pytest.raises(RuntimeError), fastattention.num_threads(2):
        raise RuntimeError
    assert fastattention.num_threads() == 3
    assert fastattention.num_threads(None) == default


@pytest.mark.parametrize("wrong", [0, -1, 1025, 2**40, 1.0, "2", True])
def test_bad_thread_counts(wrong):
    fastattention.num_threads(2)
    with pytest.raises(ValueError, match="num_threads: expected an integer from 1 to 1024, got "):
        fastattention.num_threads(wrong)
    assert fastattention.num_threads() == 2


def test_omp_num_threads_is_honoured():
    code = "import fastattention; print(int(fastattention.num_threads()))"
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "3"


def test_show_config_prints_what_it_returns(monkeypatch, capsys):
    fastattention.num_threads(2)
    fastattention.set_isa("baseline")
    shown = fastattention.show_config()
    text = capsys.readouterr().out
    assert shown["isa"] == "baseline"
    assert shown["isas"] == ISAS
    assert shown["threads"] == 2
    assert shown["version"] == fastattention.__version__
    if why := gpu.why_not():
        assert shown["gpu"] is None
        assert f"gpu               none: {why}" in text
    else:
        assert shown["gpu"]["name"] in text
    assert "baseline (set_isa)" in text
    assert shown["compiler"] in text
    fastattention.set_isa(None)
    monkeypatch.setenv("FASTATTENTION_ISA", "baseline")
    config._isa = None
    fastattention.show_config()
    assert "baseline (FASTATTENTION_ISA)" in capsys.readouterr().out


def test_no_other_attribute_is_made_up():
    with pytest.raises(AttributeError, match="no attribute 'flash'"):
        _ = fastattention.flash
