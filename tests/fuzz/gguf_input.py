"""A GGUF file made of bytes: read to its end, or refused in one line, with memory in proportion to the file.

Nothing else may happen: no other exception than `ModelError`, no hang, no allocation that the file's bytes
do not account for.
"""

from __future__ import annotations

import contextlib
import tempfile
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from fastattention.models import ModelError
from fastattention.models.gguf import ModelFile
from fastattention.models.llama import Llama
from fastattention.models.tokenizer import Tokenizer

#: Python needs some hundred bytes for each value of an array of bytes.
BYTES_A_BYTE, SPARE = 2000, 16 << 20


class FoundError(AssertionError):
    """What should not have happened."""


def load(data: bytes, path: Path, *, measured: bool = False) -> str:
    """Write the bytes to `path` and read them as a model; return what came of it, or raise a FoundError.

    Measuring memory takes several times as long.
    """
    path.write_bytes(data)
    with warnings.catch_warnings(), _measured(len(data)) if measured else contextlib.nullcontext():
        warnings.simplefilter("error")
        return _load(path)


def _load(path: Path) -> str:
    came: list[str] = []
    try:
        file = ModelFile(path)
    except ModelError as error:
        _check_line(error, path)
        return "refused"
    except BaseException as error:
        raise FoundError(f"opening: {type(error).__name__}: {error}") from error
    for part in (_values, _tensors, Tokenizer, Llama.from_file):
        try:
            part(file)
            came.append("read")
        except ModelError as error:
            _check_line(error, path)
            came.append("refused")
        except BaseException as error:
            raise FoundError(f"{part.__name__}: {type(error).__name__}: {error}") from error
    return " ".join(came)


def _values(file: ModelFile) -> None:
    for key in tuple(file._fields):
        with contextlib.suppress(ModelError):
            file.get(key)


def _tensors(file: ModelFile) -> None:
    for name, tensor in tuple(file._tensors.items()):
        with contextlib.suppress(ModelError):
            array = file.tensor(name, tuple(int(size) for size in reversed(tensor.shape)))
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise AssertionError(f"tensor {name}: {array.dtype}, or not finite")


def _check_line(error: ModelError, path: Path) -> None:
    text = str(error)
    if "\n" in text or str(path) not in text or len(text) > 600:
        raise FoundError(f"not one line that names the file: {text!r:.900}") from error


@contextlib.contextmanager
def _measured(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > SPARE + BYTES_A_BYTE * size:
        raise FoundError(f"{peak >> 20} MiB for a file of {size} bytes")


def _write(path: Path, values: dict[str, object], tensors: dict[str, np.ndarray], quantised: str) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    kind = gguf.GGMLQuantizationType[quantised]
    for name, array in tensors.items():
        if array.ndim == 2 and array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 and quantised != "F32":
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def seeds() -> dict[str, bytes]:
    """Return small files to begin with: two whole models, and one of metadata of every kind."""
    rng = np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_end|>", "h", "e", "he", "l", "o", "Ġ"]
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, hidden, quantised in (("model-f32", 4, "F32"), ("model-q8", 32, "Q8_0")):
            half = hidden // 2
            values: dict[str, object] = {
                "llama.block_count": 1, "llama.context_length": 16, "llama.embedding_length": hidden,
                "llama.feed_forward_length": hidden, "llama.attention.head_count": 2,
                "llama.attention.head_count_kv": 1, "llama.rope.freq_base": 1000.0,
                "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [3, 3, *[1] * 6], "tokenizer.ggml.merges": ["h e"],
                "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
            }  # fmt: skip
            shapes: dict[str, tuple[int, ...]] = {
                "token_embd.weight": (8, hidden), "output_norm.weight": (hidden,),
                "blk.0.attn_norm.weight": (hidden,), "blk.0.attn_q.weight": (hidden, hidden),
                "blk.0.attn_k.weight": (half, hidden), "blk.0.attn_v.weight": (half, hidden),
                "blk.0.attn_output.weight": (hidden, hidden), "blk.0.ffn_norm.weight": (hidden,),
                "blk.0.ffn_gate.weight": (hidden, hidden), "blk.0.ffn_up.weight": (hidden, hidden),
                "blk.0.ffn_down.weight": (hidden, hidden),
            }  # fmt: skip
            tensors = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
            made[name] = _write(Path(folder) / name, values, tensors, quantised)
        values = {"a": 3, "b": 0.5, "c": "text", "d": [1, 2], "e": ["x", "yz"], "f": [[1, 2], [3]]}
        for kind in ("Q4_0", "Q5_1", "Q6_K", "BF16", "IQ4_NL"):
            tensors = {"t": rng.standard_normal((1, 256)).astype(np.float32)}
            try:
                made[kind.lower()] = _write(Path(folder) / kind, values, tensors, kind)
            except NotImplementedError:  # the package can only read it
                continue
    return made
