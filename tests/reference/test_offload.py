"""Offloading's arithmetic against enumeration: bytes of arrays, layers placed one by one, every split."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reference import offload
from reference.offload import Placement

SIZES = {"batch": 3, "q_heads": 8, "kv_heads": 2, "head_dim": 40, "v_dim": 24}


def nbytes(*shape: int, dtype: str = "float16") -> int:
    return np.empty(shape, dtype).nbytes


@pytest.mark.parametrize(("gated", "tied"), list(itertools.product((True, False), repeat=2)))
def test_parameters_are_those_of_the_matrices(gated, tied):
    hidden, ff, vocab, layers = 24, 50, 100, 3
    layer = [np.empty((hidden, n * 8)) for n in (4, 2, 2)] + [np.empty((4 * 8, hidden))]
    layer += (
        [np.empty((hidden, ff))] * (2 if gated else 1) + [np.empty((ff, hidden))] + [np.empty(hidden)] * 2
    )
    found = offload.layer_parameters(hidden, ff, 4, 2, 8, gated=gated)
    assert found == sum(x.size for x in layer)
    model = layers * found + vocab * hidden + (0 if tied else vocab * hidden) + hidden
    assert offload.parameters(layers, found, hidden, vocab, tied=tied) == model


@pytest.mark.parametrize("tokens", [1, 17, 1000])
def test_cache_bytes_are_those_of_the_arrays(tokens):
    arrays = nbytes(3, 2, tokens, 40) + nbytes(3, 2, tokens, 24)
    assert offload.cache_bytes(3, tokens, 2, 40, 24, 2) == arrays
    integers = nbytes(3, 2, tokens, 40, dtype="int8") + nbytes(3, 2, tokens, 24, dtype="int8")
    scales = 2 * nbytes(3, 2, tokens, dtype="float32")
    assert offload.cache_bytes(3, tokens, 2, 40, 24, 1, scales=True) == integers + scales


def test_staging_bytes_are_those_of_the_arrays():
    batch, kv_heads, dim, q_heads, chunk, slots, piece = 3, 2, 40, 8, 7, 4, 11
    arrays = slots * 2 * nbytes(batch, kv_heads, piece + 1, dim) + 2 * 2 * nbytes(batch, kv_heads, chunk, dim)
    arrays += nbytes(batch, chunk, q_heads, dim) + nbytes(batch, chunk, q_heads, dim, dtype="float32")
    arrays += 2 * nbytes(batch, q_heads, chunk, dtype="float32")
    token = offload.cache_bytes(batch, 1, kv_heads, dim, dim, 2)
    found = offload.staging_bytes(token, batch, q_heads, dim, 2, chunk=chunk, slots=slots, slot_tokens=piece)
    assert found == arrays


@pytest.mark.parametrize("cpu_keys", [0, 250, 1000])
def test_traffic_is_what_the_arrays_hold(cpu_keys):
    """The keys are 1000: so many the CPU's, the others go up."""
    whole = offload.cache_bytes(3, 1000, 2, 40, 24, 2)
    found = offload.traffic(whole, itemsize=2, share=cpu_keys / 1000, **SIZES)
    q, rows = nbytes(3, 8, 1, 40), nbytes(3, 2, 1, 40) + nbytes(3, 2, 1, 24)
    up = nbytes(3, 2, 1000 - cpu_keys, 40) + nbytes(3, 2, 1000 - cpu_keys, 24)
    if cpu_keys:
        up += nbytes(3, 8, 1, 24)
    if 0 < cpu_keys < 1000:
        up += nbytes(3, 8, 1, dtype="float32")
    assert found.down == rows + (q if cpu_keys else 0)
    assert found.up == up
    assert found.cpu == nbytes(3, 2, cpu_keys, 40) + nbytes(3, 2, cpu_keys, 24)
    assert found.host == whole + rows
    with pytest.raises(ValueError, match="share: expected 0 to 1"):
        offload.traffic(whole, itemsize=2, share=1.5, **SIZES)


def one_by_one(layers, cache, gpu, host, staging, most):
    """Try numbers of layers on the GPU from all to none; the first that has room there and in host memory."""
    for on_gpu in range(min(layers, most), -1, -1):
        in_host = layers - on_gpu
        left = gpu - on_gpu * cache - (staging if in_host else 0)
        if left >= 0:
            return (
                Placement(on_gpu, in_host, left, host - in_host * cache) if host >= in_host * cache else None
            )
    return None


@pytest.mark.parametrize("staging", [0, 11])
@pytest.mark.parametrize("most", [None, 0, 2])
def test_place_and_largest_context_by_enumeration(staging, most):
    for layers in (1, 2, 7):
        for gpu in (-1, 0, 9, 10, 100, 333):
            for host in (0, 50, 77, 1000):
                fits = []
                given = {"staging": staging, "most_gpu_layers": most}
                for tokens in range(1, 400):
                    found = offload.place(layers, 3 * tokens, gpu + 20, 20, host, **given)
                    limit = layers if most is None else most
                    assert found == one_by_one(layers, 3 * tokens, gpu, host, staging, limit)
                    fits.append(found is not None)
                # Whatever fits, less fits, too; what is asked for is the last that does.
                assert fits == sorted(fits, reverse=True)
                longest = offload.largest_context(layers, 3, gpu + 20, 20, host, **given)
                assert longest == sum(fits) or (all(fits) and longest >= len(fits))


def test_host_layers_are_spread_evenly():
    for layers in (1, 5, 32):
        for count in range(layers + 1):
            found = offload.spread(layers, count)
            assert sum(found) == count
            assert found[-1] == (count > 0)
            places = [-1, *(i for i, in_host in enumerate(found) if in_host)]
            gaps = np.diff(places)
            if count:
                assert gaps.max() - gaps.min() <= 1


def seconds_of_split(share, cache, bus, cpu, host_bandwidth):
    """A layer, both sides reading at once: they share the host's memory in proportion to what each could."""
    slower = min(1, host_bandwidth / (bus + cpu)) if 0 < share < 1 else 1
    return (
        max(share * cache / min(cpu, host_bandwidth), (1 - share) * cache / min(bus, host_bandwidth)) / slower
    )


@pytest.mark.parametrize(
    ("bus", "cpu", "most"), [(12, 24.5, 200), (54, 108, 122), (54, 20, 1000), (50, 50, 60)]
)
def test_no_split_is_faster(bus, cpu, most):
    best = offload.split(bus, cpu, most)
    fastest = min(seconds_of_split(f, 1.0, bus, cpu, most) for f in np.linspace(0, 1, 2001))
    assert seconds_of_split(best.share, 1.0, bus, cpu, most) == pytest.approx(1 / best.bandwidth)
    assert 1 / best.bandwidth == pytest.approx(fastest, rel=2e-3)


def test_what_is_no_bandwidth():
    with pytest.raises(ValueError, match=r"cpu: expected bytes a second above 0, got 0"):
        offload.split(1, 0, 1)
