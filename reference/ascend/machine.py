"""An NPU with decoupled Cube and Vector cores, as numbers: buffers, cores, rates, and where each comes from.

No such card was at hand. Every figure says whether it is published, fitted to published run times, or
assumed; ``Machine.sources()`` lists them. Rates are of one core. "Platform file" is the configuration that
Huawei's CANN runtime ships for this chip (``platform_config/Ascend910B2C.ini``), "published run times" are
those of the flash attention in CANN's ``pto-isa`` on Ascend 910B2 (`MEASURED`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

_PLATFORM = "platform file"
_ASSUMED = "assumed"

#: Published run times in microseconds of one head, head size 128, not causal, on Ascend 910B2, by (Sq, Sk):
#: the tables of the README of pto-isa and of its demos/torch_jit/flash_atten. 128 rows are one core's work.
MEASURED: dict[tuple[int, int], float] = {
    (128, 1024): 19.200, (128, 2048): 23.420, (128, 4096): 38.317, (128, 8192): 68.778,
    (1024, 8192): 76.855, (2048, 8192): 107.780, (4096, 4096): 88.902, (8192, 8192): 292.626,
    (16384, 16384): 909.058, (32768, 32768): 3262.645,
}  # fmt: skip


def _from(value: Any, source: str) -> Any:
    return field(default=value, metadata={"source": source})


@dataclass(frozen=True)
class Machine:
    """An Ascend 910B2; change any parameter with `dataclasses.replace`. Bytes, cycles, and bytes a cycle.

    Examples
    --------
    >>> machine = Machine()
    >>> f"{machine.peak_flops / 1e12:.1f} TFLOP/s"
    '353.9 TFLOP/s'
    >>> machine.sources()["flag_cross"]
    'assumed'
    """

    clock_hz: float = _from(1.8e9, _PLATFORM)
    cube_cores: int = _from(24, _PLATFORM)
    vectors_per_cube: int = _from(2, _PLATFORM)  # 48 Vector cores
    cube_macs: int = _from(16**3, _PLATFORM)  # multiply-adds a cycle, 16-bit operands
    l0a: int = _from(64 << 10, _PLATFORM)
    l0b: int = _from(64 << 10, _PLATFORM)
    l0c: int = _from(128 << 10, _PLATFORM)
    l1: int = _from(512 << 10, _PLATFORM)
    ub: int = _from(192 << 10, _PLATFORM)
    l2: int = _from(192 << 20, _PLATFORM)
    hbm: int = _from(64 << 30, "published: 64 GB (CANN ops-transformer, migration guide)")
    hbm_bytes_per_s: float = _from(1.6e12, "published: 1.6 TB/s (as `hbm`), shared by all cores")
    hbm_rate: int = _from(32, _PLATFORM)  # of one core, either way
    l2_read: int = _from(110, _PLATFORM)
    l2_write: int = _from(86, _PLATFORM)
    l1_to_l0a: int = _from(512, _PLATFORM)
    l1_to_l0b: int = _from(256, _PLATFORM)
    l0c_read: int = _from(256, _PLATFORM)
    ub_write: int = _from(64, _PLATFORM)  # to L2 or memory
    vector_bytes: int = _from(256, _PLATFORM)  # 128 lanes of 16 bits, the published 22 TFLOP/s
    softmax_passes: float = _from(
        11.0, "fitted to published run times: cycles each further key costs one core"
    )
    mask_passes: float = _from(2.0, _ASSUMED)
    rescale_passes: float = _from(3.0, _ASSUMED)
    copy_startup: int = _from(64, _ASSUMED)  # of a copy from or to L2 or memory
    inner_startup: int = _from(16, _ASSUMED)  # of a copy within a core
    cube_startup: int = _from(32, _ASSUMED)  # of a product of tiles
    vector_startup: int = _from(16, _ASSUMED)  # of each pass over a piece
    flag_local: int = _from(32, _ASSUMED)  # between units of one core
    flag_cross: int = _from(1000, _ASSUMED)  # between Cube and Vector cores, by way of L2
    launch: int = _from(2500, "fitted to published run times: what is left at 2048 keys and more")
    dispatch: int = _from(9000, _ASSUMED)  # between two operators of eager code, beyond `launch`

    @property
    def peak_flops(self) -> float:
        """FLOP/s of all Cube cores."""
        return 2.0 * self.cube_macs * self.cube_cores * self.clock_hz

    @property
    def hbm_share(self) -> float:
        """Bytes a cycle that one Cube core with its Vector cores has of memory when all are at it."""
        return min(float(self.hbm_rate), self.hbm_bytes_per_s / self.clock_hz / self.cube_cores)

    def seconds(self, cycles: float) -> float:
        """Return how long these cycles take."""
        return cycles / self.clock_hz

    @staticmethod
    def sources() -> dict[str, str]:
        """Return where each parameter's default comes from."""
        return {f.name: f.metadata["source"] for f in fields(Machine)}
