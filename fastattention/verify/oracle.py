"""The reference as a test wants it: call it, compare with it, or hold a whole kernel to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .adapters import ACCUMULATION
from .check import reference
from .report import Report
from .run import verify
from .tolerances import DTYPES, TOLERANCES, Problem, error_in_tolerances, tolerances

__all__ = ["AttentionOracle"]


class AttentionOracle:
    """Attention in float64, and assertions against it; the pytest fixture `attention_oracle` is one.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattention.verify import AttentionOracle
    >>> oracle = AttentionOracle()
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 8)).astype(np.float32)
    >>> out, lse = oracle(q, k, v, causal=True)
    >>> out.dtype, lse.shape
    (dtype('float64'), (1, 2, 5))
    >>> error = oracle.assert_close(out.astype(np.float32), q, k, v, causal=True)
    >>> error < 1
    True
    """

    def __call__(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return output (B, Hq, Sq, Dv) and log-sum-exps (B, Hq, Sq) in float64.

        Parameters
        ----------
        q : ndarray (B, Hq, Sq, D)
        k : ndarray (B, Hkv, Sk, D)
        v : ndarray (B, Hkv, Sk, Dv)
            Of any floating type, taken as they are: round them first to what the kernel gets.
        **options
            Of `fastattention.attention`: causal, scale, mask, window, ...
        """
        return reference(Problem(q, k, v, options))

    def assert_close(
        self,
        out: np.ndarray,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        *,
        lse: np.ndarray | None = None,
        accumulation: str | None = None,
        **options: Any,
    ) -> float:
        """Assert that a kernel's output is right for these inputs, to the precision of its type.

        Parameters
        ----------
        out : ndarray (B, Hq, Sq, Dv)
            float32, float16 or bfloat16, the type of q.
        q, k, v : ndarray
            As for a call.
        lse : ndarray (B, Hq, Sq), optional
            Log-sum-exps, natural, to be judged too.
        accumulation : str, optional
            How the kernel computes, a second name in `tolerances.TOLERANCES`: by default in float32, with
            weights in the half types rounded to them.
        **options
            Of `fastattention.attention`.

        Returns
        -------
        float
            The largest error in units of the tolerance, at most 1.

        Raises
        ------
        AssertionError
            An error is larger than the tolerance: says where, and what is right.
        ValueError
            `accumulation` is unknown for the type.
        """
        name = np.asarray(out).dtype.name
        how = accumulation if accumulation is not None else ACCUMULATION.get(name, "float64")
        if name not in DTYPES or (name, how) not in TOLERANCES:
            known = ", ".join(second for first, second in TOLERANCES if first == name)
            raise ValueError(
                f"accumulation: for an output of {name} expected one of {known or 'none'}, got {how!r}"
            )
        problem = Problem(q, k, v, options)
        right, right_lse = reference(problem)
        with np.errstate(all="ignore"):
            allowed, allowed_lse = tolerances(problem, right, right_lse, name, how)
            worst = 0.0
            for what, got, expected, limit in (
                ("out", out, right, allowed), ("lse", lse, right_lse, allowed_lse)
            ):  # fmt: skip
                if got is None:
                    continue
                found = error_in_tolerances(np.asarray(got), expected, limit)
                worst = max(worst, found.tolerances)
                if found.tolerances > 1:
                    raise AssertionError(
                        f"{what}{list(found.place)} is {found.actual:.8g}, expected {found.expected:.8g}: "
                        f"{found.tolerances:.3g} tolerances off"
                    )
        return worst

    def verify(self, kernel: Any, **options: Any) -> Report:
        """Assert that all cases of `fastattention.verify` are right for a kernel.

        Parameters
        ----------
        kernel : Adapter, callable, or path of an ONNX file
        **options
            Of `fastattention.verify`.

        Returns
        -------
        Report

        Raises
        ------
        AssertionError
            Some case is wrong: says how many, what breaks first, and the smallest case that fails.
        """
        report = verify(kernel, **options)
        if not report.passed:
            raise AssertionError(report.summary())
        return report
