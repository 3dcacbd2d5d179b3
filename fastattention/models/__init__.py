"""A real language model on this library's attention: SmolLM2-135M, or another model of the LLaMA family in
GGUF.

Needs the extra ``models``. Nothing heavy is imported until it is used.
"""

from .errors import ModelError

__all__ = ["ModelError"]
