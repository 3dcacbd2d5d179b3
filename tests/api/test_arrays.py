"""Arrays of every kind come in without a copy, results go out as the caller's kind, and lifetimes hold."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import types
import weakref

import ml_dtypes
import numpy as np
import pytest

import fastattention
from fastattention.arguments import usable
from fastattention.arrays import from_numpy, to_numpy

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
FLOAT, BFLOAT, UINT = 2, 4, 1  # DLDataTypeCode
CODES = {np.dtype(np.float32): FLOAT, np.dtype(np.float16): FLOAT, np.dtype(ml_dtypes.bfloat16): BFLOAT}


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def address(array):
    return array.__array_interface__["data"][0]


# --- A DLPack producer written from dlpack.h, independent of the library's reading of it. ---


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
is_valid = ctypes.pythonapi.PyCapsule_IsValid
is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Exporter:
    """Exports a NumPy array of any dtype through DLPack, and counts how often it is released."""

    def __init__(self, array, *, versioned=True, device=(1, 0), major=1, fail=None):
        self.array, self.versioned, self.device, self.major, self.fail = array, versioned, device, major, fail
        self.exported = self.released = 0
        self.alive = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, max_version=None, **_):
        if self.fail is not None:
            raise self.fail
        self.exported += 1
        array = self.array
        managed = ManagedVersioned() if self.versioned else Managed()
        if self.versioned:
            managed.major, managed.minor, managed.flags = self.major, 0, 0
        axes = ctypes.c_int64 * array.ndim
        shape, strides = axes(*array.shape), axes(*(s // array.itemsize for s in array.strides))
        tensor = managed.tensor
        tensor.data, tensor.device_type, tensor.device_id, tensor.ndim = (
            address(array),
            *self.device,
            array.ndim,
        )
        tensor.code, tensor.bits, tensor.lanes = CODES[array.dtype], 8 * array.itemsize, 1
        tensor.shape, tensor.strides, tensor.byte_offset = shape, strides, 0

        def release(_):
            self.released += 1

        deleter = DELETER(release)
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p)
        self.alive.append((managed, shape, strides, deleter))
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        # No destructor: an unconsumed capsule would leak, and `released` would stay behind `exported`.
        return new_capsule(ctypes.addressof(managed), name, None)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_in_without_a_copy_and_released_once(dtype, versioned):
    source = random(2, 3, 4, 5, dtype=dtype)[:, ::-1, ::2]
    exporter = Exporter(source, versioned=versioned)
    array, kind = to_numpy(exporter, "q")
    assert kind == __name__.partition(".")[0]
    assert array.dtype == dtype
    assert address(array) == address(source)
    assert array.strides == source.strides
    np.testing.assert_array_equal(array, source)
    part = array[1:]
    del array
    gc.collect()
    assert (exporter.exported, exporter.released) == (1, 0)  # the view still needs the memory
    del part
    gc.collect()
    assert (exporter.exported, exporter.released) == (1, 1)


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_a_type_without_from_dlpack_gives_numpy(dtype, versioned):
    arrays = [random(1, 2, 3, 8, dtype=dtype, seed=n) for n in range(3)]
    exporters = [Exporter(x, versioned=versioned) for x in arrays]
    out = fastattention.attention(*exporters)
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, fastattention.attention(*arrays))
    gc.collect()
    assert [(e.exported, e.released) for e in exporters] == [(1, 1)] * 3


def test_released_when_validation_fails_later():
    good = [Exporter(random(1, 1, 2, 8, dtype=ml_dtypes.bfloat16)) for _ in range(2)]
    with pytest.raises(ValueError, match="v: expected"):
        fastattention.attention(*good, Exporter(random(1, 1, 3, 8, dtype=ml_dtypes.bfloat16)))
    gc.collect()
    assert [(e.exported, e.released) for e in good] == [(1, 1)] * 2


def test_another_major_version_is_left_alone():
    exporter = Exporter(random(1, 1, 2, 8, dtype=ml_dtypes.bfloat16), major=2)
    with pytest.raises(TypeError, match="q: Exporter cannot be taken through DLPack"):
        to_numpy(exporter, "q")
    assert exporter.alive[0][0].tensor.code == BFLOAT


@pytest.mark.parametrize(
    ("device", "name"), [((2, 0), "CUDA"), ((10, 1), "ROCm"), ((99, 0), "DLPack type 99")]
)
def test_other_devices_are_refused(device, name):
    exporter = Exporter(random(1, 1, 2, 8), device=device)
    with pytest.raises(TypeError, match=f"k: expected an array in CPU memory, got one on a {name} device"):
        to_numpy(exporter, "k")
    assert exporter.exported == 0


@pytest.mark.parametrize("error", [BufferError("no"), RuntimeError("no"), ValueError("no")])
def test_a_producer_that_fails(error):
    with pytest.raises(TypeError, match="q: Exporter cannot be taken through DLPack: no"):
        to_numpy(Exporter(random(2), fail=error), "q")


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_of_a_library_with_from_dlpack(dtype, monkeypatch):
    # A stand-in for any array library: it takes what NumPy exports, and must see bfloat16 as bfloat16.
    library = types.ModuleType("standin")
    seen = []

    def from_dlpack(x):
        capsule = x.__dlpack__()
        assert is_valid(capsule, b"dltensor")
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = Managed.from_address(get(capsule, b"dltensor")).tensor
        seen.append((tensor.code, tensor.bits, tensor.lanes, tensor.data, x.__dlpack_device__()[0]))
        return "theirs"

    library.from_dlpack = from_dlpack
    monkeypatch.setitem(sys.modules, "standin", library)
    array = random(3, 4, dtype=dtype)
    assert from_numpy(array, "standin") == "theirs"
    assert seen == [(CODES[array.dtype], 8 * array.itemsize, 1, address(array), 1)]


def test_an_exported_bfloat16_array_lives_as_long_as_its_capsule():
    from fastattention.dlpack import Bfloat16Exporter

    array = random(3, 4, dtype=ml_dtypes.bfloat16)
    alive = weakref.ref(array)
    capsule = Bfloat16Exporter(array).__dlpack__()
    del array
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_numpy_passes_through_as_itself():
    array = random(2, 3)
    assert to_numpy(array, "q") == (array, "numpy")
    assert from_numpy(array, "numpy") is array


def test_numpy_subclasses_are_seen_as_plain_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "q", np.float32, "w+", shape=(1, 1, 2, 8))
    array, kind = to_numpy(mapped, "q")
    assert type(array) is np.ndarray
    assert kind == "numpy"
    assert np.shares_memory(array, mapped)
    assert type(fastattention.attention(mapped, mapped, mapped)) is np.ndarray


def test_kinds_do_not_mix():
    q = random(1, 1, 2, 8)
    with pytest.raises(TypeError, match=r"k: expected an array of the same kind as the others \(numpy\)"):
        fastattention.attention(q, Exporter(q), q)
    with pytest.raises(TypeError, match="mask: expected an array of the same kind"):
        fastattention.attention(q, q, q, mask=Exporter(random(2, 2)))
    with pytest.raises(TypeError, match="out: expected an array of the same kind"):
        fastattention.attention(q, q, q, out=Exporter(random(1, 1, 2, 8)))


# --- PyTorch ---


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.peers
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_torch(torch, name):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8).to(getattr(torch, name)) for _ in range(3))
    view, kind = to_numpy(q.swapaxes(1, 2), "q")
    assert kind == "torch"
    assert address(view) == q.data_ptr()
    assert view.shape == (1, 5, 2, 8)
    out, lse = fastattention.attention(q, k, v, causal=True, return_lse=True)
    assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(
        out, expected, rtol=0, atol={"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}[name]
    )

    mine = torch.empty_like(q)
    assert fastattention.attention(q, k, v, causal=True, out=mine) is mine
    assert torch.equal(mine, out)

    merged, merged_lse = fastattention.merge([(out, lse), (out, lse)])
    assert merged.dtype == q.dtype
    torch.testing.assert_close(merged, out, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(merged_lse, lse + 0.6931472, rtol=1e-6, atol=1e-6)


@pytest.mark.peers
def test_torch_results_outlive_the_call(torch):
    q = torch.randn(1, 1, 64, 64)
    out = fastattention.attention(q, q, q)
    saved = out.clone()
    gc.collect()
    for _ in range(20):
        np.full(64 * 64, 7, np.float32)
    assert torch.equal(out, saved)


@pytest.mark.peers
def test_torch_options(torch):
    q = torch.randn(2, 2, 3, 8)
    lengths, slopes, sinks = torch.tensor([2, 3]), torch.tensor([0.5, 0.25]), torch.tensor([0.0, 1.0])
    mask = torch.ones(3, 3, dtype=torch.bool)
    out = fastattention.attention(
        q, q, q, mask=mask, kv_lengths=lengths, alibi_slopes=slopes, sinks=sinks, q_offset=lengths
    )
    expected = fastattention.attention(
        q.numpy(), q.numpy(), q.numpy(), mask=mask.numpy(), kv_lengths=lengths.numpy(),
        alibi_slopes=slopes.numpy(), sinks=sinks.numpy(), q_offset=lengths.numpy(),
    )  # fmt: skip
    np.testing.assert_array_equal(out.numpy(), expected)
    packed = q.transpose(1, 2).reshape(6, 2, 8)
    starts = torch.tensor([0, 3, 6], dtype=torch.int32)
    out = fastattention.attention_varlen(packed, packed, packed, starts, starts)
    np.testing.assert_allclose(
        out.reshape(2, 3, 2, 8).transpose(1, 2).numpy(),
        fastattention.attention(q, q, q).numpy(),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.peers
def test_torch_refusals(torch):
    q = torch.randn(1, 1, 2, 8)
    cases = [
        (torch.randn(1, 1, 2, 8, requires_grad=True), r"k: .*requires grad.*k\.detach\(\)"),
        (torch.empty(1, 1, 2, 8, device="meta"), "k: expected an array in CPU memory, got one on meta"),
        (q.to_sparse(), "k: this torch.float32 torch.sparse_coo tensor cannot be read"),
        (q.to(torch.float8_e4m3fn), "k: this torch.float8_e4m3fn torch.strided tensor cannot be read"),
        (q.double(), "k: .*float64"),
        (q.numpy(), r"k: expected an array of the same kind as the others \(torch\), got numpy"),
    ]
    for wrong, message in cases:
        with pytest.raises(TypeError, match=message):
            fastattention.attention(q, wrong, q)
    with pytest.raises(TypeError, match="mask: expected an array of the same kind"):
        fastattention.attention(q, q, q, mask=np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="out: shares memory with v"):
        fastattention.attention(q, q.clone(), v := q.clone(), out=v)


# --- JAX ---


@pytest.fixture(scope="module")
def jax():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where there is a GPU, JAX would put arrays on it
    return pytest.importorskip("jax", reason="JAX is not installed")


@pytest.mark.peers
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_jax(jax, name):
    q, k, v = (jax.random.normal(jax.random.key(n), (1, 2, 5, 8)).astype(name) for n in range(3))
    view, kind = to_numpy(q, "q")
    assert kind == "jax"
    assert address(view) == q.unsafe_buffer_pointer()
    assert not view.flags.writeable
    out, lse = fastattention.attention(q, k, v, causal=True, return_lse=True)
    assert isinstance(out, jax.Array)
    assert (out.dtype, lse.dtype) == (q.dtype, np.float32)
    plain = fastattention.attention(np.asarray(q), np.asarray(k), np.asarray(v), causal=True)
    np.testing.assert_array_equal(np.asarray(out), plain)
    merged, _ = fastattention.merge([(out, lse)])
    assert isinstance(merged, jax.Array)
    np.testing.assert_array_equal(np.asarray(merged), plain)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_takes_aligned_results_without_a_copy(jax, dtype):
    memory = np.zeros(4096, np.uint8)
    aligned = memory[-address(memory) % 64 :][:512].view(dtype)
    assert from_numpy(aligned, "jax").unsafe_buffer_pointer() == address(aligned)


@pytest.mark.peers
def test_jax_refusals(jax):
    q = jax.numpy.ones((1, 1, 2, 8))
    with pytest.raises(TypeError, match=r"q: .*Tracer is a value JAX is tracing"):
        jax.jit(lambda x: fastattention.attention(x, x, x))(q)
    with pytest.raises(TypeError, match="out: JAX arrays cannot be written to"):
        fastattention.attention(q, q, q, out=q)
    with pytest.raises(TypeError, match="v: expected an array of the same kind"):
        fastattention.attention(q, q, np.asarray(q))


@pytest.mark.peers
def test_jax_options(jax):
    jnp = jax.numpy
    q = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
    options = {
        "mask": jnp.tril(jnp.ones((3, 3), bool)),
        "kv_lengths": jnp.array([2, 3]),
        "q_offset": jnp.array([0, 1]),
        "alibi_slopes": jnp.array([0.5, 0.25]),
        "sinks": jnp.array([0.0, 1.0]),
    }
    plain = {name: np.asarray(x) for name, x in options.items()}
    expected = fastattention.attention(np.asarray(q), np.asarray(q), np.asarray(q), **plain)
    np.testing.assert_array_equal(np.asarray(fastattention.attention(q, q, q, **options)), expected)


@pytest.mark.peers
def test_torch_subclasses_are_torch(torch):
    class Tagged(torch.Tensor):
        pass

    q = torch.randn(1, 1, 2, 8).as_subclass(Tagged)
    assert to_numpy(q, "q")[1] == "torch"
    assert isinstance(fastattention.attention(q, q, q), torch.Tensor)


class OnDevice:
    """What `usable` asks of an array of another library, such as CuPy's; a copy is contiguous."""

    def __init__(self, like: np.ndarray) -> None:
        self.strides, self.itemsize = like.strides, like.itemsize
        self.shape, self.size = like.shape, like.size
        self.copied = 0

    def copy(self, order: str) -> OnDevice:
        assert order == "C"
        copy = OnDevice(np.empty(self.shape, np.float32))
        copy.copied = self.copied + 1
        return copy


@pytest.mark.parametrize(
    ("array", "copies"),
    [
        (np.zeros((3, 4), np.float32), 0),
        (np.zeros((3, 8), np.float32)[:, :4], 0),
        (np.zeros((3, 8), np.float32)[:, ::2], 1),
        (np.zeros((4, 3), np.float32).T, 1),
        (np.zeros((3, 8), np.float32)[:, :1:8], 0),  # one element has no neighbour
        (np.zeros((0, 8), np.float32)[:, ::2], 0),
    ],
    ids=["contiguous", "rows apart", "elements apart", "transposed", "one element", "none"],
)
def test_arrays_on_a_device_are_copied_only_where_elements_of_a_row_lie_apart(array, copies):
    assert usable(OnDevice(array)).copied == copies
