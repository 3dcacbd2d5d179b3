"""Problems that every implementation in the specification must solve alike."""

from __future__ import annotations

import numpy as np
import pytest


def _bool_mask(rng, B, Hq, Sq, Sk):
    mask = rng.random((B, Hq, Sq, Sk)) < 0.6
    mask[:, :, Sq // 2 :][:, :, :1] = False  # one row that may attend to nothing
    return {"mask": mask}


def _float_mask(rng, B, Hq, Sq, Sk):
    mask = rng.standard_normal((1, Hq, Sq, Sk)).astype(np.float32)
    mask[..., Sk // 3 : Sk // 2 + 1] = -np.inf  # a band of hidden keys
    mask[:, :, :1] = -np.inf  # a row without keys
    return {"mask": mask}


def _everything(rng, B, Hq, Sq, Sk):
    return {
        "causal": True,
        "window": (6, 3),
        "alibi_slopes": rng.random((B, Hq)),
        "scale": 0.7,
        "softcap": 3.0,
        "sinks": rng.standard_normal(Hq),
        "kv_lengths": rng.integers(0, Sk + 1, B),
        "q_offset": rng.integers(-3, Sk + 3, B),
        **_float_mask(rng, B, Hq, Sq, Sk),
    }


FEATURES = {
    "plain": lambda rng, B, Hq, Sq, Sk: {},
    "causal": lambda rng, B, Hq, Sq, Sk: {"causal": True},
    "window": lambda rng, B, Hq, Sq, Sk: {"window": (3, 2)},
    "window of one key": lambda rng, B, Hq, Sq, Sk: {"window": (0, 0)},
    "window to the left": lambda rng, B, Hq, Sq, Sk: {"window": (4, None), "q_offset": 0},
    "window to the right": lambda rng, B, Hq, Sq, Sk: {"window": (-1, 2)},
    "causal window": lambda rng, B, Hq, Sq, Sk: {"causal": True, "window": (5, 5)},
    "bool mask": _bool_mask,
    "bool mask of keys": lambda rng, B, Hq, Sq, Sk: {"mask": rng.random((B, 1, 1, Sk)) < 0.5},
    "float mask": _float_mask,
    "alibi": lambda rng, B, Hq, Sq, Sk: {"alibi_slopes": rng.standard_normal(Hq).astype(np.float32)},
    "alibi by sequence": lambda rng, B, Hq, Sq, Sk: {"alibi_slopes": rng.random((B, Hq)), "causal": True},
    "scale": lambda rng, B, Hq, Sq, Sk: {"scale": -0.3},
    "large logits": lambda rng, B, Hq, Sq, Sk: {"scale": 2000.0},
    "softcap": lambda rng, B, Hq, Sq, Sk: {"softcap": 0.8},
    "sinks": lambda rng, B, Hq, Sq, Sk: {"sinks": rng.standard_normal(Hq), "causal": True, "q_offset": -1},
    "huge sinks": lambda rng, B, Hq, Sq, Sk: {"sinks": np.where(np.arange(Hq) % 2, 1e4, -1e4)},
    "kv_lengths": lambda rng, B, Hq, Sq, Sk: {"kv_lengths": np.arange(B) * Sk // max(B - 1, 1)},
    "ragged causal": lambda rng, B, Hq, Sq, Sk: {"kv_lengths": rng.integers(0, Sk + 1, B), "causal": True},
    "q_offset 0": lambda rng, B, Hq, Sq, Sk: {"q_offset": 0, "causal": True},
    "q_offset below 0": lambda rng, B, Hq, Sq, Sk: {"q_offset": -2, "causal": True, "window": (2, 0)},
    "q_offset past the end": lambda rng, B, Hq, Sq, Sk: {"q_offset": Sk + 1, "window": (4, 1)},
    "q_offset by sequence": lambda rng, B, Hq, Sq, Sk: {"q_offset": rng.integers(-4, 9, B), "causal": True},
    "everything": _everything,
}


@pytest.fixture(params=FEATURES, ids=lambda name: name.replace(" ", "_"))
def feature(request):
    """Every option in turn: a function (rng, B, Hq, Sq, Sk) -> keyword arguments of `attention`."""
    return FEATURES[request.param]


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


@pytest.fixture
def make(rng):
    """Return a maker of (q, k, v)."""

    def make(B=2, Hq=4, Hkv=2, Sq=5, Sk=7, D=3, Dv=4):
        q = rng.standard_normal((B, Hq, Sq, D))
        return q, rng.standard_normal((B, Hkv, Sk, D)), rng.standard_normal((B, Hkv, Sk, Dv))

    return make


@pytest.fixture
def close():
    """Return a check that two results (out, lse) agree to float64 rounding, infinities included."""

    def close(got, want, rtol=1e-12, atol=1e-12):
        for x, y in zip(got, want, strict=True):
            assert x.dtype == np.float64
            np.testing.assert_allclose(
                x, y, rtol=rtol, atol=atol
            )  # compares shapes (0 axes too) and infinities

    return close
