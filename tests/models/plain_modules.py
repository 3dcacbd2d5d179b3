"""Modules with the names and calls of the runtime's and the planner's, as plain as can be."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .plain_cache import PlainCache, PlainDevice

_MODEL = (
    "name", "layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim", "vocab_size", "tied",
    "context", "rope_base", "norm_epsilon", "gated", "note",
)  # fmt: skip


def shape(**sizes: Any) -> SimpleNamespace:
    assert set(sizes) == set(_MODEL)
    return SimpleNamespace(**sizes)


class Plan(SimpleNamespace):
    def to_json(self) -> str:
        return json.dumps({**vars(self), "model": vars(self.model)})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        found = json.loads(text)
        return cls(**{**found, "model": SimpleNamespace(**found["model"])})


def plan_offload(
    model: Any, hardware: Any, *, context: int, batch: int = 1, kv_dtype: str, weight_dtype: str,
    way: str = "auto", gpu_layers: int | None = None, threads: int | None = None,
) -> Plan:  # fmt: skip
    """The first layers' caches on the device."""
    assert hardware == "hardware of v100-16gb"
    if context > 100_000:
        raise ValueError("nothing fits;\n  the largest context is 100000")
    if way not in ("auto", "host", "split", "upload"):
        raise ValueError(f"way: got {way!r}")
    on_gpu = model.layers if gpu_layers is None else gpu_layers
    if on_gpu > model.layers:
        raise ValueError(f"gpu_layers: expected 0 to {model.layers}")
    other = "host" if way == "auto" else way
    placement = ["gpu"] * on_gpu + [other] * (model.layers - on_gpu)
    return Plan(
        model=model, context=context, batch=batch, kv_dtype=kv_dtype, weight_dtype=weight_dtype,
        placement=placement, halves=1, chunk=16, threads=threads,
    )  # fmt: skip


#: Plans that caches were made of, and the devices.
made: list[Any] = []


class Cache(PlainCache):
    @classmethod
    def from_plan(cls, plan: Plan, device: Any, *, compute_dtype: Any = None) -> Cache:
        made.append(plan)
        m = plan.model
        return cls(
            m.layers, plan.batch, m.heads, m.kv_heads, m.head_dim, capacity=plan.context, chunk=plan.chunk,
            halves=plan.halves, dtype=plan.kv_dtype,
        )  # fmt: skip


def open_device(name: str) -> PlainDevice:
    if name != "numpy":
        raise RuntimeError("no CUDA device\nthat works")
    device = PlainDevice()
    device.name = "numpy"  # type: ignore[attr-defined]
    return device


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them in the place of the real ones until the test ends."""
    made.clear()
    contents: dict[str, dict[str, Any]] = {
        "runtime": {}, "runtime.device": {"open_device": open_device},
        "runtime.cooperative": {"CooperativeCache": Cache}, "offload": {},
        "offload.plan": {"OffloadPlan": Plan, "plan_offload": plan_offload},
        "offload.shapes": {"ModelShape": shape},
        "offload.hardware": {"hardware": lambda name: f"hardware of {name}"},
    }  # fmt: skip
    for name, attributes in contents.items():
        module = ModuleType(f"fastattention.{name}")
        vars(module).update(attributes)
        if "." not in name:
            module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
