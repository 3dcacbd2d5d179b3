"""The chat template and the choice of the next token."""

from __future__ import annotations

import numpy as np
import pytest

from fastattention.models import ModelError
from fastattention.models.chat import render
from fastattention.models.sampling import Sampler

from . import tiny_model

USER = [{"role": "user", "content": "hi"}]


def test_template_is_rendered_open_for_the_answer() -> None:
    text = render(tiny_model.CHAT_TEMPLATE, USER)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_template_sees_first_and_last_token() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", USER, bos="<s>", eos="</s>") == (
        "<s>hi</s>"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ raise_exception('no such role') }}",
        "{{ messages[9]['content'].x }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",  # the sandbox forbids the way out
        "{% set _ = messages.append(1) %}",
    ],
)
def test_template_that_fails_says_so(template: str) -> None:
    with pytest.raises(ModelError, match="chat template failed"):
        render(template, USER)


LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def test_greedy_takes_the_likeliest() -> None:
    assert {Sampler()(LOGITS) for _ in range(5)} == {1}


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(temperature=1.0, seed=0)
    counts = np.bincount([sampler(LOGITS) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.1, 0.5, 0.15, 0.25], atol=0.03)  # 4 standard deviations


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    for top_p, kept in ((0.4, {1}), (0.6, {1, 3}), (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        sampler = Sampler(temperature=1.0, top_p=top_p, seed=1)
        assert {sampler(LOGITS) for _ in range(500)} == kept


def test_low_temperature_sharpens() -> None:
    sampler = Sampler(temperature=0.05, seed=2)
    assert {sampler(LOGITS) for _ in range(500)} == {1}


def test_a_seed_repeats_the_draws() -> None:
    first, second = Sampler(0.9, seed=7), Sampler(0.9, seed=7)
    assert [first(LOGITS) for _ in range(50)] == [second(LOGITS) for _ in range(50)]


def test_logits_are_left_alone() -> None:
    before = LOGITS.copy()
    Sampler(0.7, top_p=0.5, seed=0)(LOGITS)
    np.testing.assert_array_equal(LOGITS, before)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(-0.1, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, 1.1)]
)
def test_bad_settings(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match="expected a"):
        Sampler(temperature, top_p)
