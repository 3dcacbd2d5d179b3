"""The choice of a kernel: pure arithmetic, tested without a GPU."""

from __future__ import annotations

import itertools
import re

import pytest
from fastattention.gpu import KERNELS, atom_of, choose, compile
from fastattention.gpu.choose import SHARED_BYTES, Configuration, configure, grid, resident, split_keys

DIMS = (1, 15, 16, 17, 64, 65, 80, 96, 128, 129, 192, 193, 255, 256)
PAIRS = {
    70: (("float32", "float32"), ("float16", "float16"), ("float32", "float16"), ("float16", "int8")),
    80: (("bfloat16", "bfloat16"), ("bfloat16", "int8"), ("float32", "bfloat16"), ("float32", "int8")),
}


def everything():
    """Every kernel there is."""
    for atom in choose.ATOMS:
        pairs = PAIRS[70] + (PAIRS[80] if atom == 80 else ())
        for (q, kv), d, v, rows, paged in itertools.product(pairs, DIMS, DIMS, (1, 3, 16, 17), (False, True)):
            yield atom, configure(atom, q, kv, d, v, rows, aligned=True, modified=False, paged=paged), (d, v)


@pytest.mark.parametrize(
    ("capability", "atom"),
    [((7, 0), 70), ((7, 2), 70), ((7, 5), 75), ((8, 0), 80), ((8, 9), 80), ((9, 0), 80), ((12, 0), 80)],
)
def test_atoms(capability, atom):
    assert atom_of(*capability) == atom


@pytest.mark.parametrize("capability", [(3, 5), (6, 0), (6, 1)])
def test_older_than_volta(capability):
    with pytest.raises(ValueError, match=r"needs compute capability 7\.0"):
        atom_of(*capability)


@pytest.mark.parametrize("atom", [70, 75])
@pytest.mark.parametrize("rows", [1, 1000])
def test_bfloat16_needs_ampere(atom, rows):
    with pytest.raises(TypeError, match=r"q: bfloat16 needs compute capability 8\.0"):
        configure(atom, "bfloat16", "bfloat16", 64, 64, rows, aligned=True, modified=False)


def test_shared_memory_fits_every_card_of_an_atom():
    for atom, c, dims in everything():
        assert 0 < c.shared <= SHARED_BYTES[atom], (atom, dims, c)
        assert c.threads % 32 == 0
        assert c.threads <= 1024
        macros = dict(c.macros)
        assert int(macros["HEAD_DIM"]) % 16 == 0
        assert int(macros["HEAD_DIM"]) >= dims[0]
        assert int(macros["V_DIM"]) >= dims[1]


def test_macros_are_those_the_kernels_read():
    """Each macro given is read somewhere in the sources, and each that a file asks for is given."""
    text = "\n".join(path.read_text() for path in sorted(KERNELS.glob("*.cu*")))
    known = set(re.findall(r"FA_([A-Z_]+)", text))
    for _, c, _ in everything():
        assert {name for name, _ in c.macros} <= known
        assert (KERNELS / c.file).is_file()
        assert f"{c.entry}(const Problem p" in re.sub(
            r"\s+", " ", (KERNELS / c.file).read_text() + (KERNELS / "attention_entry.cuh").read_text()
            + (KERNELS / "cuda_cores.cuh").read_text(),
        )  # fmt: skip


def file_of(*args, **options):
    return configure(*args, **{"aligned": True, "modified": False, **options}).file


def test_which_kernel():
    assert file_of(70, "float16", "float16", 64, 64, 17) == "04_prefetch.cu"
    assert file_of(75, "float16", "float16", 64, 64, 17) == "06_turing.cu"
    assert file_of(80, "bfloat16", "bfloat16", 64, 64, 17) == "07_ampere.cu"
    assert file_of(80, "float32", "float32", 64, 64, 17) == "02_tiling_mask.cu"
    for rows in (1, 16):
        assert file_of(80, "float16", "float16", 64, 64, rows) == "05_decode.cu"
    # Only decode's kernels know pages, int8, and queries of another type than keys.
    assert file_of(80, "float16", "float16", 64, 64, 999, paged=True) == "05_decode.cu"
    assert file_of(80, "float16", "int8", 64, 64, 999) == "05_decode.cu"
    assert file_of(70, "float32", "float16", 64, 64, 999) == "05_decode.cu"


def test_tensor_cores_of_decode_take_16_bit_queries():
    def atom(*args):
        return dict(configure(*args, 64, 64, 8, aligned=True, modified=False).macros)["ATOM"]

    assert atom(80, "float16", "float16") == atom(80, "float16", "int8") == "80"
    assert atom(80, "bfloat16", "bfloat16") == "80"
    assert atom(75, "float16", "int8") == "75"
    for pair in (("float32", "float32"), ("bfloat16", "int8"), ("float32", "float16")):
        assert atom(80, *pair) == "70"


