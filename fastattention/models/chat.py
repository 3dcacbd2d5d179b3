"""The chat template: turns a conversation into the text a model was trained on.

Template language and rendering rules are those of the Hugging Face ``transformers`` library, whose templates
the GGUF files carry: Jinja in a sandbox (a model file is data from somebody else), blocks trimmed, and a few
helpers.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import NoReturn

from .errors import ModelError, require

__all__ = ["render"]


def render(template: str, messages: Sequence[Mapping[str, str]], *, bos: str = "", eos: str = "") -> str:
    """Render a conversation, open for the assistant's answer.

    Parameters
    ----------
    template : str
        Jinja source, from the metadata key ``tokenizer.chat_template``.
    messages : sequence of mapping
        Each with ``role`` ("system", "user" or "assistant") and ``content``.
    bos, eos : str
        Text of the model's first and last token, which some templates spell out.

    Returns
    -------
    str

    Raises
    ------
    ModelError
        The template is not valid, fails, or refuses the conversation.
    """
    jinja2 = require("jinja2")
    sandbox = require("jinja2.sandbox")

    def refuse(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        text: str = environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=True,
        )
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ModelError(f"the model's chat template failed ({error}); --raw does without it") from error
    return text
