"""The emulator, instruction by instruction, against arithmetic done another way."""

from __future__ import annotations

import numpy as np
import pytest
from fastattention.gpu.audit.memory import KernelError

from reference.volta import fragments

from .emulated import LANES, run, words

RNG = np.random.default_rng(3)
X = RNG.integers(0, 2**32, 32, dtype=np.uint32)
Y = RNG.integers(0, 2**32, 32, dtype=np.uint32)
X[:4], Y[:4] = (0, 1, 0xFFFFFFFF, 0x80000000), (0, 0xFFFFFFFF, 0xFFFFFFFF, 0x7FFFFFFF)
LARGE = [int(x) << 32 | int(y) for x, y in zip(X, Y, strict=True)]
OTHER = [int(x) << 32 | int(y) for x, y in zip(Y[::-1], X, strict=True)]
EDGES = [
    *zip(LARGE, OTHER, strict=True),
    (5, 5),
    (2**63, 2**63 - 1),
    (2**32, 2**32 - 1),
    (0, 2**64 - 1),
]


def signed(x: int) -> int:
    return x - 2**64 if x >> 63 else x


@pytest.mark.parametrize(("a", "b"), EDGES)
def test_64_bit_sums(a: int, b: int) -> None:
    (a0, a1), (b0, b1) = words(a), words(b)
    w = run(
        """IADD3 R8, P0, R4, R6, RZ
           IADD3.X R9, R5, R7, RZ, P0, !PT
           IADD3 R10, P1, R4, -R6, RZ
           IMAD.X R11, R5, 0x1, ~R7, P1""",
        R4=a0, R5=a1, R6=b0, R7=b1,
    )  # fmt: skip
    assert (int(w.registers[8, 0]), int(w.registers[9, 0])) == words(a + b)
    assert (int(w.registers[10, 0]), int(w.registers[11, 0])) == words(a - b)


@pytest.mark.parametrize(("a", "b"), EDGES)
def test_64_bit_comparisons(a: int, b: int) -> None:
    (a0, a1), (b0, b1) = words(a), words(b)
    x, y = signed(a), signed(b)
    truth = {"GT": x > y, "GE": x >= y, "LT": x < y, "LE": x <= y, "EQ": x == y, "NE": x != y}
    for name, true in truth.items():
        w = run(
            f"""ISETP.{name}.U32.AND P0, PT, R4, R6, PT
                ISETP.{name}.AND.EX P1, P2, R5, R7, PT, P0""",
            R4=a0, R5=a1, R6=b0, R7=b1,
        )  # fmt: skip
        assert bool(w.predicates[1, 0]) == true
        assert bool(w.predicates[2, 0]) != true


def test_addresses() -> None:
    w = run(
        """IMAD.WIDE.U32 R8, R4, R5, R6
           LEA R10, P0, R4, R6, 0x3
           LEA.HI.X R11, R4, R7, RZ, 0x3, P0
           LEA R12, P1, R5, R6, 0x1
           LEA.HI.X.SX32 R13, R5, R7, 0x1, P1
           IMAD.WIDE R14, R4, R5, RZ""",
        R4=X, R5=Y, R6=Y[::-1], R7=X[::-1],
    )  # fmt: skip
    for lane in range(32):
        x, y, base = int(X[lane]), int(Y[lane]), int(Y[31 - lane]) | int(X[31 - lane]) << 32
        ys = y - 2**32 if y >> 31 else y
        xs = x - 2**32 if x >> 31 else x
        for register, value in ((8, x * y + base), (10, x * 8 + base), (12, ys * 2 + base), (14, xs * ys)):
            assert (int(w.registers[register, lane]), int(w.registers[register + 1, lane])) == words(value)


