"""What is launched: CuPy arrays over addresses that nobody reads, no device, a kernel that takes notes.

Nothing is computed here; numbers are tested by the shared cases, on a GPU.
"""

from __future__ import annotations

import ctypes
import types

import ml_dtypes
import numpy as np
import pytest
from fastattention.cpu_kernels._native import ffi
from fastattention.gpu import launch
from fastattention.gpu.compile import Compiled
from fastattention.gpu.device import Card
from fastattention.gpu.problem import PROBLEM

import fastattention
from fastattention import cpu_kernels, device
from fastattention.validate import validate, validate_varlen

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")

H200 = Card(0, "A card", (9, 0), 132, 2048, 65536, 228 * 1024, 227 * 1024)


def at(shape, dtype=np.float32, address=0x7F0000000000, strides=None, number=0):
    """A CuPy array on a device that need not exist."""
    memory = cupy.cuda.UnownedMemory(address, 1 << 40, None, number)
    return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0), strides=strides)


class Room:
    """Device memory on the host, so that what is copied there can be looked at."""

    def __init__(self, nbytes, first=0):
        self.memory = np.full(nbytes, 0xFF, np.uint8) if isinstance(nbytes, int) else nbytes
        self.ptr = self.memory.ctypes.data + first
        self.first = first

    def __add__(self, offset):
        return Room(self.memory, self.first + offset)

    def copy_from_host_async(self, source, nbytes):
        ctypes.memmove(self.ptr, source, nbytes)

    def memset_async(self, value, nbytes):
        ctypes.memset(self.ptr, value, nbytes)


@pytest.fixture
def launches(monkeypatch):
    """Notes of (configuration, grid, block, arguments, shared memory), and of the memory that was taken."""
    notes = types.SimpleNamespace(calls=[], rooms=[], capturing=False)

    def compiled(configuration, card):
        def function(grid, block, arguments, *, shared_mem):
            problem, *rest = arguments
            notes.calls.append((configuration, grid, block, (problem.view(PROBLEM), *rest), shared_mem))

        return Compiled(function, 128)

    def allocate(nbytes, what):
        notes.rooms.append(Room(nbytes))
        return notes.rooms[-1]

    monkeypatch.setattr(launch, "card", lambda: H200)
    monkeypatch.setattr(launch, "get_atom", lambda number: 80)
    monkeypatch.setattr(launch, "compiled", compiled)
    monkeypatch.setattr(launch, "allocate", allocate)
    monkeypatch.setattr(launch, "capturing", lambda: notes.capturing)
    monkeypatch.setattr(launch, "reserve", lambda device, count, captured: 0)
    return notes


def cpu_problem(*tensors, **options):
    """The same problem as the CPU's binding fills it, from NumPy arrays of the same shapes and strides."""
    twins = []
    for x in tensors:
        span = sum(abs(s) * (n - 1) for s, n in zip(x.strides, x.shape, strict=True)) + x.itemsize
        twins.append(
            np.lib.stride_tricks.as_strided(np.zeros(span, np.uint8).view(x.dtype), x.shape, x.strides)
        )
    return cpu_kernels._problem(*twins, **options)


def test_fields_are_the_cpus(launches):
    """Sizes, strides and options: filled as the CPU's binding fills them."""
    q, k = at((2, 8, 40, 64)), at((2, 4, 90, 64), strides=(90 * 4 * 64 * 4, 64 * 4, 4 * 64 * 4, 4))
    v, out = at((2, 4, 90, 48)), at((2, 8, 40, 48), strides=(8 * 40 * 64 * 4, 40 * 64 * 4, 64 * 4, 4))
    lse, mask = at((2, 8, 40)), at((2, 8, 40, 90), np.bool_, strides=(0, 0, 90, 1))
    slopes, sinks = np.arange(16, dtype=np.float32).reshape(2, 8), np.arange(8, dtype=np.float32)
    lengths, offsets = np.array([90, 7]), np.array([3, -5])
    options = {
        "scale": 0.25, "softcap": 3.0, "window_left": 9, "window_right": 0, "alibi_slopes": slopes,
        "sinks": sinks, "kv_lengths": lengths, "q_offsets": offsets,
    }  # fmt: skip
    launch.attention(q, k, v, out, lse, mask=mask, **options)
    (configuration, grid, block, (problem,), shared), room = launches.calls[0], launches.rooms[0]
    assert (configuration.file, grid, block) == ("02_tiling_mask.cu", (1, 8, 2), (256,))
    assert shared == configuration.shared
    twin = np.lib.stride_tricks.as_strided(np.zeros(3600, np.bool_), mask.shape, mask.strides)
    expected = cpu_problem(q, k, v, out, lse, mask=twin, **options)
    for name in PROBLEM.names:
        if name in ("parts", "splits", "key_split") or name.startswith(("group", "page_shift", "page_mult")):
            continue  # which the GPU's kernels alone have
        want = getattr(expected, name)
        if isinstance(want, ffi.CData) and ffi.typeof(want).kind == "pointer":
            continue
        want = list(want) if isinstance(want, ffi.CData) else want
        assert problem[name].tolist() == pytest.approx(want), name
    assert problem["group"] == 2
    for name, array in {"q": q, "k": k, "v": v, "out": out, "lse": lse, "mask": mask}.items():
        assert problem[name] == array.data.ptr
    for name, array in {
        "alibi_slopes": slopes, "sinks": sinks, "kv_lengths": lengths, "q_offsets": offsets
    }.items():  # fmt: skip
        offset = int(problem[name]) - room.ptr
        assert offset % 16 == 0
        assert room.memory[offset : offset + array.nbytes].tobytes() == array.tobytes()
    assert problem["block_table"] == problem["k_scales"] == problem["parts"] == 0


