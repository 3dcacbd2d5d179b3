"""The sizes of models: by name, or from the ``config.json`` that Hugging Face keeps beside weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reference import offload

__all__ = ["SHAPES", "ModelShape", "model_shape"]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes
    ----------
    name : str
    layers, hidden, feed_forward : int
        Decoder layers, width of the residual stream, and of the feed-forward network.
    heads, kv_heads, head_dim : int
        Hq, Hkv, D.
    vocab_size : int
    tied : bool
        The output matrix is the embedding.
    context : int
        Tokens that it was trained on.
    rope_base, norm_epsilon : float
        Of rotary embedding and of RMSNorm.
    gated : bool
        The feed-forward network is SwiGLU, of three matrices; else a plain one of two.
    note : str
        What is assumed about it.
    """

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool = False
    context: int = 8192
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5
    gated: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        sizes = "layers", "hidden", "feed_forward", "heads", "kv_heads", "head_dim", "vocab_size", "context"
        for name in sizes:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}: {name}: expected a whole number of at least 1, got {value!r}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: heads: expected a multiple of kv_heads, {self.kv_heads}, got {self.heads}"
            )

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer."""
        return offload.layer_parameters(
            self.hidden, self.feed_forward, self.heads, self.kv_heads, self.head_dim, gated=self.gated
        )

    @property
    def parameters(self) -> int:
        """Weights in all."""
        return offload.parameters(
            self.layers, self.layer_parameters, self.hidden, self.vocab_size, tied=self.tied
        )


#: Shapes by name. Llama: Touvron et al., arXiv:2302.13971; Grattafiori et al., arXiv:2407.21783. SmolLM2: its
#: model card. PanGu-38B has not been published with its sizes; the FastAttention paper says 38 billion
#: parameters.
SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-7b", 32, 4096, 11008, 32, 32, 128, 32000, context=2048, norm_epsilon=1e-6),
        ModelShape("llama-3-8b", 32, 4096, 14336, 32, 8, 128, 128256, rope_base=500000.0),
        ModelShape("llama-3-70b", 80, 8192, 28672, 64, 8, 128, 128256, rope_base=500000.0),
        ModelShape(
            "pangu-38b", 45, 8192, 4 * 8192, 64, 64, 128, 100000, context=4096, gated=False,
            note="its sizes are not published; assumed are 45 layers of hidden 8192, 64 heads, a plain "
            "feed-forward network four times as wide, and 100,000 tokens, which make 37.9 billion parameters",
        ),
        ModelShape(
            "smollm2", 30, 576, 1536, 9, 3, 64, 49152, tied=True, rope_base=100000.0,
            note="SmolLM2-135M",
        ),
    )
}  # fmt: skip


def model_shape(name_or_path: str | Path) -> ModelShape:
    """Return a model's sizes.

    Parameters
    ----------
    name_or_path : str or Path
        A name of `SHAPES`; or a ``config.json`` of Hugging Face transformers, or the folder that has one.

    Raises
    ------
    ValueError
        There is neither; or the file lacks a size, or holds one that does not fit.
    """
    found = SHAPES.get(str(name_or_path))
    if found is not None:
        return found
    path = Path(name_or_path)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        known = ", ".join(SHAPES)
        raise ValueError(f"model: expected one of {known}, or a config.json; got {str(name_or_path)!r}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"model: {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"model: {path}: expected an object of names and values")
    # Models of images and text keep the decoder's sizes one level down.
    inner = content.get("text_config")
    return _from_config(inner if isinstance(inner, dict) else content, path)


def _from_config(config: dict[str, Any], path: Path) -> ModelShape:
    def size(*names: str, default: int | None = None) -> int:
        for name in names:
            value = config.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise ValueError(f"model: {path}: {name}: expected a whole number, got {value!r}")
                return value
        if default is None:
            raise ValueError(f"model: {path}: has no {names[0]!r}")
        return default

    if size("num_local_experts", "num_experts", default=0) > 1:
        raise ValueError(f"model: {path}: mixtures of experts are not supported")
    hidden, heads = size("hidden_size", "n_embd"), size("num_attention_heads", "n_head")
    kind = str(config.get("model_type", "model"))
    plain = kind in ("gpt2", "gpt_neox", "opt", "phi", "bloom", "falcon")
    name = str(config.get("_name_or_path") or path.resolve().parent.name or kind)
    return ModelShape(
        name=name, layers=size("num_hidden_layers", "n_layer"), hidden=hidden,
        feed_forward=size("intermediate_size", "n_inner", default=4 * hidden), heads=heads,
        kv_heads=size("num_key_value_heads", default=heads),
        head_dim=size("head_dim", default=hidden // heads),
        vocab_size=size("vocab_size"), tied=bool(config.get("tie_word_embeddings", False)),
        context=size("max_position_embeddings", "n_positions", default=8192),
        rope_base=float(config.get("rope_theta") or 10000.0),
        norm_epsilon=float(config.get("rms_norm_eps") or 1e-5),
        gated=not plain, note=f"from {path}",
    )  # fmt: skip
