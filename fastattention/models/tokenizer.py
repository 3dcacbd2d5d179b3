"""Byte-level BPE rebuilt from a GGUF file's vocabulary and merges, and the way back from tokens to text.

A GGUF file names its pre-tokenizer (how text is cut before merges apply) instead of spelling it out;
`PRE_TOKENIZERS` says what each name means. The merging itself is the package ``tokenizers``.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from .errors import ModelError, require
from .gguf import ModelFile

__all__ = ["PRE_TOKENIZERS", "TextStream", "Tokenizer"]

# Cuts of the GPT-2 family: contractions, then runs of letters, numbers, anything else, and white space.
_DIGITS_THEN_GPT2 = "digits, then GPT-2"
_GPT2 = "GPT-2"
_LLAMA3 = "Llama 3"

#: Names of ``tokenizer.ggml.pre`` and the rule behind each, as llama.cpp (``llama-vocab.cpp``) reads them.
#: The rule "digits, then GPT-2" sets every number character apart first and cuts the pieces between by
#: GPT-2's pattern.
#: All of them cut the test strings that llama.cpp keeps beside its sample vocabularies as llama.cpp does.
PRE_TOKENIZERS = {
    "smollm": _DIGITS_THEN_GPT2,
    "starcoder": _DIGITS_THEN_GPT2,
    "refact": _DIGITS_THEN_GPT2,
    "command-r": _DIGITS_THEN_GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
}

# The pattern that Meta published with Llama 3: case-insensitive contractions, numbers in groups of up to
# three.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4

# Control tokens that end an answer besides the one the file names: models trained for chat end a turn with
# one of these even where the file names the token that ends a document.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>")


def _byte_alphabet() -> dict[str, int]:
    """Map the characters that stand for bytes in a byte-level vocabulary to those bytes.

    GPT-2's convention: a byte that prints in Latin-1 stands for itself, and the others take the characters
    from U+0100 on, in order, so that no vocabulary entry holds white space or a control character.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


