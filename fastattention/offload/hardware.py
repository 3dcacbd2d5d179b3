"""Machines for the planner: memories, and what moves a second.

Each number has its source, or is called assumed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

__all__ = ["PRESETS", "Hardware", "hardware"]

_GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """A GPU and its share of a host.

    Attributes
    ----------
    name : str
    gpu_memory, gpu_reserved : int
        Bytes of the GPU, and those of them that CUDA's context, its libraries and compiled kernels take.
    gpu_bandwidth : float
        Bytes a second that reading the GPU's memory reaches.
    gpu_flops, gpu_attention_flops : float
        Operations a second in float16 that matrix products and causal attention reach.
    host_memory, host_reserved : int
        Bytes of this GPU's share of host memory, and those of them that others use.
    bus : float
        Bp: bytes a second from registered host memory to the GPU.
    cpu : float
        Bc: bytes of a cache a second that CPU attention reads, alone.
    host_bandwidth : float
        Bd: bytes a second of host memory that CPU attention and the bus reach together.
    latency : float
        Seconds of a trip to the CPU and back for one layer, without reading its cache.
    queue : float
        Seconds in which a program in Python queues a layer's work for the GPU.
    source : str
        Where the numbers come from.
    """

    name: str
    gpu_memory: int
    gpu_reserved: int
    gpu_bandwidth: float
    gpu_flops: float
    gpu_attention_flops: float
    host_memory: int
    host_reserved: int
    bus: float
    cpu: float
    host_bandwidth: float
    latency: float
    queue: float
    source: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "source"):
                if not isinstance(value, str):
                    raise ValueError(f"{field.name}: expected a text, got {value!r}")
                continue
            least = (
                0
                if field.name in ("gpu_reserved", "host_memory", "host_reserved", "latency", "queue")
                else None
            )
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (value <= 0 if least is None else value < 0):
                bound = "above 0" if least is None else "of at least 0"
                raise ValueError(f"{field.name}: expected a number {bound}, got {value!r}")

    def replace(self, **numbers: Any) -> Hardware:
        """Return the machine with other numbers.

        Raises
        ------
        TypeError
            There is no such number.
        ValueError
            One is not above 0.
        """
        known = {field.name for field in dataclasses.fields(self)}
        for name in numbers:
            if name not in known:
                raise TypeError(f"{name}: no number of a machine; there are {', '.join(sorted(known))}")
        return dataclasses.replace(self, **numbers)


_V100_HOST = (
    "one in eight of a host with eight V100s and 768 GB: of its 196 GB/s (measured, FastAttention's review) "
    "each has 24.5 GB/s, and 12 GB/s of PCIe 3; the GPU's own memory reaches 88 % of its 900 GB/s, products "
    "90 and causal attention at D=128 20 TFLOP/s (published); what CUDA takes, a trip to the CPU, and what "
    "queueing takes: assumed"
)
_V100: dict[str, Any] = {
    "gpu_reserved": 450 * 2**20, "gpu_bandwidth": 790e9, "gpu_flops": 90e12, "gpu_attention_flops": 20e12,
    "host_memory": 96 * 10**9, "host_reserved": 4 * 10**9, "bus": 12e9, "cpu": 24.5e9,
    "host_bandwidth": 24.5e9, "latency": 60e-6, "queue": 250e-6, "source": _V100_HOST,
}  # fmt: skip

#: Machines by name.
PRESETS = {
    machine.name: machine
    for machine in (
        Hardware("v100-16gb", 16 * _GIB, **_V100),
        Hardware("v100-32gb", 32 * _GIB, **_V100),
        Hardware(
            "t4", 15 * _GIB, 400 * 2**20, 250e9, 25e12, 8e12, 60 * 10**9, 4 * 10**9, 12e9, 18e9, 25e9,
            80e-6, 300e-6,
            "a cloud's T4 with 16 virtual cores: PCIe 3; its memory reaches 250 of 320 GB/s, products 25 of "
            "65 TFLOP/s at 70 W; all assumed",
        ),
        Hardware(
            "rtx-3090", 24 * _GIB, 500 * 2**20, 840e9, 65e12, 45e12, 60 * 10**9, 6 * 10**9, 25e9, 36e9, 40e9,
            50e-6, 200e-6,
            "a desktop with two channels of DDR4-3200 (40 of 51 GB/s) and PCIe 4; the card reaches 840 of "
            "936 GB/s and 65 of 71 TFLOP/s; all assumed",
        ),
        Hardware(
            "h200", 139 * _GIB, 600 * 2**20, 4.15e12, 800e12, 310e12, 125 * 10**9, 6 * 10**9, 55e9, 110e9,
            140e9, 60e-6, 200e-6,
            "measured on a virtual machine of 16 cores with one H200: registered memory up 55 GB/s, CPU "
            "attention 105 to 117 GB/s, both at once 143",
        ),
    )
}  # fmt: skip


def hardware(name: str) -> Hardware:
    """Return a machine by name.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"hardware: expected one of {', '.join(PRESETS)}, got {name!r}") from None