def test_shifts_and_bits() -> None:
    w = run(
        """SHF.R.S32.HI R8, RZ, 0x1f, R4
           SHF.R.U32.HI R9, RZ, 0x5, R4
           SHF.L.U64.HI R10, R4, 0x7, R5
           SHF.L.U32 R11, R4, R6, RZ
           LOP3.LUT R12, R4, R5, R6, 0x96, !PT
           LOP3.LUT P0, RZ, R4, 0x1, RZ, 0xc0, !PT
           PRMT R13, R4, 0x5410, R5
           PRMT R14, R4, 0x8761, R5
           LEA.HI R15, R4, R5, RZ, 0x4""",
        R4=X, R5=Y, R6=LANES + 8,
    )  # fmt: skip
    for lane in range(32):
        x, y = int(X[lane]), int(Y[lane])
        low_byte_sign = 0xFF if x >> 7 & 1 else 0
        expected = {
            8: 0xFFFFFFFF if x >> 31 else 0,
            9: x >> 5,
            10: (x | y << 32) << 7 >> 32,
            11: x << min(lane + 8, 32),
            12: x ^ y ^ (lane + 8),
            13: x & 0xFFFF | (y & 0xFFFF) << 16,
            14: (x >> 8 & 0xFF) | (y >> 16 & 0xFF) << 8 | (y >> 24) << 16 | low_byte_sign << 24,
            15: (x >> 28) + y,
        }
        for register, value in expected.items():
            assert int(w.registers[register, lane]) == value & 0xFFFFFFFF, register
        assert bool(w.predicates[0, lane]) == bool(x & 1)


def test_a_predicate_joins_what_bits_say() -> None:
    w = run(
        """LOP3.LUT P0, RZ, R4, 0x1, RZ, 0xc0, !PT
           LOP3.LUT P1, RZ, RZ, RZ, RZ, 0xfc, P0
           LOP3.LUT P2, RZ, R4, 0x2, RZ, 0xc0, P0
           LOP3.LUT.PAND P3, RZ, R4, 0x2, RZ, 0xc0, P0""",
        R4=LANES,
    )
    odd, second = LANES & 1 != 0, LANES & 2 != 0
    for number, expected in enumerate((odd, odd, odd | second, odd & second)):
        np.testing.assert_array_equal(w.predicates[number], expected)


def test_predicates_as_bits() -> None:
    w = run(
        """LOP3.LUT P0, RZ, R4, 0x1, RZ, 0xc0, !PT
           LOP3.LUT P5, RZ, R4, 0x2, RZ, 0xc0, !PT
           P2R R8, PR, RZ, 0x20
           P2R R9, PR, R4, 0x21""",
        R4=LANES,
    )
    odd, second = LANES & 1, LANES >> 1 & 1
    np.testing.assert_array_equal(w.registers[8], second << 5)
    np.testing.assert_array_equal(w.registers[9], (LANES & ~np.uint32(0x21)) | odd | second << 5)


