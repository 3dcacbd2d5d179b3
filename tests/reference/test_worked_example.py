"""The numbers of the worked example, as printed in the book, to the last digit printed."""

from __future__ import annotations

import numpy as np
import pytest

from reference import tiling, worked_example
from reference.online_softmax import finish


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"scale": 1.0}, [[3.5379, 4.5379], [3.0758, 4.0758], [2.6136, 3.6136], [4, 5]]),
        ({"scale": None}, [[3.6605, 4.6605], [3.3210, 4.3210], [2.9814, 3.9814], [4, 5]]),
        ({"scale": None, "causal": True}, [[1, 2], [2, 3], [2.4895, 3.4895], [4, 5]]),
    ],
    ids=str,
)
def test_right_answers(options, want):
    np.testing.assert_array_equal(worked_example.right_answer(**options).round(4), want)


def test_scores_maximum_and_sum():
    assert worked_example.score_matrix()[1].tolist() == [1, 1, 0, 0]
    for block_k in (1, 2, 3, 4):
        last = worked_example.online_steps(block_k)[-1]
        assert last.m.tolist() == [1, 1, 2, 0]
        np.testing.assert_array_equal(last.l.round(4), [2.7358, 2.7358, 1.8711, 4])
        np.testing.assert_allclose(finish(last)[0], worked_example.right_answer(), rtol=1e-14)
    assert len(worked_example.online_steps(2)) == 2


def test_tiling_gets_it_right_and_the_block_diagonal_does_not():
    q, k, v = (x[None, None] for x in (worked_example.Q, worked_example.K, worked_example.V))
    out, _ = tiling.attention(q, k, v, scale=1.0, block_q=2, block_k=2)
    np.testing.assert_allclose(out[0, 0], worked_example.right_answer(), rtol=1e-14)

    wrong = worked_example.block_diagonal_mistake()
    np.testing.assert_array_equal(wrong.round(4), [[1.5379, 2.5379], [2, 3], [5.5379, 6.5379], [6, 7]])
    assert (np.abs(wrong - worked_example.right_answer()) > 1).all()
    # One block is the whole problem: only then is the diagonal all there is.
    np.testing.assert_allclose(worked_example.block_diagonal_mistake(block=4), worked_example.right_answer())


def test_the_arrays_cannot_be_changed_by_accident():
    for x in (worked_example.Q, worked_example.K, worked_example.V):
        with pytest.raises(ValueError, match="read-only"):
            x[0, 0] = 9.0


def test_llama_7b():
    KiB, GiB = 2**10, 2**30
    assert worked_example.kv_bytes(1) == 512 * KiB
    assert worked_example.kv_bytes(256 * 1024, layers=1) == 4 * GiB
    assert worked_example.kv_bytes(256 * 1024) == 128 * GiB