def test_copy_engine_only_where_rows_are_aligned():
    for aligned in (False, True):
        c = configure(80, "float16", "float16", 64, 64, 99, aligned=aligned, modified=False)
        assert (dict(c.macros)["ASYNC"], dict(c.macros)["ALIGNED"]) == (str(int(aligned)),) * 2
    c = configure(75, "float16", "float16", 64, 64, 99, aligned=True, modified=True)
    assert (dict(c.macros)["ASYNC"], dict(c.macros)["MODIFIED"]) == ("0", "1")


def arrangement(atom, dim, sm_kib, **options):
    c = configure(
        atom, "float16", "float16", dim, dim, 999, sm_shared=sm_kib and sm_kib * 1024,
        **{"aligned": True, "modified": False, **options},
    )  # fmt: skip
    macros = dict(c.macros)
    return tuple(int(macros[name]) for name in ("WARPS", "WARP_ROWS", "KEYS"))


def test_two_small_ctas_where_an_sm_holds_both_else_a_large_one():
    assert arrangement(80, 128, 228) == arrangement(80, 128, 164) == (4, 32, 48)
    assert arrangement(80, 128, 100) == arrangement(80, 128, None) == (8, 32, 32)
    assert arrangement(80, 128, 164, modified=True) == arrangement(80, 128, 100, aligned=False) == (8, 16, 64)
    assert (arrangement(80, 256, 228), arrangement(80, 256, 100)) == ((4, 16, 32), (8, 16, 32))
    assert arrangement(75, 64, 64) == arrangement(75, 64, None) == (4, 32, 48)


@pytest.mark.parametrize("atom", choose.ATOMS)
def test_some_arrangement_fits_the_least_card(atom):
    """Whatever the head dimensions and the call; and eight warps are there where shared memory allows it."""
    variants = itertools.product((True, False), (False, True))
    for (d, v), (aligned, modified) in itertools.product(
        itertools.product((1, 64, 72, 128, 200, 256), repeat=2), variants
    ):
        c = configure(atom, "float16", "float16", d, v, 99, aligned=aligned, modified=modified)
        fits = choose.SM_SHARED[atom] // (c.shared + (1024 if atom >= 80 else 0))
        assert fits >= 1
        assert fits * c.threads >= (256 if max(d, v) <= 128 or atom != 75 else 128)


def test_quad_pairs_abreast_share_32_columns():
    c = configure(70, "float16", "float16", 200, 136, 99, aligned=True, modified=False)
    assert dict(c.macros) | {"V_DIM": "160", "HEAD_DIM": "208", "ABREAST": "2"} == dict(c.macros)


@pytest.mark.parametrize("sets", [1, 7, 132, 5000])
def test_splits_cover_the_keys_once(sets):
    for step, keys in itertools.product((16, 64, 128), (1, 63, 64, 65, 1000, 131072, 2**31 - 1)):
        splits, size = split_keys(step, keys, sets, 264)
        assert 1 <= splits <= choose.MAX_SPLITS
        assert size % step == 0
        assert (splits - 1) * size < keys <= splits * size
    assert split_keys(64, 131072, 1, 264)[0] > 200
    assert split_keys(64, 131072, 300, 264)[0] == 1


def test_resident():
    c = Configuration("x", "decode", (), 128, 16, 64, 40 * 1024)
    h200 = {"sm_threads": 2048, "sm_registers": 65536, "sm_shared": 228 * 1024}
    assert resident(c, 128, **h200) == 4  # registers
    assert resident(c, 32, **h200) == 5  # shared memory
    assert resident(c, 255, **h200 | {"sm_registers": 1}) == 1


def test_grid():
    sizes = {"batch": 3, "q_heads": 8, "kv_heads": 2, "q_len": 300}
    prefill = configure(80, "float16", "float16", 64, 64, 1200, aligned=True, modified=False)
    assert grid(prefill, **sizes) == (-(-300 // prefill.rows), 8, 3)
    decode = configure(80, "float16", "int8", 64, 64, 1200, aligned=True, modified=False)
    assert grid(decode, **sizes, splits=5) == (5, 2 * -(-1200 // decode.rows), 3)


def test_the_source_changes_with_the_headers(monkeypatch, tmp_path):
    """CuPy's cache on disk does not see them."""
    c = configure(80, "float32", "float32", 64, 64, 99, aligned=True, modified=False)
    before = compile.source(c)
    for path in KERNELS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "scores.cuh").write_text("// changed")
    monkeypatch.setattr(compile, "KERNELS", tmp_path)
    compile._headers.cache_clear()
    try:
        assert compile.source(c) != before
        assert compile.source(c).splitlines()[1:] == before.splitlines()[1:]
    finally:
        compile._headers.cache_clear()


@pytest.mark.parametrize("atom", [70, 75])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_variants_fit_and_take_their_own_arrangement(atom, dim):
    for aligned, modified in itertools.product((False, True), repeat=2):
        c = configure(atom, "float16", "float16", dim, dim, 99, aligned=aligned, modified=modified)
        assert c.shared <= SHARED_BYTES[atom]
        smaller = (modified and (atom, dim) in choose._MODIFIED) or (
            not aligned and (atom, dim) in choose._UNALIGNED
        )
        plain = configure(atom, "float16", "float16", dim, dim, 99, aligned=True, modified=False)
        assert (c.shared < plain.shared) == smaller
