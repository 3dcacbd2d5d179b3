"""The fixture `attention_oracle`, as others' tests use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fastattention.verify import AttentionOracle

from .kernels import Kernel, forgets_scale, own_names


def inputs(dtype: object = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return q, k, v of 20 queries and 30 keys."""
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((2, 3, n, 16)).astype(dtype) for n in (20, 30, 30))
    return q, k, v


def test_it_is_the_reference(attention_oracle: AttentionOracle) -> None:
    q, k, v = inputs()
    out, lse = attention_oracle(q, k, v)
    s = np.einsum("bhid,bhjd->bhij", q.astype(np.float64), k) / 4
    assert np.allclose(lse, np.log(np.exp(s).sum(-1)), rtol=1e-12)
    assert np.allclose(out, np.exp(s - lse[..., None]) @ v, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_close_is_close(attention_oracle: AttentionOracle, dtype: object) -> None:
    q, k, v = inputs(dtype)
    out, lse = Kernel().compute(q, k, v, {"causal": True})
    assert attention_oracle.assert_close(out.astype(dtype), q, k, v, lse=lse, causal=True) <= 1


def test_what_is_off_is_named(attention_oracle: AttentionOracle) -> None:
    q, k, v = inputs()
    out, lse = Kernel().compute(q, k, v, {})
    out[1, 2, 7, 3] += 0.125
    with pytest.raises(AssertionError, match=r"out\[1, 2, 7, 3\] is .*, expected .* tolerances off"):
        attention_oracle.assert_close(out, q, k, v)
    lse[0, 1, 5] -= 1
    with pytest.raises(AssertionError, match=r"lse\[0, 1, 5\]"):
        attention_oracle.assert_close(attention_oracle(q, k, v)[0].astype(np.float32), q, k, v, lse=lse)
    with pytest.raises(AssertionError, match="shape"):
        attention_oracle.assert_close(out[:, :2], q, k, v)


def test_a_stricter_or_unknown_accumulation(attention_oracle: AttentionOracle) -> None:
    q, k, v = inputs(np.float16)
    out = attention_oracle(q, k, v)[0]
    attention_oracle.assert_close(out.astype(np.float16), q, k, v, accumulation="float64")
    blurred = (out * (1 + 2.0**-11)).astype(np.float16)
    attention_oracle.assert_close(blurred, q, k, v)
    with pytest.raises(AssertionError):
        attention_oracle.assert_close(blurred, q, k, v, accumulation="float64")
    with pytest.raises(ValueError, match="accumulation: for an output of float16 expected one of float64,"):
        attention_oracle.assert_close(blurred, q, k, v, accumulation="float8")
    with pytest.raises(ValueError, match="for an output of int64 expected one of none"):
        attention_oracle.assert_close(np.zeros((2, 3, 20, 16), np.int64), q, k, v)


def test_a_whole_kernel(attention_oracle: AttentionOracle) -> None:
    assert attention_oracle.verify(own_names, quick=True).passed
    with pytest.raises(
        AssertionError, match=r"what breaks first: scale\nscale 0.3 (.|\n)*at its smallest:\nscale"
    ):
        attention_oracle.verify(forgets_scale, quick=True)


def test_a_run_that_does_not_ask_for_it_does_not_import_the_package(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_other(request):\n"
        "    assert request.config.pluginmanager.has_plugin('fastattention')\n"
        "    assert 'fastattention' not in sys.modules\n\n"
        "def test_ours(attention_oracle):\n    assert 'fastattention' in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_other.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