def test_floats() -> None:
    a, b = RNG.standard_normal((2, 32)).astype(np.float32)
    a[0], b[1] = np.nan, -np.inf
    w = run(
        """FFMA R8, R4, R5, -R4
           FMNMX R9, R4, R5, !PT
           FMNMX R10, R4, |R5|, PT
           FSETP.NEU.AND P0, PT, R4, -INF, PT
           FSETP.GT.OR P1, PT, R4, R5, !PT
           FSEL R11, R4, 2, P1
           MUFU.EX2 R12, R4
           F2F.F16.F32 R13, R5
           FMUL R14, R4, 1.5""",
        R4=a.view(np.uint32), R5=b.view(np.uint32),
    )  # fmt: skip
    f = w.registers.view(np.float32)
    np.testing.assert_allclose(f[8], a.astype(np.float64) * b - a, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(f[9], np.fmax(a, b))
    np.testing.assert_array_equal(f[10], np.fmin(a, np.abs(b)))
    assert w.predicates[0].all()  # a NaN is unordered, and so not equal
    np.testing.assert_array_equal(w.predicates[1], a > b)
    np.testing.assert_array_equal(f[11], np.where(a > b, a, np.float32(2)))
    np.testing.assert_allclose(f[12], np.exp2(a), rtol=1e-6)
    np.testing.assert_array_equal(w.registers[13], b.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(f[14], a * np.float32(1.5))


@pytest.mark.parametrize("columns", [True, False])
def test_hmma(columns: bool) -> None:
    """Against the specification's maps of m8n8k4."""
    a, b = RNG.integers(-8, 9, (2, 32, 4)).astype(np.float16)
    c = RNG.integers(-8, 9, (32, 8)).astype(np.float32)
    registers = {f"R{4 + n}": a.view(np.uint32)[:, n] for n in range(2)}
    registers |= {f"R{6 + n}": b.view(np.uint32)[:, n] for n in range(2)}
    registers |= {f"R{8 + n}": c.view(np.uint32)[:, n] for n in range(8)}
    code = "\n".join(
        f"HMMA.884.F32.F32.STEP{s} R{16 + 2 * s}, R4.ROW, R6.{'COL' if columns else 'ROW'}, R{8 + 2 * s}"
        for s in range(4)
    )
    found = run(code, **registers).registers[16:24].view(np.float32)
    b_map = fragments.m8n8k4_b_col if columns else fragments.m8n8k4_b_row
    for pair in range(4):
        left, right, product = np.zeros((8, 4)), np.zeros((4, 8)), np.zeros((8, 8))
        lanes = [lane for lane in range(32) if fragments.quad_pair(lane) == pair]
        for lane in lanes:
            for i in range(4):
                left[fragments.m8n8k4_a_row(lane, i)] = a[lane, i]
                right[b_map(lane, i)] = b[lane, i]
            for i in range(8):
                product[fragments.m8n8k4_c_f32(lane, i)] = c[lane, i]
        product += left @ right
        for lane in lanes:
            for i in range(8):
                assert found[i, lane] == product[fragments.m8n8k4_c_f32(lane, i)]


def test_lanes_part_and_meet() -> None:
    w = run(
        """S2R R4, SR_TID.X
           ISETP.LT.AND P0, PT, R4, 0x8, PT
           BSSY B0, 0x60
           @P0 BRA 0x50
           IADD3 R5, R4, 0x64, RZ
           BSYNC B0
           VOTE.ANY R6, PT, P0
           SHFL.BFLY PT, R7, R4, 0x2, 0x1f""",
        R5=7,
    )
    np.testing.assert_array_equal(w.registers[5], np.where(LANES < 8, 7, LANES + 100))
    assert (w.registers[6] == 0xFF).all()  # all 32 lanes vote together again
    np.testing.assert_array_equal(w.registers[7], LANES ^ 2)
    assert w.trace.count(6) == 1


def test_barrier_lets_warps_see_each_other() -> None:
    w = run(
        """S2R R4, SR_TID.X
           IMAD.SHL.U32 R5, R4, 0x4, RZ
           STS [R5], R4
           BAR.SYNC 0x0
           LOP3.LUT R6, R5, 0x80, RZ, 0x3c, !PT
           LDS.U R7, [R6]""",
        threads=64,
    )
    np.testing.assert_array_equal(w.registers[7], LANES + 32)
    assert [(taken, ideal) for _, taken, ideal in w.accesses] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("LDS.U.128 R4, [RZ+0x8]", "misaligned: 16 bytes at 0x8"),
        ("LDS.U R4, [RZ+0x1000]", "out of bounds: 4 bytes at 0x1000"),
        ("NOTHING R4", "NOTHING is not known"),
        ("FFMA.RZ R4, R5, R6, R7", "FFMA.RZ R4, R5, R6, R7: not known"),
        ("HMMA.1688.F32 R4, R8, R10, R4", "not known"),
        ("S2R R4, SR_CLOCKLO", "SR_CLOCKLO is not known"),
    ],
)
def test_faults(code: str, message: str) -> None:
    with pytest.raises(KernelError, match=message.replace("[", r"\[")):
        run(code)