class Tokenizer:
    """Text to tokens and back.

    Parameters
    ----------
    file : ModelFile
        A GGUF file with a byte-level BPE vocabulary (``tokenizer.ggml.model`` "gpt2").

    Attributes
    ----------
    vocab_size : int
    stop_tokens : frozenset of int
        Tokens after which an answer is over.
    chat_template : str or None
        Jinja source.
    bos_text, eos_text : str
        Text of the first and last token, "" where the file names none.

    Raises
    ------
    ModelError
        The vocabulary is broken, or of a kind that is not supported.
    """

    def __init__(self, file: ModelFile) -> None:
        kind = file.scalar("tokenizer.ggml.model", str)
        if kind != "gpt2":
            raise ModelError(
                f"{file.path}: tokenizer model {kind!r} is not supported (only byte-level BPE, 'gpt2')"
            )
        pre = file.scalar("tokenizer.ggml.pre", str, "gpt-2")
        if pre not in PRE_TOKENIZERS:
            known = ", ".join(sorted(PRE_TOKENIZERS))
            raise ModelError(f"{file.path}: pre-tokenizer {pre!r} is not supported (supported: {known})")
        self._texts = file.strings("tokenizer.ggml.tokens")
        self.vocab_size = len(self._texts)
        types = file.get("tokenizer.ggml.token_type") or [1] * self.vocab_size
        if not isinstance(types, list) or len(types) != self.vocab_size:
            raise ModelError(
                f"{file.path}: tokenizer.ggml.token_type does not fit the {self.vocab_size} tokens"
            )
        merges = [tuple(merge.split(" ")) for merge in file.strings("tokenizer.ggml.merges")]
        self._control = frozenset(token for token, type_ in enumerate(types) if type_ == _CONTROL)
        self._literal = self._control | {token for token, type_ in enumerate(types) if type_ == _USER_DEFINED}
        try:
            self._tokenizer = _build(
                self._texts, merges, PRE_TOKENIZERS[pre], sorted(self._literal), self._control
            )
        except ModelError:
            raise
        # The Rust side raises plain Exception, for instance for a merge whose result is not in the
        # vocabulary.
        except Exception as error:
            raise ModelError(f"{file.path}: broken vocabulary ({error})") from error
        self._alphabet = _byte_alphabet()

        bos = self._special(file, "tokenizer.ggml.bos_token_id")
        eos = self._special(file, "tokenizer.ggml.eos_token_id")
        eot = self._special(file, "tokenizer.ggml.eot_token_id")
        self.bos_text = "" if bos is None else self._texts[bos]
        self.eos_text = "" if eos is None else self._texts[eos]
        # Llama 3 files that do not say are meant to begin with it, as in llama.cpp.
        begin = file.scalar("tokenizer.ggml.add_bos_token", bool, PRE_TOKENIZERS[pre] == _LLAMA3)
        self._bos = [bos] if bos is not None and begin else []
        ends = {token for token in self._control if self._texts[token] in _TURN_ENDS}
        self.stop_tokens = frozenset(ends | {token for token in (eos, eot) if token is not None})
        template = file.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else None

    def _special(self, file: ModelFile, key: str) -> int | None:
        token = file.scalar(key, int, -1)
        if token == -1:
            return None
        if not 0 <= token < self.vocab_size:
            raise ModelError(f"{file.path}: metadata {key} is {token}, outside the {self.vocab_size} tokens")
        return token

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Cut text into tokens.

        Control tokens written out in the text (``<|im_start|>``) become those tokens, as in llama.cpp and
        transformers; a chat template depends on it.

        Parameters
        ----------
        text : str
            Any text that can be encoded in UTF-8.
        start : bool
            Whether to put the beginning-of-sequence token first where the model wants one. False for the text
            of a chat template, which spells it out.

        Returns
        -------
        list of int

        Raises
        ------
        ModelError
            The text has lone surrogates: it is not Unicode text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ModelError(f"the prompt is not valid Unicode text (character {error.start})") from error
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._bos + tokens if start else tokens

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of text that one token stands for; none for a control token."""
        if token in self._control:
            return b""
        text = self._texts[token]
        if token in self._literal:
            return text.encode()
        # A character outside the byte alphabet is no byte-level entry but text of its own.
        return b"".join(
            bytes([self._alphabet[char]]) if char in self._alphabet else char.encode() for char in text
        )

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens back into text; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode(errors="replace")

    def missing(self, text: str) -> str:
        """Return the characters of `text` for which the vocabulary has no token, each once, in order.

        A byte-level vocabulary is meant to cover every byte. SmolLM2's lacks some control characters and the
        lead bytes of planes 4 to 15 of Unicode; such characters vanish when text is encoded, and a caller can
        say so.
        """
        present = {self._alphabet[char] for char in self._texts_of_one_byte()}
        return "".join(char for char in dict.fromkeys(text) if not set(char.encode()) <= present)

    def _texts_of_one_byte(self) -> list[str]:
        return [text for text in self._texts if len(text) == 1 and text in self._alphabet]


def _build(
    texts: list[str], merges: list[tuple[str, ...]], rule: str, literal: list[int], control: frozenset[int]
) -> Any:
    tokenizers = require("tokenizers")
    pre_tokenizers = require("tokenizers.pre_tokenizers")
    if any(len(merge) != 2 for merge in merges):
        raise ValueError("a merge is not a pair")
    vocab = {text: token for token, text in enumerate(texts)}
    if len(vocab) != len(texts):
        raise ValueError("two tokens have the same text")
    # Llama 3 takes a whole piece that is in the vocabulary as it is, even where no chain of merges leads to
    # it.
    model = tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=rule == _LLAMA3)
    tokenizer = tokenizers.Tokenizer(model)
    if rule == _LLAMA3:
        pattern = tokenizers.Regex(_LLAMA3_PATTERN)
        steps = [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        if rule == _DIGITS_THEN_GPT2:
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.add_tokens(
        [tokenizers.AddedToken(texts[token], special=token in control, normalized=False) for token in literal]
    )
    return tokenizer


class TextStream:
    """Turns tokens into text as they come, and never shows half a character.

    A character of several bytes may be spread over several tokens; its bytes are held back until it is whole.

    Parameters
    ----------
    tokenizer : Tokenizer
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Take one token; return the text that is complete with it, often "" or one word."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """Return what is left: U+FFFD where the last character was never completed, else ""."""
        return self._decoder.decode(b"", final=True)
