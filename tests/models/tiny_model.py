"""Writes a small model with random weights in GGUF."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, LAYERS, CONTEXT = 64, 96, 4, 2, 3, 96
HEAD_DIM = HIDDEN // HEADS

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "r l", "Ġwo rl", "Ġworl d", "Ġ Ġ")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_characters() -> list[str]:
    """Return what stands for each byte, 0 to 255, in a byte-level vocabulary, by GPT-2's rule."""
    characters, next_free = [], 0x100
    for byte in range(256):
        if chr(byte).isprintable() and byte not in (0x20, 0xA0, 0xAD):
            characters.append(chr(byte))
        else:
            characters.append(chr(next_free))
            next_free += 1
    return characters


def vocabulary() -> list[str]:
    """Return the tokens: control tokens, bytes, and what the merges make."""
    return [*CONTROL, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]


def metadata() -> dict[str, Any]:
    """Return all metadata but the architecture."""
    tokens = vocabulary()
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 1000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the weights, outputs in rows; gains away from 1 so that leaving one out shows."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        scale = 1.5 / np.sqrt(columns)  # keeps the activations of one layer about as large as the last one's
        return random.normal(0, scale, (rows, columns)).astype(np.float32)

    def gain() -> np.ndarray:
        return random.uniform(0.5, 1.5, HIDDEN).astype(np.float32)

    weights = {"token_embd.weight": random.standard_normal((len(vocabulary()), HIDDEN)).astype(np.float32)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        weights[block + "attn_norm.weight"] = gain()
        weights[block + "attn_q.weight"] = matrix(HEADS * HEAD_DIM, HIDDEN)
        weights[block + "attn_k.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN)
        weights[block + "attn_v.weight"] = matrix(KV_HEADS * HEAD_DIM, HIDDEN)
        weights[block + "attn_output.weight"] = matrix(HIDDEN, HEADS * HEAD_DIM)
        weights[block + "ffn_norm.weight"] = gain()
        weights[block + "ffn_gate.weight"] = matrix(FEED_FORWARD, HIDDEN)
        weights[block + "ffn_up.weight"] = matrix(FEED_FORWARD, HIDDEN)
        weights[block + "ffn_down.weight"] = matrix(HIDDEN, FEED_FORWARD)
    weights["output_norm.weight"] = gain()
    return weights


def write(
    path: Path,
    *,
    architecture: str = "llama",
    change: Mapping[str, Any] | None = None,
    drop: Collection[str] = (),
    add: Mapping[str, np.ndarray] | None = None,
    quantised: Collection[str] = (),
) -> None:
    """Write the model.

    `change` replaces or adds metadata, `drop` leaves out metadata or tensors by name, `add` replaces or adds
    tensors, `quantised` tensors are stored in 8 bits (Q8_0).
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**metadata(), **(change or {})}.items():
        if key in drop:
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    for name, array in {**tensors(), **(add or {})}.items():
        if name in drop:
            continue
        if name in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
