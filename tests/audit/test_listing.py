"""Reading machine code: instructions, control bits and loops, from listings written for this test."""

from __future__ import annotations

import pytest
from fastattention.gpu.audit.sass import Loop, loops, parse, tensor_loop

LISTING = """\
\t.headerflags\t@"EF_CUDA_64BIT_ADDRESS"
.L_x_0:
        /*0000*/                   MOV R1, 0x4 ;
        /*0010*/                   LDS.U.128 R8, [R4+0x10] ;
        /*0020*/                   HMMA.884.F32.F32.STEP0 R12, R8.reuse.ROW, R16.reuse.COL, RZ ;
        /*0030*/              @!P0 FFMA R2, -R3, |R4|, c[0x0][0x160] ;
        /*0040*/                   IADD3 R1, R1, -0x1, RZ ;
        /*0050*/              @P1 BRA 0x10 ;
        /*0060*/                   EXIT ;
        /*0070*/                   BRA 0x70;
"""


def encoded(*control: int) -> bytes:
    """Sixteen bytes for each instruction, with the control bits alone."""
    return b"".join((bits << 105).to_bytes(16, "little") for bits in control)


def test_instructions() -> None:
    found = parse(LISTING)
    assert [i.name for i in found] == ["MOV", "LDS", "HMMA", "FFMA", "IADD3", "BRA", "EXIT", "BRA"]
    assert found[1].operands == ("R8", "[R4+0x10]")
    assert found[1].has("128")
    assert not found[1].has("64")
    assert found[2].opcode == "HMMA.884.F32.F32.STEP0"
    assert found[2].operands == ("R12", "R8.ROW", "R16.COL", "RZ")
    assert found[3].guard == "!P0"
    assert found[3].operands[3] == "c[0x0][0x160]"
    assert [i.guard for i in found[4:6]] == ["PT", "P1"]
    assert found[5].target == 0x10
    assert found[6].target is None


def test_control_bits() -> None:
    # stall | yield << 4 | write << 5 | read << 8 | waits << 11; 7 is no scoreboard
    nothing = 7 << 5 | 7 << 8
    code = encoded(nothing | 4, 2 | 3 << 5 | 7 << 8, nothing | 2 | 0b101000 << 11, *[nothing | 1] * 5)
    found = parse(LISTING, code)
    assert [i.stall for i in found[:4]] == [4, 2, 2, 1]
    assert (found[1].write_board, found[1].read_board) == (3, -1)
    assert found[2].waits == 0b101000
    assert (found[0].write_board, found[0].waits) == (-1, 0)


def test_length_of_code() -> None:
    with pytest.raises(ValueError, match="expected 128 for 8 instructions"):
        parse(LISTING, bytes(112))


def test_gap() -> None:
    with pytest.raises(ValueError, match="instruction 1 stands at 0x20, expected 0x10"):
        parse(LISTING.replace("        /*0010*/                   LDS.U.128 R8, [R4+0x10] ;\n", ""))


def test_loops() -> None:
    found = parse(LISTING)
    assert loops(found) == [Loop(1, 5)]
    assert tensor_loop(found) == Loop(1, 5)


def test_loop_is_not_a_slow_path_that_jumps_back() -> None:
    """A slow path behind the kernel closes a larger cycle over a part of the loop's products."""
    product = "HMMA.884.F32.F32.STEP0 R12, R8.ROW, R16.COL, R12"
    lines = [product, product, "@P0 BRA 0x0", "EXIT", "MOV R1, R2", "BRA 0x10"]
    found = parse("\n".join(f"        /*{16 * n:04x}*/   {line} ;" for n, line in enumerate(lines)))
    assert loops(found) == [Loop(0, 2), Loop(1, 5)]
    assert tensor_loop(found) == Loop(0, 2)


def test_no_loop() -> None:
    assert tensor_loop(parse("        /*0000*/   EXIT ;\n        /*0010*/   BRA 0x10 ;")) is None
