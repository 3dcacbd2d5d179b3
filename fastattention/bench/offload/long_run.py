"""A context that the GPU's memory cannot hold: refused without cooperation, then run with it.

The GPU is held to the memory of an older card by the limit of CuPy's pool. The prompt is random tokens, all
of it goes through the decoder, and what is decoded behind it is what the decoder says.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...models.device_llama import DeviceLlama
from ...models.offloaded import OffloadedSession
from ...offload.hardware import Hardware
from ...offload.shapes import ModelShape
from .plans import largest_without, plan_freely
from .results import LongRun
from .sampler import Sampler, limited, memory_of

__all__ = ["CONTEXT", "GPU_LIMIT", "MODEL", "STEPS", "run_long"]

MODEL = "llama-3-8b"
CONTEXT = 262144
STEPS = 32
GPU_LIMIT = 32 * 2**30

_DTYPE = "float16"


def run_long(
    device: Any,
    shape: ModelShape,
    hardware: Hardware,
    *,
    context: int = CONTEXT,
    steps: int = STEPS,
    gpu_limit: int = GPU_LIMIT,
    threads: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] | None = None,
) -> LongRun:
    """Refuse, plan, fill, decode; watch the memory.

    Parameters
    ----------
    device : Device
        See `fastattention.runtime`. On a GPU, CuPy's pool is limited for as long as this runs.
    shape : ModelShape
    hardware : Hardware
        This machine, as the planner measured it.
    context, steps : int
        Tokens of the prompt, and to decode.
    gpu_limit : int
        Bytes for the pool, and for the planner.
    threads : int, optional
        Of CPU attention.
    seed : int
        Of weights and prompt.
    say : callable
        Called with what happens next.
    progress : callable, optional
        Called with the prompt tokens done, and all.

    Raises
    ------
    ValueError
        Without cooperation the context would fit, so there is nothing to show; or it fits nowhere.
    RuntimeError
        The decoder's numbers are not finite.
    """
    capacity = context + steps
    held = dataclasses.replace(hardware, gpu_memory=gpu_limit)
    refused, largest = largest_without(shape, held, context=capacity, dtype=_DTYPE)
    say(f"without cooperation: {refused}")
    plan, predicted_prefill, predicted_token = plan_freely(
        shape, held, context=capacity, dtype=_DTYPE, threads=threads
    )
    found = LongRun(
        shape.name, context, gpu_limit, refused, largest, plan=json.loads(plan.to_json()),
        predicted_prefill=predicted_prefill, predicted_token=predicted_token,
    )  # fmt: skip
    with limited(device, gpu_limit), Sampler(memory_of(device)) as sampler:
        sampler.phase = "weights"
        say("weights")
        model = DeviceLlama.random(shape, device, _DTYPE, seed, embedding=plan.embedding)
        _give_back(device)  # what was drawn on the way to the weights
        sampler.phase = "cache"
        say("cache and prefill")
        with OffloadedSession(model, plan, device) as session:
            rng = np.random.default_rng(seed)
            prompt = rng.integers(0, shape.vocab_size, (1, context))
            sampler.phase = "prefill"

            def done(tokens: int) -> None:
                sampler.tokens = tokens
                if progress is not None:
                    progress(tokens, context)

            start = time.perf_counter()
            logits = session.forward(prompt, progress=done)
            found.prefill = time.perf_counter() - start
            sampler.phase, sampler.tokens = "decode", context
            say("decode")
            for step in range(steps):
                if not np.isfinite(logits).all():
                    raise RuntimeError(f"the logits of token {context + step} are not finite")
                token = logits.argmax(axis=-1)[:, None]
                start = time.perf_counter()
                logits = session.forward(token)
                found.tokens.append(time.perf_counter() - start)
                sampler.tokens = context + step + 1
            sampler.phase = "close"
        del model
    found.samples, found.peaks = sampler.samples, sampler.peaks
    return found


def _give_back(device: Any) -> None:
    device.wait()
    if device.name != "numpy":
        device.xp.get_default_memory_pool().free_all_blocks()
