"""A decoder of the LLaMA family: matrices by NumPy and its BLAS, attention and KV cache by this library.

Each layer is x += Wo attention(rope(Wq h), rope(Wk h), Wv h) with h = rmsnorm(x), then
x += Wdown (silu(Wgate h) * Wup h) with h = rmsnorm(x) again (Touvron et al., arXiv 2302.13971), in float32.

What makes it quick, none of which changes the result beyond rounding:

- Matrices that read the same input are stacked into one product: query, key and value; gate and up.
- The gain vector of an RMSNorm is multiplied into the matrix behind it when the file is
  loaded, so that the norm itself is one number a row.
- Every step writes into buffers made once, for a chunk of the prompt whose activations stay in the cache.
- Only the last position goes through the output matrix, which holds a fifth of the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..cache import KVCache
from .errors import ModelError
from .gguf import ModelFile
from .sizes import Config

__all__ = ["Config", "Llama", "Session"]

FloatArray = NDArray[np.float32]

# Positions scored at a time: their logits, for a vocabulary of 50,000, take 25 MB.
_SCORED_ROWS = 128


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer, each norm's gain already multiplied in.

    Inputs stand in rows, the other way round than in the file: OpenBLAS multiplies by that layout a few
    percent faster, one row or many. The gate is halved, see `Session._feed_forward`.
    """

    qkv: FloatArray  # (hidden, (heads + 2 kv_heads) * head_dim)
    out: FloatArray  # (heads * head_dim, hidden)
    gate_up: FloatArray  # (hidden, 2 * feed_forward)
    down: FloatArray  # (feed_forward, hidden)


