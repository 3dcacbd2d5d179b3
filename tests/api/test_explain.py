"""What explain says follows the shape, the machine and who asked."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fastattention
from fastattention import KVCache, cpu_kernels

L1, L2, _ = cpu_kernels.cache_bytes()
MIB = 2**20


def rows(length, head_dim=64, heads=1, dtype=np.float32, batch=1):
    """An array of any length in little memory."""
    return np.broadcast_to(np.zeros(head_dim, dtype), (batch, heads, length, head_dim))


@pytest.fixture(params=cpu_kernels.available_isas())
def isa(request):
    fastattention.set_isa(request.param)
    yield request.param
    fastattention.set_isa(None)


def test_decode_or_prefill(isa):
    k = rows(5000)
    assert fastattention.explain(rows(1), k, k).kernel == "decode"
    assert fastattention.explain(rows(1000), k, k, causal=True).kernel == "prefill"


def test_rows_of_all_heads_that_share_a_kv_head_count():
    k = rows(300)
    one, many = fastattention.explain(rows(1, heads=2), k, k), fastattention.explain(rows(1, heads=64), k, k)
    assert (one.kernel, one.item_rows) == ("decode", 2)
    assert many.kernel == "prefill"


@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_tiles_follow_the_shape_and_the_caches(isa, head_dim):
    q = rows(4096, head_dim, heads=8)
    plan = fastattention.explain(q, q, q, causal=True, num_threads=1)
    assert plan.item_rows % plan.sub_rows == 0
    assert plan.sub_rows % plan.lanes == 0 or plan.lanes % plan.sub_rows == 0
    if L1 and L2:
        assert (plan.l1_bytes, plan.l2_bytes) == (L1, L2)
    # Q^T and O^T of an item stay in L2, beside a tile of K and V.
    assert plan.item_rows * 2 * head_dim * 4 <= max(plan.l2_bytes / 2, plan.sub_rows * 2 * head_dim * 4)
    assert plan.key_tile >= 16
    short = fastattention.explain(q, q[:, :, :10], q[:, :, :10])
    assert short.key_tile <= 16
    small = fastattention.explain(q[:, :, :40], q, q)
    assert small.item_rows <= 2 * plan.sub_rows + 40


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_memory_a_thread_does_not_grow_with_the_length(isa, dtype):
    sizes = []
    for length in (8192, 131072):
        q = rows(length, 128, dtype=dtype)
        # One thread: with more, a short problem is cut finer, which takes less.
        plan = fastattention.explain(q, q, q, causal=True, num_threads=1)
        assert plan.thread_bytes < 4 * MIB
        sizes.append(plan.thread_bytes)
        assert plan.nbytes == plan.threads * plan.thread_bytes + plan.shared_bytes
    assert sizes[1] <= sizes[0] * 1.1  # items are even parts of the rows, so not all of one size


def test_keys_are_split_where_queries_give_too_little_work():
    k = rows(100_000)
    plan = fastattention.explain(rows(1), k, k, num_threads=4)
    assert plan.key_splits * plan.split_keys >= 100_000 > (plan.key_splits - 1) * plan.split_keys
    assert plan.key_splits > 4
    assert plan.items == plan.key_splits
    assert plan.threads == 4
    assert fastattention.explain(rows(1, batch=64), rows(500, batch=64), rows(500, batch=64)).key_splits == 1


def test_who_asked_for_the_instruction_set(monkeypatch):
    q = rows(500)
    fastattention.set_isa("baseline")
    assert fastattention.explain(q, q, q).isa == "baseline"
    assert fastattention.explain(q, q, q).reason == "asked for by set_isa"
    fastattention.set_isa(None)
    monkeypatch.delenv("FASTATTENTION_ISA", raising=False)
    monkeypatch.setattr("fastattention.config._isa", None)
    plan = fastattention.explain(q, q, q)
    assert plan.isa in cpu_kernels.available_isas()
    asked = fastattention.get_isa()
    if plan.isa == asked:
        assert plan.reason == "the fastest here"
    else:
        assert plan.reason == f"better at prefill of float32 than {asked}, the fastest here"
    monkeypatch.setenv("FASTATTENTION_ISA", "baseline")
    monkeypatch.setattr("fastattention.config._isa", None)
    assert fastattention.explain(q, q, q).reason == "asked for by FASTATTENTION_ISA"


def test_it_prints_as_a_table():
    q = rows(3000)
    plan = fastattention.explain(q, q, q, num_threads=1)
    lines = str(plan).splitlines()
    assert repr(plan) == str(plan)
    assert lines[0] == f"instruction set  {plan.isa} ({plan.reason})"
    assert f"tile             {plan.item_rows} query rows x {plan.key_tile} keys" in lines
    assert f"pieces of work   {plan.items} for 1 thread" in lines


def test_arguments_are_checked_and_nothing_is_written():
    q = np.ones((1, 2, 3, 8), np.float32)
    out = np.full_like(q, 42)
    fastattention.explain(q, q, q, out=out, return_lse=True)
    assert (out == 42).all()
    with pytest.raises(ValueError, match="k: expected q's head dimension 8"):
        fastattention.explain(q, q[..., :4], q)
    with pytest.raises(ValueError, match="backend: 'reference' runs no kernels"):
        fastattention.explain(q, q, q, backend="reference")
    with pytest.raises(TypeError, match="q: backend='gpu' needs arrays on a CUDA device"):
        fastattention.explain(q, q, q, backend="gpu")


def test_nothing_to_compute():
    q = np.ones((1, 2, 3, 8), np.float32)
    for plan in (
        fastattention.explain(q, q[:, :, :0], q[:, :, :0]),
        fastattention.explain(q[:, :, :0], q, q),
        KVCache(1, 2, 8, dtype="int8", max_length=9, page_size=8).explain(q),
    ):
        assert (plan.kernel, plan.items, plan.nbytes) == ("none", 0, 0)
        assert "no query, or no key" in str(plan)


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_of_a_cache(dtype, page_size):
    cache = KVCache(1, 2, 64, dtype=dtype, max_length=5000, page_size=page_size)
    k = rows(4000, heads=2)
    cache.append(k, k)
    plan = cache.explain(rows(1, heads=4))
    assert plan.kernel == "decode"
    assert plan.key_splits * plan.split_keys >= 4000
    assert cache.explain(rows(2000, heads=4)).kernel == "prefill"
    with pytest.raises(ValueError, match="q: expected shape"):
        cache.explain(rows(1, heads=4, batch=2))


def test_show_config_says_the_tiles(capsys):
    shown = fastattention.show_config()
    text = capsys.readouterr().out
    assert set(shown["tiles"]) == {64, 128}
    q = np.broadcast_to(np.zeros(64, np.float32), (1, 8, 4096, 64))
    plan = fastattention.explain(q, q, q, causal=True)
    assert shown["tiles"][64] == (plan.item_rows, plan.key_tile)
    assert f"D=64: {plan.item_rows} x {plan.key_tile}" in text