def test_packed(launches):
    q, k, v = (at(s, np.float16) for s in ((300, 8, 64), (500, 2, 64), (500, 2, 64)))
    starts = np.array([0, 100, 300]), np.array([0, 100, 500])
    launch.attention(
        q, k, v, at((300, 8, 64), np.float16), None, scale=1.0, cu_seqlens_q=starts[0],
        cu_seqlens_k=starts[1], max_seqlen_q=200, max_seqlen_k=400,
    )  # fmt: skip
    configuration, grid, _, (problem,), _ = launches.calls[0]
    assert configuration.file == "07_ampere.cu"
    assert grid == (-(-200 // configuration.rows), 8, 2)
    assert problem["q_strides"].tolist() == [0, 64, 512]
    assert [int(problem[n]) for n in ("batch", "q_len", "k_len", "kv_heads")] == [2, 200, 400, 2]


def test_decode_splits_and_its_workspace(launches):
    q, kv = at((1, 32, 1, 128), np.float16), at((1, 8, 65536, 128), np.float16)
    launch.attention(q, kv, kv, q, None, scale=1.0)
    configuration, grid, _, (problem, counters, blocks), shared = launches.calls[0]
    splits = grid[0]
    assert configuration.entry == "decode"
    assert splits > 1
    assert grid[1:] == (8, 1)
    assert blocks == 1
    assert int(problem["key_split"]) * splits >= 65536
    assert shared == configuration.decode_shared(splits)
    room = launches.rooms[0]
    floats = 8 * splits * configuration.rows * configuration.part
    assert int(problem["parts"]) == room.ptr
    assert int(counters) == room.ptr + 4 * floats
    assert room.memory.size == 4 * (floats + 8)
    assert not room.memory[4 * floats :].any()
    assert room.memory[: 4 * floats].all()


def test_decode_of_short_sequences_in_a_long_cache_takes_no_workspace(launches):
    """How many parts there are follows the longest sequence, not the room for it."""
    q, kv = at((1, 32, 1, 128), np.float16), at((1, 8, 65536, 128), np.float16)
    launch.attention(q, kv, kv, q, None, scale=1.0, kv_lengths=np.array([60]))
    assert launches.calls[0][1] == (1, 8, 1)
    assert len(launches.rooms) == 1  # of the lengths


def test_pages(launches):
    q, pool = at((2, 8, 100, 64), np.float16), at((50, 2, 16, 64), np.int8)
    scales, table = at((50, 2, 16)), np.arange(40, dtype=np.int32).reshape(2, 20)
    launch.attention(
        q, pool, pool, q, None, scale=1.0, k_scales=scales, v_scales=scales, block_table=table, page_size=16,
        max_seqlen_k=300, kv_lengths=np.array([300, 17]),
    )  # fmt: skip
    configuration, grid, _, (problem, _, blocks), _ = launches.calls[0]
    assert dict(configuration.macros)["PAGED"] == "1"
    assert (grid[1], int(blocks)) == (2 * 25, 25)  # 400 rows of a KV head in blocks of 16
    assert [int(problem[n]) for n in ("k_len", "page_size", "block_table_stride")] == [300, 16, 20]
    assert problem["k_scale_strides"].tolist() == [32, 16, 1]


def test_more_sequences_than_a_grid_has(launches):
    q = at((70000, 1, 1, 64), np.float16)
    launch.attention(q, q, q, q, None, scale=1.0)
    assert [grid[2] for _, grid, *_ in launches.calls] == [35000, 35000]
    first, second = (arguments[0] for _, _, _, arguments, _ in launches.calls)
    for name in ("q", "k", "v", "out"):
        assert int(second[name]) - int(first[name]) == 35000 * 64 * 2
    assert first["batch"] == second["batch"] == 35000


def test_each_part_has_the_small_arrays_it_needs(launches, monkeypatch):
    monkeypatch.setattr(launch, "MAX_GRID", 2)
    q, k = at((4, 2, 40, 64), np.float16), at((4, 1, 90, 64), np.float16)
    lengths, slopes = np.array([90, 7, 0, 55]), np.arange(8, dtype=np.float32).reshape(4, 2)
    launch.attention(q, k, k, q, None, scale=1.0, kv_lengths=lengths, alibi_slopes=slopes)
    assert len(launches.calls) == len(launches.rooms) == 2
    for n, ((_, grid, _, (problem,), _), room) in enumerate(zip(launches.calls, launches.rooms, strict=True)):
        assert grid[1:] == (2, 2)
        assert problem["alibi_batch_stride"] == 2
        for name, array in {"kv_lengths": lengths, "alibi_slopes": slopes}.items():
            part, offset = array[2 * n : 2 * n + 2], int(problem[name]) - room.ptr
            assert room.memory[offset : offset + part.nbytes].tobytes() == part.tobytes()


def test_alignment():
    base = 0x7F0000000000
    assert launch.is_aligned(at((1, 1, 5, 64), np.float16))
    assert not launch.is_aligned(at((1, 1, 5, 64), np.float16, base + 2))
    assert not launch.is_aligned(at((1, 1, 5, 60), np.float16))
    assert not launch.is_aligned(at((1, 1, 5, 64), np.float16, strides=(0, 0, 132, 2)))
    assert launch.is_aligned(at((1, 1, 1, 64), np.float16, strides=(6, 6, 6, 2)))
    far = 2**31
    assert launch.is_aligned(at((1, 9, 5, 64), np.float16, strides=(far, far, -128, 2)))
    assert not launch.is_aligned(at((1, 1, 5, 64), np.float16, strides=(128, 128, far, 2)))
    assert launch.is_aligned(at((5, 9, 64), np.float16, strides=(128, far, 2)))
    assert not launch.is_aligned(at((5, 9, 64), np.float16, strides=(-far, 128, 2)))


@pytest.fixture
def atom(monkeypatch):
    """A device of atom 75 for validation, results at an address of their own."""
    forced = {"atom": 75}
    monkeypatch.setattr(device.gpu, "get_atom", lambda number=None: forced["atom"])
    monkeypatch.setattr(
        device, "empty", lambda shape, dtype, kind, name: at(shape, dtype, address=0x7E0000000000)
    )
    monkeypatch.setattr(
        fastattention.validate, "empty", lambda shape, dtype, kind, name: at(shape, dtype, 0x7E0000000000)
    )
    return forced


def checked(
    q, k, v, *, mask=None, slopes=None, lengths=None, offset=None, out=None, backend="auto", lse=False
):
    return validate(
        q, k, v, True, None, mask, slopes, None, None, None, lengths, offset, lse, out, backend, None
    )  # fmt: skip


def all_of(dtype):
    return {"q": at((2, 4, 3, 8), dtype), "k": at((2, 2, 7, 8), dtype), "v": at((2, 2, 7, 8), dtype)}


def test_validation_takes_device_arrays(atom):
    q, k = at((2, 4, 3, 8)), at((2, 2, 7, 8))
    for backend in ("auto", "gpu"):
        p = checked(q, k, k, lengths=np.array([7, 3], np.int32), offset=2, backend=backend, lse=True)
        assert p.q is q
        assert p.kind == "cupy cuda:0"
        assert (p.out.shape, p.lse.shape) == ((2, 4, 3, 8), (2, 4, 3))
        assert type(p.kv_lengths) is type(p.q_offsets) is np.ndarray
        assert p.result(True)[0] is p.out
    mask = at((3, 1), np.bool_)
    assert checked(q, k, k, mask=mask).mask.strides == (0, 0, 1, 0)
    packed = validate_varlen(
        at((6, 4, 8)), at((9, 2, 8)), at((9, 2, 8)), np.array([0, 2, 6]), np.array([0, 2, 9]), False, None,
        None, None, None, None, None, True, None, "gpu", None,
    )  # fmt: skip
    assert (packed.out.shape, packed.lse.shape) == ((6, 4, 8), (6, 4))


BAD = {
    "host k": ({"k": np.zeros((2, 2, 7, 8), np.float32)}, TypeError, r"k: .*\(cupy cuda:0\), got numpy"),
    "host q": ({"q": np.zeros((2, 4, 3, 8), np.float32)}, TypeError, r"k: .*\(numpy\), got cupy cuda:0"),
    "other device": ({"v": at((2, 2, 7, 8), number=1)}, TypeError, r"v: .*\(cupy cuda:0\), got cupy cuda:1"),
    "host mask": ({"mask": np.ones((3, 7), np.bool_)}, TypeError, "mask: .*got numpy"),
    "cpu": ({"backend": "cpu"}, TypeError, "q: backend='cpu' needs arrays in CPU memory"),
    "reference": ({"backend": "reference"}, TypeError, "q: backend='reference' needs arrays in CPU memory"),
    "shape": ({"k": at((2, 2, 7, 9))}, ValueError, "k: expected q's head dimension 8"),
    "float64": (all_of(np.float64), TypeError, "q: the kernels have no float64"),
    "bfloat16": (all_of(ml_dtypes.bfloat16), TypeError, r"q: bfloat16 needs compute capability 8\.0"),
    "misaligned": ({"k": at((2, 2, 7, 8), address=0x7F0000000001)}, ValueError, "k: expected addresses"),
    "out dtype": ({"out": at((2, 4, 3, 8), np.float16)}, TypeError, "out: expected dtype float32"),
    "out over q": ({"out": at((2, 4, 3, 8))}, ValueError, "out: shares memory with q"),
    "out in cpu memory": ({"out": np.zeros((2, 4, 3, 8), np.float32)}, TypeError, "out: .*got numpy"),
    "lengths": ({"lengths": np.array([1, 8])}, ValueError, "kv_lengths: expected 0 to Sk = 7, got 1 to 8"),
    "torch lengths": ({"lengths": [1, 2]}, TypeError, "kv_lengths: expected an array"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, atom):
    wrong, error, message = BAD[case]
    with pytest.raises(error, match=message):
        checked(**all_of(np.float32) | wrong)


def test_out_between_the_inputs(atom):
    """Slices of one buffer overlap in their bounds, and share no element."""
    base, steps = 0x7F0000000000, (4 * 7 * 32 * 4, 7 * 32 * 4, 32 * 4, 4)
    q, k, v, out = (at((2, 4, 7, 8), address=base + 32 * n, strides=steps) for n in range(4))
    assert checked(q, k, v, out=out).out is out
    with pytest.raises(ValueError, match="out: shares memory with v"):
        checked(q, k, v, out=at((2, 4, 7, 8), address=base + 64 + 4, strides=steps))


def test_cupy_is_not_imported_without_need():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np, fastattention as f; q = np.ones((1, 1, 2, 8), np.float32);"
        "f.merge([f.attention(q, q, q, return_lse=True)]); sys.exit('cupy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_small_arrays_of_the_host_are_not_captured(launches):
    launches.capturing = True
    q = at((1, 2, 1, 64))
    launch.attention(q, q, q, at(q.shape), scale=1.0)
    with pytest.raises(RuntimeError, match="kv_lengths: copied from CPU memory at each call"):
        launch.attention(q, q, q, at(q.shape), scale=1.0, kv_lengths=np.array([1]))
    assert len(launches.calls) == 1


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize(("dtype", "shape", "keys", "base", "window"), [
    (np.float16, (1, 32, 1, 128), (1, 8, 5000, 128), 0, (-1, -1)),
    (np.float16, (3, 4, 200, 64), (3, 4, 200, 64), 0, (-1, 0)),
    (np.float16, (3, 4, 200, 64), (3, 4, 200, 64), 2, (7, 3)),
    (np.float32, (2, 6, 3, 20), (2, 2, 77, 20), 4, (-1, -1)),
    (ml_dtypes.bfloat16, (2, 6, 30, 24), (2, 3, 40, 24), 0, (9, -1)),
])  # fmt: skip
def test_prepared_calls_are_the_others(launches, monkeypatch, dtype, shape, keys, base, window, lse):
    """With what is remembered of a call without extras, and without."""
    first = 0x7F0000000000 + base

    def call(offset):
        q, k = at(shape, dtype, first + offset), at(keys, dtype, first + 2 * offset)
        v, out = at(keys, dtype, first + 3 * offset), at(shape, dtype, first + 4 * offset)
        sums = at(shape[:3], np.float32, first + 5 * offset) if lse else None
        launch.attention(q, k, v, out, sums, scale=0.3, window_left=window[0], window_right=window[1])
        configuration, grid, block, (problem, *rest), shared = launches.calls.pop()
        problem["parts"] = 0
        return configuration, grid, block, problem.tobytes(), rest[1:], shared

    hits = launch._prepared.cache_info().hits
    call(0)
    remembered = [call(n) for n in (16, 32, 16)]
    assert launch._prepared.cache_info().hits == hits + 3
    monkeypatch.setattr(launch, "_prepared", lambda *arguments: None)
    assert remembered == [call(n) for n in (16, 32, 16)]
    assert remembered[0] != remembered[1]
