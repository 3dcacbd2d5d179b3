"""Hugging Face transformers' offloaded cache on the same shape, in a process of its own.

A process of its own gives back all memory that PyTorch has pinned or kept, and what it raises is a finding,
not the end of the run.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .cases import OffloadCase

if TYPE_CHECKING:
    from ...offload.shapes import ModelShape

__all__ = ["ask", "measure"]

_SECONDS = 120  # more means that the child hangs
_STEPS = 6
_WARM = 4  # the first tokens wait for pinned memory to be found


def ask(case: OffloadCase, shape: ModelShape, seed: int = 0) -> dict[str, Any]:
    """Run the peer on a case, its weights and tokens drawn by `seed`.

    Returns
    -------
    dict
        "tokens": seconds of each decoded token, "gpu_tokens": likewise with the cache on the GPU, "cache":
        the class, "versions"; or "missing", why there are no figures.
    """
    names = ("hidden", "feed_forward", "heads", "kv_heads", "vocab_size")
    order = {**asdict(case), **{name: getattr(shape, name) for name in names}, "seed": seed}
    command = [sys.executable, "-m", __name__, json.dumps(order)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"missing": f"no answer within {_SECONDS} seconds"}
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(order: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    """Decode some tokens on a cache filled with random rows, offloaded and not.

    Parameters
    ----------
    order : dict
        "layers", "context", "batch", "seed" and the sizes of the model.
    device : {"cuda", "cpu"}
        On the CPU nothing is offloaded, as there is nowhere to go.
    """
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    if device == "cuda" and not torch.cuda.is_available():
        return {"missing": f"torch {torch.__version__} finds no CUDA device"}
    torch.manual_seed(order["seed"])
    config = transformers.LlamaConfig(
        vocab_size=order["vocab_size"], hidden_size=order["hidden"], intermediate_size=order["feed_forward"],
        num_hidden_layers=order["layers"], num_attention_heads=order["heads"],
        num_key_value_heads=order["kv_heads"], max_position_embeddings=order["context"] + 64,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            model = transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    found: dict[str, Any] = {
        "versions": {"PyTorch": str(torch.__version__), "transformers": str(transformers.__version__)}
    }
    with torch.no_grad():
        cache, found["cache"] = _cache(transformers, config, offloaded=device == "cuda")
        found["tokens"] = _decode(torch, model, cache, order, device)
        del cache
        if device == "cuda":
            torch.cuda.empty_cache()
            cache, _ = _cache(transformers, config, offloaded=False)
            found["gpu_tokens"] = _decode(torch, model, cache, order, device)
    found["gpu_bytes"] = int(torch.cuda.max_memory_allocated()) if device == "cuda" else 0
    return found


def _cache(transformers: Any, config: Any, offloaded: bool) -> tuple[Any, str]:
    """Return an empty cache, and how it was made; which way there is depends on the version."""
    if not offloaded:
        return transformers.DynamicCache(config=config), "DynamicCache"
    try:
        return transformers.DynamicCache(config=config, offloading=True), "DynamicCache(offloading=True)"
    except TypeError:  # before 4.56
        return transformers.OffloadedCache(), "OffloadedCache()"


def _decode(torch: Any, model: Any, cache: Any, order: dict[str, Any], device: str) -> list[float]:
    config = model.config
    shape = (
        order["batch"],
        config.num_key_value_heads,
        order["context"],
        config.hidden_size // config.num_attention_heads,
    )
    for layer in range(config.num_hidden_layers):
        k, v = (torch.randn(shape, dtype=torch.float16, device=device) for _ in range(2))
        cache.update(k, v, layer)
    tokens = torch.randint(config.vocab_size, (order["batch"], 1), device=device)
    times = []
    for _ in range(_WARM + _STEPS):
        _wait(torch, device)
        start = time.perf_counter()
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
        _wait(torch, device)
        times.append(time.perf_counter() - start)
        tokens = logits[:, -1].argmax(-1, keepdim=True)
    assert cache.get_seq_length() == order["context"] + _WARM + _STEPS
    return times[_WARM:]


def _wait(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _main() -> None:
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except ImportError as problem:
        print(json.dumps({"missing": f"not installed ({problem})"}))


if __name__ == "__main__":
    _main()
