"""The sizes of a decoder of the LLaMA family, as its file says them."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ModelError
from .gguf import ModelFile

__all__ = ["Config"]

_ARCHITECTURE = "llama"


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a model, read from the metadata of its file and checked against one another."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    rope_base: float
    norm_epsilon: float
    vocab_size: int
    context: int

    @classmethod
    def from_file(cls, file: ModelFile) -> Config:
        """Read the sizes.

        Raises
        ------
        ModelError
            Another architecture, a variant of this one that is not supported, or sizes that do not fit
            together.
        """
        architecture = file.scalar("general.architecture", str)
        if architecture != _ARCHITECTURE:
            raise ModelError(
                f"{file.path}: architecture {architecture!r} is not supported (only {_ARCHITECTURE!r})"
            )
        if file.scalar("llama.expert_count", int, 0) > 0:
            raise ModelError(f"{file.path}: mixtures of experts are not supported")
        scaling = file.scalar("llama.rope.scaling.type", str, "none")
        if scaling != "none":
            raise ModelError(f"{file.path}: RoPE scaling of type {scaling!r} is not supported")
        hidden = file.scalar("llama.embedding_length", int)
        heads = file.scalar("llama.attention.head_count", int)
        if heads < 1 or hidden < 1:
            raise ModelError(f"{file.path}: {heads} heads over a hidden size of {hidden}")
        head_dim = file.scalar("llama.attention.key_length", int, hidden // heads)
        config = cls(
            layers=file.scalar("llama.block_count", int),
            hidden=hidden,
            feed_forward=file.scalar("llama.feed_forward_length", int),
            heads=heads,
            kv_heads=file.scalar("llama.attention.head_count_kv", int, heads),
            head_dim=head_dim,
            rope_dim=file.scalar("llama.rope.dimension_count", int, head_dim),
            rope_base=file.scalar("llama.rope.freq_base", float, 10000.0),
            norm_epsilon=file.scalar("llama.attention.layer_norm_rms_epsilon", float),
            vocab_size=len(file.strings("tokenizer.ggml.tokens")),
            context=file.scalar("llama.context_length", int),
        )
        sizes = (config.layers, config.feed_forward, config.kv_heads, config.head_dim, config.context)
        if (
            min(sizes) < 1
            or config.heads % config.kv_heads
            or not 0 < config.rope_dim <= config.head_dim
            or config.rope_dim % 2
            or file.scalar("llama.attention.value_length", int, config.head_dim) != config.head_dim
            or config.rope_base <= 0
        ):
            raise ModelError(f"{file.path}: the sizes in the metadata do not fit together ({config})")
        return config
