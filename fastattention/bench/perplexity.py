"""What rounding the KV cache costs a real model: its perplexity on real text, cache dtype by cache dtype.

The model reads a text that it did not write and says at each token how likely it held that token to be.
Perplexity is ``exp(-mean log p)``: as uncertain as a choice among that many equally likely tokens. The text
goes through the KV cache in chunks, so that every query attends to keys and values as the cache keeps them,
those of its own token included. Nothing but the cache differs between the rows of the result.

The text is "The standard type hierarchy" of the Python language reference, which every Python brings along
(``pydoc_data.topics``, under the licence of Python): continuous technical prose of some 9,000 tokens. It
changes a little from one version of Python to the next, so the result names the version and a checksum.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config import get_isa, set_isa, threads
from .environment import describe

if TYPE_CHECKING:
    from ..models.llama import Llama

__all__ = ["CACHES", "perplexity", "run"]

#: Cache dtypes compared; the first is what the others are held to.
CACHES = ("float32", "float16", "bfloat16", "int8")

TOPIC = "types"
TOKENS = 4096
CHUNK = 512
MOST_FROM_INT8 = 0.01  # relative difference of perplexity, either way, that int8 may make


def perplexity(
    model: Llama,
    tokens: Sequence[int] | NDArray[np.int64],
    cache_dtype: str,
    *,
    chunk: int = CHUNK,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Return the perplexity of a model on a text, with its keys and values kept in `cache_dtype`.

    Parameters
    ----------
    model : Llama
    tokens : sequence of int
        (S,), S at least 2, within the model's context.
    cache_dtype : str
        As of `KVCache`.
    chunk : int
        Tokens that go through the layers at a time.
    num_threads : int, optional
        Threads of the attention.
    progress : callable, optional
        Called with the number of tokens done.

    Returns
    -------
    float
        ``exp(-mean log p)`` over all tokens but the first.
    """
    from ..models.llama import Session

    session = Session(
        model, context=len(tokens), cache_dtype=cache_dtype, chunk=chunk, num_threads=num_threads
    )
    return float(np.exp(-np.mean(session.score(tokens, progress))))


def run(args: argparse.Namespace) -> int:
    """Run ``fastattention bench --perplexity``; return 0, 1 when int8 is off by over 1 %, 2 for no model."""
    from ..models.errors import ModelError

    try:
        if args.isa:
            set_isa(args.isa)
    except ValueError as problem:
        print(f"fastattention bench: --isa: {problem}", file=sys.stderr)
        return 2
    try:
        result = measure(args.threads)
    except ModelError as error:
        print(f"fastattention bench: error: {error}", file=sys.stderr)
        return 2
    finally:
        if args.isa:
            set_isa(None)
    path = args.json or Path("results") / f"perplexity-{result['model'].lower()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in result["rows"]:
        print(f"{row['cache']:<9} perplexity {row['perplexity']:8.4f}  {100 * row['relative']:+.4f} %")
    print(f"written to {path}")
    return int(
        any(row["cache"] == "int8" and abs(row["relative"]) > MOST_FROM_INT8 for row in result["rows"])
    )


def measure(num_threads: int | None = None, length: int = TOKENS) -> dict[str, Any]:
    """Return the perplexity of SmolLM2-135M-Instruct with each of `CACHES`, ready for JSON.

    Raises
    ------
    ModelError
        The model or a package it needs is not installed.
    """
    from pydoc_data.topics import topics

    from ..models.errors import require
    from ..models.gguf import ModelFile, default_model
    from ..models.llama import Llama
    from ..models.tokenizer import Tokenizer

    for package in ("gguf", "tokenizers", "threadpoolctl"):
        require(package)
    text = topics[TOPIC]
    file = ModelFile(default_model())
    tokens = Tokenizer(file).encode(text)[:length]
    model = Llama.from_file(file)
    count = threads() if num_threads is None else num_threads
    with require("threadpoolctl").threadpool_limits(count, user_api="blas"):
        found = {}
        for dtype in CACHES:
            found[dtype] = perplexity(model, tokens, dtype, num_threads=count, progress=_reporter(dtype))
    exact = found[CACHES[0]]
    return {
        "kind": "perplexity",
        "model": file.path.stem,
        "text": {
            "name": f"pydoc_data.topics[{TOPIC!r}]: the Python language reference on its types",
            "python": platform.python_version(),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
        "tokens": len(tokens),
        "chunk": CHUNK,
        "rows": [
            {"cache": dtype, "perplexity": value, "relative": value / exact - 1}
            for dtype, value in found.items()
        ],
        "environment": {
            **describe(get_isa()), "threads": count, "date": datetime.now(UTC).isoformat(timespec="seconds")
        },
    }  # fmt: skip


def _reporter(dtype: str) -> Callable[[int], None] | None:
    if not sys.stderr.isatty():
        return None
    return lambda done: print(f"\r{dtype} cache: {done} tokens", end="", file=sys.stderr, flush=True)