class Llama:
    """The weights of a model, in float32.

    Parameters
    ----------
    config : Config
    embedding : ndarray
        (vocab, hidden).
    layers : sequence of Layer
    norm : ndarray
        (hidden,): gain of the last norm.
    head : ndarray
        (vocab, hidden): the output matrix, which may be the embedding itself.
    rope_divisors : ndarray, optional
        (rope_dim / 2,): divide each rotation frequency (Llama 3.1's long-context correction); None for none.
    """

    def __init__(
        self,
        config: Config,
        embedding: FloatArray,
        layers: Sequence[Layer],
        norm: FloatArray,
        head: FloatArray,
        rope_divisors: FloatArray | None = None,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = tuple(layers)
        self.norm = norm
        self.head = head
        self.rope_divisors = rope_divisors

    @classmethod
    def from_file(cls, file: ModelFile, progress: Callable[[int, int], None] | None = None) -> Llama:
        """Load a model: 4 bytes of memory a parameter.

        Parameters
        ----------
        file : ModelFile
            A GGUF file of the architecture "llama", of any quantisation that the package ``gguf`` knows.
        progress : callable, optional
            Called with (layers loaded, layers in all).

        Raises
        ------
        ModelError
            A tensor is missing, of the wrong shape, broken, or of no meaning to this decoder: a bias that
            would be left out must not go unnoticed.
        """
        config = Config.from_file(file)
        hidden, ffn = config.hidden, config.feed_forward
        q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
        used: set[str] = set()

        def tensor(name: str, *shape: int) -> FloatArray:
            used.add(name)
            return file.tensor(name, shape)

        embedding = tensor("token_embd.weight", config.vocab_size, hidden)
        layers = []
        for index in range(config.layers):
            block = f"blk.{index}."
            stack = partial(_stack, f"{file.path}: layer {index}")
            gain = tensor(block + "attn_norm.weight", hidden)
            qkv = stack(
                (gain, tensor(block + "attn_q.weight", q_rows, hidden)),
                (gain, tensor(block + "attn_k.weight", kv_rows, hidden)),
                (gain, tensor(block + "attn_v.weight", kv_rows, hidden)),
            )
            gain = tensor(block + "ffn_norm.weight", hidden)
            gate_up = stack(
                (gain * np.float32(0.5), tensor(block + "ffn_gate.weight", ffn, hidden)),
                (gain, tensor(block + "ffn_up.weight", ffn, hidden)),
            )
            out = np.ascontiguousarray(tensor(block + "attn_output.weight", hidden, q_rows).T)
            down = np.ascontiguousarray(tensor(block + "ffn_down.weight", hidden, ffn).T)
            layers.append(Layer(qkv, out, gate_up, down))
            if progress is not None:
                progress(index + 1, config.layers)
        norm = tensor("output_norm.weight", hidden)
        tied = "output.weight" not in file.tensor_names
        head = embedding if tied else tensor("output.weight", config.vocab_size, hidden)
        scaled = "rope_freqs.weight" in file.tensor_names
        divisors = tensor("rope_freqs.weight", config.rope_dim // 2) if scaled else None
        unknown = sorted(file.tensor_names - used)
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ModelError(f"{file.path}: tensor {unknown[0]}{more} has no place in this decoder")
        return cls(config, embedding, layers, norm, head, divisors)


def _stack(where: str, *parts: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Set pairs of gain (inputs,) and matrix (outputs, inputs) side by side: (inputs, all outputs).

    Raises
    ------
    ModelError
        A product is past the range of float32.
    """
    inputs = parts[0][1].shape[1]
    stacked = np.empty((inputs, sum(len(matrix) for _, matrix in parts)), np.float32)
    column = 0
    for gain, matrix in parts:
        try:
            with np.errstate(over="raise"):
                np.multiply(matrix.T, gain[:, None], out=stacked[:, column : column + len(matrix)])
        except FloatingPointError as error:
            raise ModelError(f"{where}: gains times weights overflow float32; the file is damaged") from error
        column += len(matrix)
    return stacked


class Session:
    """One sequence running through a model: its KV caches, its buffers, and the position reached.

    Parameters
    ----------
    model : Llama
    context : int
        Longest sequence, in tokens. The caches grow towards it as they fill.
    backend : str
        Which attention runs: "cpu", or "reference" for the specification in float64.
    num_threads : int, optional
        Threads of the attention; None for the library's own choice. The BLAS has a setting of its own.
    cache_dtype : dtype
        What keys and values are stored in: float32, float16, bfloat16 or int8.
    chunk : int
        How many tokens of a prompt go through the layers at a time.

    Attributes
    ----------
    position : int
        Tokens taken so far.
    attention_seconds : float
        Time spent in the KV cache and the attention so far.
    """

    def __init__(
        self,
        model: Llama,
        *,
        context: int,
        backend: str = "cpu",
        num_threads: int | None = None,
        cache_dtype: np.typing.DTypeLike = np.float32,
        chunk: int = 1024,
    ) -> None:
        config = model.config
        self.model = model
        self.context = context
        self.position = 0
        self.attention_seconds = 0.0
        self._backend = backend
        self._num_threads = num_threads
        self._caches = [
            KVCache(1, config.kv_heads, config.head_dim, dtype=cache_dtype, max_length=context)
            for _ in model.layers
        ]
        rows = min(chunk, context)
        self._chunk = rows
        q_cols, kv_cols = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self._x = np.empty((rows, config.hidden), np.float32)
        self._normed = np.empty((rows, config.hidden), np.float32)
        self._qkv = np.empty((rows, q_cols + 2 * kv_cols), np.float32)
        self._mixed = np.empty((rows, q_cols), np.float32)
        self._gate_up = np.empty((rows, 2 * config.feed_forward), np.float32)
        self._gated = np.empty((rows, config.feed_forward), np.float32)
        self._logits = np.empty(config.vocab_size, np.float32)
        frequencies = config.rope_base ** (-np.arange(0, config.rope_dim, 2) / config.rope_dim)
        if model.rope_divisors is not None:
            frequencies = frequencies / model.rope_divisors
        self._frequencies = frequencies  # (rope_dim / 2,) float64, radians a position

    def forward(
        self, tokens: Sequence[int] | NDArray[np.int64], progress: Callable[[int], None] | None = None
    ) -> FloatArray:
        """Take tokens into the sequence.

        Parameters
        ----------
        tokens : sequence of int
            (S,), S at least 1: a whole prompt, or the one token just chosen.
        progress : callable, optional
            Called with the number of tokens done after every chunk.

        Returns
        -------
        ndarray
            float32 (vocab,): logits for the token that follows the last one. The next call overwrites them.

        Raises
        ------
        ValueError
            No tokens, tokens outside the vocabulary, or more of them than the context has room for.

        Notes
        -----
        Whatever is raised, an interruption included, the session is left as it was before the call.
        """
        x = self._x
        with self._all_or_nothing():
            for x in self._chunks(self._ids(tokens), progress):  # noqa: B007 - the last one is what counts
                pass
        last = self._normalise(x[-1:])[0]
        last *= self.model.norm
        np.dot(self.model.head, last, out=self._logits)
        return self._logits

    def score(
        self, tokens: Sequence[int] | NDArray[np.int64], progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """Take tokens into the sequence and say how likely the model held each of them to be.

        Parameters
        ----------
        tokens, progress
            As in `forward`.

        Returns
        -------
        ndarray
            float64 (S - 1,): the natural logarithm of the probability of every token but the first, given all
            before it, those of earlier calls included.

        Raises
        ------
        ValueError
            As `forward`; and likewise the session is then as it was.
        """
        ids = self._ids(tokens)
        scores = np.empty(ids.size - 1)
        start = 0
        with self._all_or_nothing():
            for x in self._chunks(ids, progress):
                following = ids[start + 1 : start + 1 + len(x)]
                for at in range(0, len(following), _SCORED_ROWS):
                    targets = following[at : at + _SCORED_ROWS]
                    rows = self._normalise(x[at : at + len(targets)])
                    rows *= self.model.norm
                    logits = np.dot(rows, self.model.head.T)  # (rows, vocab)
                    logits -= logits.max(axis=1, keepdims=True)
                    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
                    total = np.exp(logits, out=logits).sum(axis=1, dtype=np.float64)
                    scores[start + at : start + at + len(targets)] = chosen - np.log(total)
                start += len(x)
        return scores

    def _ids(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or ids.size == 0:
            raise ValueError(f"tokens: expected at least one, in one axis; got shape {ids.shape}")
        if int(ids.min()) < 0 or int(ids.max()) >= self.model.config.vocab_size:
            raise ValueError(f"tokens: expected 0 <= token < {self.model.config.vocab_size}")
        if self.position + ids.size > self.context:
            raise ValueError(
                f"{self.position} + {ids.size} tokens do not fit the context of {self.context} tokens"
            )
        return ids

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Put the position back when the block raises.

        Interrupted half-way through the layers, the caches would no longer agree with one another.
        """
        before = self.position
        try:
            yield
        except BaseException:
            for cache in self._caches:
                cache.truncate(before)
            self.position = before
            raise

    def _chunks(self, ids: NDArray[np.int64], progress: Callable[[int], None] | None) -> Iterator[FloatArray]:
        """Yield the residual stream (rows, hidden) of one chunk after the other, in one buffer."""
        for start in range(0, ids.size, self._chunk):
            yield self._layers(ids[start : start + self._chunk])
            if progress is not None:
                progress(min(start + self._chunk, ids.size))

    def _layers(self, ids: NDArray[np.int64]) -> FloatArray:
        """Run one chunk (S,) through all layers; return the residual stream (S, hidden)."""
        config = self.model.config
        rows = ids.size
        x, qkv, mixed = self._x[:rows], self._qkv[:rows], self._mixed[:rows]
        # The ids are checked; mode "raise" would write through a buffer.
        np.take(self.model.embedding, ids, axis=0, out=x, mode="clip")

        heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
        # (S, heads + 2 kv_heads, D), and as attention wants it (1, heads, S, D): views, no copies.
        by_head = qkv.reshape(rows, heads + 2 * kv_heads, dim)
        q = by_head[None, :, :heads].transpose(0, 2, 1, 3)
        k = by_head[None, :, heads : heads + kv_heads].transpose(0, 2, 1, 3)
        v = by_head[None, :, heads + kv_heads :].transpose(0, 2, 1, 3)
        out = mixed.reshape(1, rows, heads, dim).transpose(0, 2, 1, 3)
        # GGUF files of this architecture pair neighbouring dimensions (2i, 2i + 1) for RoPE. A pair read as
        # one complex number is rotated by one multiplication.
        pairs = by_head[:, : heads + kv_heads, : config.rope_dim].view(np.complex64)
        positions = np.arange(self.position, self.position + rows)
        rotation = np.exp(1j * positions[:, None] * self._frequencies).astype(np.complex64)[:, None, :]

        for layer, cache in zip(self.model.layers, self._caches, strict=True):
            np.dot(self._normalise(x), layer.qkv, out=qkv)
            np.multiply(pairs, rotation, out=pairs)
            started = time.perf_counter()
            cache.append(k, v)
            cache.attend(q, causal=True, out=out, backend=self._backend, num_threads=self._num_threads)
            self.attention_seconds += time.perf_counter() - started
            x += self._project(mixed, layer.out, self._normed[:rows])
            x += self._feed_forward(layer, self._normalise(x))
        self.position += rows
        return x

    def _normalise(self, x: FloatArray) -> FloatArray:
        """Divide each row (S, hidden) by its root mean square; the gain is in the matrices behind."""
        normed = self._normed[: len(x)]
        epsilon = self.model.config.norm_epsilon
        if len(x) == 1:
            # Decoding: the work is small, and fewer calls into NumPy count.
            mean = float(np.dot(x[0], x[0])) / x.shape[1]
            np.multiply(x, np.float32(1 / math.sqrt(mean + epsilon)), out=normed)
            return normed
        square = np.einsum("sh,sh->s", x, x)
        square /= np.float32(x.shape[1])
        square += np.float32(epsilon)
        np.sqrt(square, out=square)
        np.divide(x, square[:, None], out=normed)
        return normed

    def _feed_forward(self, layer: Layer, x: FloatArray) -> FloatArray:
        """SwiGLU: (S, hidden) to (S, hidden), in the buffer that `x` came in."""
        rows, width = len(x), self.model.config.feed_forward
        both = np.dot(x, layer.gate_up, out=self._gate_up[:rows])
        half, up = both[:, :width], both[:, width:]
        # silu(g) = g / (1 + exp(-g)) = h (1 + tanh(h)) with h = g / 2, which is what the stored gate gives:
        # one pass over memory less, no overflow.
        gated = np.tanh(half, out=self._gated[:rows])
        gated += 1
        gated *= half
        gated *= up
        return self._project(gated, layer.down, x)

    def _project(self, x: FloatArray, matrix: FloatArray, out: FloatArray) -> FloatArray:
        """Multiply back to the residual stream's width. Sessions on several ranks sum over them here."""
        return np.dot(x, matrix, out=out)
