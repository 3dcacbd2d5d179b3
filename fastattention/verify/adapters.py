"""Anybody's attention function as the one kind of function that the checks call.

An adapter says what a kernel takes, which features it has, and how precisely it is meant to compute; its
`call` takes a problem in NumPy arrays and returns the output in NumPy. For common signatures `adapt` makes
one; for all others a few lines do.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .cases import FEATURES
from .tolerances import DTYPES, Problem

__all__ = ["ACCUMULATION", "Adapter", "adapt", "load"]

#: How a kernel may compute that is as precise as those that people use: sums in float32, weights rounded to
#: the type of the values before they multiply them.
ACCUMULATION = {"float32": "float32", "float16": "half weights", "bfloat16": "bfloat16 weights"}


@dataclass(frozen=True)
class Adapter:
    """A kernel, and what may be asked of it.

    Attributes
    ----------
    name : str
    call : callable
        Takes a `Problem`: q (B, Hq, Sq, D), k and v (B, Hkv, Sk, D), NumPy arrays of one data type, and
        ``options``, keyword arguments of `fastattention.attention`, of declared features only. Returns the
        output (B, Hq, Sq, Dv); with the feature "lse" that and the log-sum-exps (B, Hq, Sq).
        With the feature "out", ``options["out"]`` is an array full of NaN to write into and to return.
    features : frozenset of str
        Of `FEATURES`.
    dtypes : tuple of str
        "float32", "float16", "bfloat16".
    accumulation : mapping of str to str
        By data type how it computes: the second name of a row of `tolerances.TOLERANCES`.
    always : mapping
        Options that every call has, as ``{"causal": True}`` for a kernel that knows no other attention.
    top_left : bool
        Whether causal masks and windows put the first query at the first key; else the last at the last.
    rounds_mask : bool
        Whether it takes a floating mask in the type of q alone: the reference gets the same rounded numbers.
    flushes : bool
        Whether float32 numbers below 2^-126 may count as 0.
    head_dims : callable
        Whether it takes a head dimension.
    threads : callable, optional
        Takes a number; returns a context in which the kernel uses so many threads.
    note : str
        What a reader of the report should know of the adapter.
    """

    name: str
    call: Callable[[Problem], Any]
    features: frozenset[str] = frozenset()
    dtypes: tuple[str, ...] = ("float32",)
    accumulation: Mapping[str, str] = field(default_factory=lambda: dict(ACCUMULATION))
    always: Mapping[str, Any] = field(default_factory=dict)
    top_left: bool = False
    rounds_mask: bool = False
    flushes: bool = False
    head_dims: Callable[[int], bool] = lambda dim: dim <= 256
    threads: Callable[[int], AbstractContextManager[Any]] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.features) - set(FEATURES)
        if unknown:
            raise ValueError(
                f"features: expected some of {', '.join(FEATURES)}, got {', '.join(sorted(unknown))}"
            )
        for dtype in self.dtypes:
            if dtype not in DTYPES or dtype == "float64":
                raise ValueError(f"dtypes: expected float32, float16 or bfloat16, got {dtype!r}")


def load(name: str) -> Any:
    """Return what ``module:function`` names, or the path of an ONNX file as it is.

    Raises
    ------
    ValueError
        It is neither, or there is no such module or function.
    """
    if name.endswith(".onnx"):
        if not Path(name).is_file():
            raise ValueError(f"kernel: there is no file {name}")
        return Path(name)
    module_name, _, path = name.partition(":")
    if not path:
        raise ValueError(f"kernel: expected module:function or a file.onnx, got {name!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as problem:
        raise ValueError(f"kernel: {module_name} cannot be imported: {problem}") from problem
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"kernel: {module_name} has no {path}")
        found = getattr(found, part)
    return found


def adapt(kernel: Any, name: str | None = None) -> Adapter:
    """Return an adapter for a kernel.

    Parameters
    ----------
    kernel : Adapter, callable, or path of an ONNX file
        Known by what they are: `fastattention.attention`,
        ``torch.nn.functional.scaled_dot_product_attention``, ``jax.nn.dot_product_attention``, and
        ``flash_attn_func``. Of other functions, by the names of their parameters: ``q, k, v`` (or ``query,
        key, value``) first, NumPy arrays (B, H, S, D), and of the rest those whose meaning is certain.
    name : str, optional
        For the report.

    Raises
    ------
    TypeError
        Its signature says too little: an `Adapter` is needed.
    ImportError
        A library that it needs is not there.
    """
    from . import libraries

    if isinstance(kernel, Adapter):
        return kernel
    if isinstance(kernel, (str, Path)):
        return libraries.onnx_file(Path(kernel))
    if not callable(kernel):
        raise TypeError(f"kernel: expected a function, an Adapter or a path, got {type(kernel).__name__}")
    made = libraries.known(kernel)
    return made if made is not None else by_signature(kernel, name)


#: Parameters whose meaning their name leaves no doubt about: feature, and our option.
_NAMES = {
    "scale": ("scale", "scale"),
    "softmax_scale": ("scale", "scale"),
    "softcap": ("softcap", "softcap"),
    "logits_soft_cap": ("softcap", "softcap"),
    "alibi_slopes": ("alibi_slopes", "alibi_slopes"),
    "sinks": ("sinks", "sinks"),
    "kv_lengths": ("kv_lengths", "kv_lengths"),
    "q_offset": ("q_offset", "q_offset"),
}
_CAUSAL = ("causal", "is_causal")
_FIRST = (("q", "k", "v"), ("query", "key", "value"))


def by_signature(function: Callable[..., Any], name: str | None = None) -> Adapter:
    """Return an adapter for a function of NumPy arrays, from the names of its parameters.

    What a name does not say is not tried: a causal flag is tried with as many queries as keys, where all
    alignments agree, and grouped heads, masks and windows, for which customs differ, are not tried at all.

    Raises
    ------
    TypeError
        The first three parameters are not q, k, v, or another one must be given.
    """
    title = name or f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', function)}"
    need = f"kernel: {title}: {{}}; write an Adapter for it (fastattention.verify.Adapter)"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise TypeError(need.format("its signature cannot be read")) from None
    first = tuple(parameter.name.lower() for parameter in parameters[:3])
    if first not in _FIRST:
        raise TypeError(
            need.format(f"expected the parameters q, k, v first, got ({', '.join(first) or 'none'})")
        )
    for parameter in parameters[3:]:
        must = parameter.default is parameter.empty
        if must and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(need.format(f"nothing is known of the parameter {parameter.name}"))
    names = {parameter.name for parameter in parameters[3:]}
    taken = {option: own for own, (_, option) in _NAMES.items() if own in names}
    features = {feature for own, (feature, _) in _NAMES.items() if own in names}
    causal = next((own for own in _CAUSAL if own in names), None)
    if causal:
        features.add("causal")
    if "q_offset" in features or "kv_lengths" in features:
        features.add("cross")

    def call(problem: Problem) -> np.ndarray:
        options = dict(problem.options)
        given = {causal: True} if options.pop("causal", False) and causal else {}
        given |= {taken[option]: value for option, value in options.items()}
        return np.asarray(function(problem.q, problem.k, problem.v, **given))

    return Adapter(
        title, call, frozenset(features),
        note="adapted by the names of its parameters: float32, as many queries as keys, equal heads",
    )  # fmt: skip
