"""Offloading's arithmetic against enumeration: bytes counted in arrays, layers placed one by one, every split."""

from __future__ import annotations

import numpy as np
import pytest

from reference import offload
from reference.offload import Placement

SIZES = {"batch": 3, "q_heads": 8, "kv_heads": 2, "head_dim": 40, "v_dim": 24}


def nbytes(*shape: int, dtype: str = "float16") -> int:
    return np.empty(shape, dtype).nbytes


@pytest.mark.parametrize("tokens", [1, 17, 1000])
def test_cache_bytes_are_those_of_the_arrays(tokens):
    arrays = nbytes(3, 2, tokens, 40) + nbytes(3, 2, tokens, 24)
    assert offload.cache_bytes(3, tokens, 2, 40, 24, 2) == arrays
    integers = nbytes(3, 2, tokens, 40, dtype="int8") + nbytes(3, 2, tokens, 24, dtype="int8")
    scales = 2 * nbytes(3, 2, tokens, dtype="float32")
    assert offload.cache_bytes(3, tokens, 2, 40, 24, 1, scales=True) == integers + scales


@pytest.mark.parametrize("cpu_keys", [0, 250, 1000])
def test_traffic_is_what_the_arrays_hold(cpu_keys):
    """The keys are 1000: so many the CPU's, the others go up."""
    whole = offload.cache_bytes(3, 1000, 2, 40, 24, 2)
    found = offload.traffic(whole, itemsize=2, share=cpu_keys / 1000, **SIZES)
    q, rows = nbytes(3, 8, 1, 40), nbytes(3, 2, 1, 40) + nbytes(3, 2, 1, 24)
    up = nbytes(3, 2, 1000 - cpu_keys, 40) + nbytes(3, 2, 1000 - cpu_keys, 24)
    if cpu_keys == 1000:
        up += nbytes(3, 8, 1, 24)
    elif cpu_keys:
        up += nbytes(3, 8, 1, 24, dtype="float32") + nbytes(3, 8, 1, dtype="float32")
    assert found.down == rows + (q if cpu_keys else 0)
    assert found.up == up
    assert found.cpu == nbytes(3, 2, cpu_keys, 40) + nbytes(3, 2, cpu_keys, 24)
    assert found.host == whole + rows
    with pytest.raises(ValueError, match="share: expected 0 to 1"):
        offload.traffic(whole, itemsize=2, share=1.5, **SIZES)


def one_by_one(layers, cache, gpu, host):
    """Place layers on the GPU while they fit, then in host memory."""
    on_gpu = in_host = 0
    if gpu < 0:
        return None
    for _ in range(layers):
        if gpu >= cache:
            gpu, on_gpu = gpu - cache, on_gpu + 1
        elif host >= cache:
            host, in_host = host - cache, in_host + 1
        else:
            return None
    return Placement(on_gpu, in_host, gpu, host)


def test_place_and_largest_context_by_enumeration():
    for layers in (1, 2, 7):
        for gpu in (-1, 0, 9, 10, 100, 333):
            for host in (0, 50, 77, 1000):
                fits = []
                for tokens in range(1, 400):
                    found = offload.place(layers, 3 * tokens, gpu + 20, 20, host + 5, 5)
                    assert found == one_by_one(layers, 3 * tokens, gpu, host)
                    fits.append(found is not None)
                # Whatever fits, less fits, too; what is asked for is the last that does.
                assert fits == sorted(fits, reverse=True)
                longest = offload.largest_context(layers, 3, gpu + 20, 20, host + 5, 5)
                assert longest == sum(fits) or (all(fits) and longest >= len(fits))


def seconds_of_split(share, cache, bus, cpu, host_bandwidth):
    """A layer, both sides reading at once and sharing the host's memory in proportion to what they could do."""
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


RATES = {"gpu": 800.0, "bus": 12.0, "cpu": 24.0, "host_bandwidth": 100.0}


def simulate(placement, gpu_layer, cache, way, gpu, bus, cpu, host_bandwidth, steps=200_000):
    """Layers one after another in small steps of time: the bus runs ahead of them, the CPU cannot."""
    work = (placement.gpu_layers + placement.host_layers) * gpu_layer + placement.gpu_layers * cache / gpu
    ahead = work / placement.host_layers
    now = 0.0
    for _ in range(placement.host_layers):
        arrived = min(cache, ahead * bus)
        now += ahead
        share = (cache - arrived) / cache
        if way == "cooperative":
            now += cache / cpu
        else:
            slower = min(1, host_bandwidth / (bus + cpu))
            now += share * cache / ((bus + cpu) * slower)
    return now


@pytest.mark.parametrize("way", ["cooperative", "split"])
def test_token_time(way):
    placement = Placement(10, 6, 0, 0)
    found = offload.token_time(placement, 0.5, 30.0, way=way, **RATES)
    assert found == pytest.approx(simulate(placement, 0.5, 30.0, way, **RATES))
    assert offload.token_time(placement, 0.5, 30.0, way=way, latency=0.25, **RATES) == pytest.approx(
        found + 6 * 0.25
    )


def test_classical_is_bound_by_the_bus_or_by_the_gpu():
    placement = Placement(10, 6, 0, 0)
    assert offload.token_time(placement, 0.01, 30.0, way="classical", **RATES) == 6 * 30 / 12
    slow = offload.token_time(placement, 5.0, 30.0, way="classical", **RATES)
    assert slow == pytest.approx(16 * 5 + 16 * 30 / 800)


def test_each_way_is_at_least_as_fast_as_the_last():
    for gpu_layer in (0.0, 0.1, 1.0):
        times = [
            offload.token_time(Placement(4, 28, 0, 0), gpu_layer, 30.0, way=way, **RATES)
            for way in ("classical", "cooperative", "split")
        ]
        assert times[2] <= times[1]
        if gpu_layer == 0:
            assert times == sorted(times, reverse=True)
            assert times[0] / times[1] == pytest.approx(24 / 12, rel=0.01)  # r
    with pytest.raises(ValueError, match="way: expected"):
        offload.token_time(Placement(4, 28, 0, 0), 1, 30.0, way="magic", **RATES)


def test_all_on_the_gpu_needs_no_way():
    assert offload.token_time(Placement(4, 0, 0, 0), 1.0, 80.0, way="classical", **RATES) == pytest.approx(
        4.4
    )
