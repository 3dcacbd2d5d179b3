"""What can go wrong before a model runs, said in one line."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["ModelError", "require"]


class ModelError(ValueError):
    """The model file, or what was asked of it, cannot be used; the message is one line for a person."""


def require(module: str) -> Any:
    """Import a package of the extra ``models``.

    Typed as `Any` so that the type checker's verdict does not depend on whether the optional package is
    installed.

    Parameters
    ----------
    module : str
        Dotted module name.

    Returns
    -------
    module

    Raises
    ------
    ModelError
        The package is not installed; the message says which one and what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            package = f"{package} (it needs {error.name})"
        raise ModelError(f'{package} is not installed; run: pip install "fastattention[models]"') from error
