"""llama.cpp as the other engine of a comparison: tokens in, logits out."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.errors import ModelError

__all__ = ["Peer"]


class Peer:
    """llama.cpp with one model, one sequence at a time, through its C interface.

    Parameters
    ----------
    path : Path
        GGUF file.
    context : int
        Longest sequence, in tokens.
    threads : int
        Threads to use.
    float32_cache : bool
        Store keys and values in float32 instead of llama.cpp's default float16.
    fused : bool
        Use llama.cpp's fused ("flash") attention.
    repack : bool
        Let llama.cpp lay weights out anew for wide instructions (AMX among them) where it can. Off by
        default: version 0.3.36 of the package dies of a protection fault in its AMX product of 4-bit weights
        on Sapphire Rapids, and without AMX it has no other layout for them (Q4_1).

    Raises
    ------
    ModelError
        ``llama-cpp-python`` is not installed, or llama.cpp cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int,
        float32_cache: bool = False,
        fused: bool = False,
        repack: bool = False,
    ) -> None:
        try:
            self._library: Any = importlib.import_module("llama_cpp")
        except ImportError as error:
            raise ModelError("llama_cpp is not installed; run: pip install llama-cpp-python") from error
        library = self._library
        self._silence = library.llama_log_callback(lambda level, text, data: None)  # kept alive: C calls it
        library.llama_log_set(self._silence, ctypes.c_void_p(0))
        library.llama_backend_init()
        model_options = library.llama_model_default_params()
        model_options.use_extra_bufts = repack
        self._model = library.llama_model_load_from_file(str(path).encode(), model_options)
        if not self._model:
            raise ModelError(f"llama.cpp cannot load {path}")
        options = library.llama_context_default_params()
        options.n_ctx = context
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = 0 if float32_cache else 1  # GGML_TYPE_F32, GGML_TYPE_F16
        options.flash_attn_type = int(fused)
        self._context = library.llama_init_from_model(self._model, options)
        if not self._context:
            raise ModelError(f"llama.cpp cannot set up a context of {context} tokens")
        self._batch = int(options.n_batch)
        self._vocab = library.llama_model_get_vocab(self._model)
        self._vocab_size = int(library.llama_vocab_n_tokens(self._vocab))

    def encode(self, text: str) -> list[int]:
        """Cut text into tokens, control tokens included."""
        raw = text.encode()
        room = len(raw) + 1
        tokens = (self._library.llama_token * room)()
        count = self._library.llama_tokenize(self._vocab, raw, len(raw), tokens, room, False, True)
        return list(tokens[:count])

    def reset(self) -> None:
        """Begin a new sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Take tokens; return a copy of the logits (vocab,) for what follows the last one.

        Raises
        ------
        RuntimeError
            llama.cpp refused them.
        """
        library = self._library
        for start in range(0, len(tokens), self._batch):
            part = tokens[start : start + self._batch]
            ids = (library.llama_token * len(part))(*part)
            code = library.llama_decode(self._context, library.llama_batch_get_one(ids, len(part)))
            if code:
                raise RuntimeError(f"llama_decode returned {code}")
        pointer = library.llama_get_logits_ith(self._context, -1)
        view: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))
        return view.copy()

    def close(self) -> None:
        """Free the model."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)
