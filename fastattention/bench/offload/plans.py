"""What the benchmark asks of the planner: one placement for all layers, or the best; with its predictions."""

from __future__ import annotations

from ...offload.hardware import Hardware
from ...offload.plan import DoesNotFit, OffloadPlan, plan_offload
from ...offload.shapes import ModelShape

__all__ = ["largest_without", "plan_freely", "plan_way"]

#: The planner's names of ways, by where they put a layer.
_WAYS = {"gpu": "gpu", "upload": "classical", "host": "cooperative", "split": "split"}


def plan_way(
    shape: ModelShape,
    hardware: Hardware,
    *,
    context: int,
    batch: int,
    place: str,
    threads: int | None,
    dtype: str,
) -> tuple[OffloadPlan, float | None]:
    """Return the plan with every layer in the same place, and the seconds a token that it foretells.

    Parameters
    ----------
    place : {"gpu", "host", "split", "upload"}
    threads : int, optional
        Of CPU attention; default: the planner's own choice.
    """
    plan = plan_offload(
        shape, hardware, context=context, batch=batch, kv_dtype=dtype, weight_dtype=dtype, way=_WAYS[place],
        gpu_layers=shape.layers if place == "gpu" else 0, threads=threads,
    )  # fmt: skip
    assert set(plan.placement) == {place}, plan.placement
    return plan, plan.token_seconds


def plan_freely(
    shape: ModelShape, hardware: Hardware, *, context: int, dtype: str, threads: int | None
) -> tuple[OffloadPlan, float | None, float | None]:
    """Return the best plan, and the seconds that it foretells for the prompt and for a token."""
    plan = plan_offload(shape, hardware, context=context, kv_dtype=dtype, weight_dtype=dtype, threads=threads)
    return plan, plan.prefill_seconds, plan.token_seconds


def largest_without(shape: ModelShape, hardware: Hardware, *, context: int, dtype: str) -> tuple[str, int]:
    """Return what the planner says to all layers on the GPU, and the largest context that fits so.

    Raises
    ------
    ValueError
        All layers fit.
    """
    try:
        plan_offload(shape, hardware, context=context, kv_dtype=dtype, weight_dtype=dtype, way="gpu")
    except DoesNotFit as problem:
        return str(problem), int(problem.largest_context)
    raise ValueError(f"{context} tokens of {shape.name} fit on the GPU without cooperation")
