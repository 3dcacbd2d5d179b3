"""Where a model's KV cache is to lie when it outgrows the GPU: shapes, machines, and a plan for the two."""

from .detect import detect
from .hardware import PRESETS, Hardware, hardware
from .plan import DoesNotFit, OffloadPlan, plan_offload
from .shapes import SHAPES, ModelShape, model_shape

__all__ = [
    "PRESETS", "SHAPES", "DoesNotFit", "Hardware", "ModelShape", "OffloadPlan", "detect", "hardware",
    "model_shape", "plan_offload",
]  # fmt: skip
