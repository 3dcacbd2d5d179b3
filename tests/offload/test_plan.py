"""Plans: what fits by its own account, the best of the ways, and bad input by its name."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
from fastattention.reference import offload, offload_time

import fastattention
from fastattention.offload import (
    PRESETS,
    SHAPES,
    DoesNotFit,
    OffloadPlan,
    hardware,
    model_shape,
    plan_offload,
)
from fastattention.offload.plan import WAYS

TINY = dataclasses.replace(SHAPES["smollm2"], name="tiny", layers=4)


def machine(gpu, host, **numbers):
    """A V100 with other memories, in MB."""
    base = hardware("v100-16gb").replace(gpu_reserved=0, host_reserved=0, queue=0.0)
    return base.replace(gpu_memory=gpu * 10**6, host_memory=host * 10**6, **numbers)


@pytest.mark.parametrize(("gpu", "model"), list(itertools.product(PRESETS, SHAPES)))
@pytest.mark.parametrize(("context", "batch", "kv_dtype"), [(2048, 1, "float16"), (65536, 3, "int8")])
def test_every_preset_fits_its_own_account(gpu, model, context, batch, kv_dtype):
    shape, card = SHAPES[model], PRESETS[gpu]
    given = {"batch": batch, "kv_dtype": kv_dtype}
    try:
        plan = plan_offload(shape, card, context=context, **given)
    except DoesNotFit as refusal:
        found: DoesNotFit | None = refusal
    else:
        found = None
    if found is not None:
        # But for what passes through, and what is less than a layer, there is no room for weights or for all.
        usable = 0.95 * card.gpu_memory - card.gpu_reserved
        weights = 2 * (shape.parameters - (0 if shape.tied else shape.vocab_size * shape.hidden))
        item, scale = (1, 4) if kv_dtype == "int8" else (2, 0)
        layer = context * 2 * batch * shape.kv_heads * (shape.head_dim * item + scale)
        both = usable + 0.95 * card.host_memory - card.host_reserved
        assert weights + 0.3e9 > usable or weights + (shape.layers + 1) * layer + 0.3e9 > both - 1.1e9
        assert found.largest_context < context
        return
    item = {"float16": 2, "int8": 1}[kv_dtype]
    row = 2 * batch * shape.kv_heads * (shape.head_dim * item + (4 if kv_dtype == "int8" else 0))
    embedding = 2 * shape.vocab_size * shape.hidden if plan.embedding == "host" else 0
    assert plan.gpu_use["weights"] == 2 * shape.parameters - embedding
    assert plan.gpu_use["caches"] == plan.gpu_layers * context * row
    in_host = shape.layers - plan.gpu_layers
    assert sum(plan.host_use.values()) == in_host * context * row + embedding
    assert sum(plan.gpu_use.values()) + card.gpu_reserved <= 0.95 * card.gpu_memory
    assert sum(plan.host_use.values()) + card.host_reserved <= 0.95 * card.host_memory or not in_host
    assert len(plan.placement) == shape.layers
    assert set(plan.placement) <= {"gpu", WAYS[plan.way]}
    assert [place == "gpu" for place in plan.placement] == [
        not host for host in offload.spread(shape.layers, in_host)
    ]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "numbers", [{}, {"cpu": 3e9}, {"bus": 1e9}, {"host_bandwidth": 100e9}, {"queue": 2e-3}, {"latency": 0.01}]
)
def test_no_way_is_faster(numbers, batch):
    card = machine(600, 4000, **numbers)
    plan = plan_offload(TINY, card, context=65536, batch=batch, gpu_layers=1)
    assert plan.placement.count("gpu") == 1
    given = (
        1, 3, TINY.layer_parameters * 2 / card.gpu_bandwidth,
        TINY.vocab_size * TINY.hidden * 2 / card.gpu_bandwidth, 65536 * batch * 3 * 2 * 64 * 2,
        offload_time.Rates(card.gpu_bandwidth, card.bus, card.cpu, card.host_bandwidth, card.latency),
    )  # fmt: skip
    ways = [(offload_time.classical, 1), (offload_time.cooperative, 1), (offload_time.shared, 1)]
    ways += [(offload_time.two_halves, 2)] if batch > 1 else []
    times = [max(way(*given).seconds, 4 * halves * card.queue) + card.queue for way, halves in ways]
    assert plan.token_seconds == pytest.approx(min(times))
    assert plan.predictions[0].seconds == min(prediction.seconds for prediction in plan.predictions)
    for name in ("classical", "cooperative", "split"):
        asked = plan_offload(TINY, card, context=65536, batch=batch, gpu_layers=1, way=name)
        assert asked.way == name
        assert asked.token_seconds >= plan.token_seconds
        assert asked.placement.count(WAYS[name]) == 3


def test_largest_context_is_exact():
    for card, given in (
        (machine(100, 100), {}), (machine(100, 100), {"way": "gpu"}), (machine(110, 100), {"gpu_layers": 2}),
        (machine(100, 300), {"batch": 3, "kv_dtype": "int8"}), (machine(110, 50), {"chunk": 512}),
    ):  # fmt: skip
        largest = plan_offload(TINY, card, context=1, **given).largest_context
        plan_offload(TINY, card, context=largest, **given)
        with pytest.raises(DoesNotFit, match=f"the largest context that fits is {largest:,} tokens") as found:
            plan_offload(TINY, card, context=largest + 1, **given)
        assert found.value.largest_context == largest


def test_what_does_not_fit_is_named():
    with pytest.raises(DoesNotFit, match=r"weights and activations take 0\.\d\d GB of the GPU") as found:
        plan_offload(TINY, machine(60, 1000), context=10)
    assert found.value.largest_context == 0
    with pytest.raises(DoesNotFit, match=r"the caches take 3\.07 GB; .* GB of the host are usable"):
        plan_offload(TINY, machine(100, 100), context=10**6)
    with pytest.raises(DoesNotFit, match=r"with all caches on the GPU they take .* GB of it"):
        plan_offload(TINY, machine(100, 10**5), context=10**6, way="gpu")


def test_a_v100_of_16_gb_holds_256k_tokens_of_llama_3_8b():
    """The embedding makes room for what the other layers pass through."""
    plan = plan_offload("llama-3-8b", "v100-16gb", context=262144)
    assert plan.gpu_layers == 0
    assert plan.embedding == "host"
    by_way = {prediction.way: prediction.seconds for prediction in plan.predictions}
    assert by_way["cooperative"] < 0.55 * by_way["classical"]
    assert plan_offload("llama-3-8b", "v100-32gb", context=2048).embedding == "gpu"


def test_overrides():
    given = {
        "gpu_layers": 1, "chunk": 96, "slots": 3, "slot_tokens": 700, "share": 0.3, "threads": 7,
        "margin": 0.1,
    }  # fmt: skip
    card = machine(300, 1000, host_bandwidth=100e9)
    plan = plan_offload(TINY, card, context=65536, way="split", **given)
    found = (plan.gpu_layers, plan.chunk, plan.slots, plan.slot_tokens, plan.share, plan.threads, plan.margin)
    assert found == (1, 96, 3, 700, 0.3, 7, 0.1)
    best = plan_offload(TINY, card, context=65536, way="split", gpu_layers=1)
    assert best.token_seconds < plan.token_seconds
    same = plan_offload(TINY, card, context=65536, way="split", gpu_layers=1, share=best.share)
    assert same.token_seconds == pytest.approx(best.token_seconds, rel=0.01)
    assert (
        plan_offload(TINY, card, context=8192, batch=2, halves=2, gpu_layers=0, way="cooperative").halves == 2
    )


def test_json_both_ways():
    plan = fastattention.plan_offload(TINY, machine(300, 1000), context=65536, batch=2, threads=3)
    assert isinstance(plan, fastattention.OffloadPlan)
    assert OffloadPlan.from_json(plan.to_json()) == plan
    found = json.loads(plan.to_json())
    for broken in (
        "{", "[]", "{}", json.dumps(found | {"more": 1}), json.dumps(found | {"placement": ["gpu"]}),
        json.dumps(found | {"model": {}}), json.dumps(found | {"schema": 99}),
        json.dumps(found | {"hardware": found["hardware"] | {"bus": 0}}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"plan|schema|bus"):
            OffloadPlan.from_json(broken)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context": 0}, "context: expected a whole number of at least 1, got 0"),
        ({"context": 1.5}, "context: expected a whole number"),
        ({"batch": 0}, "batch: expected a whole number"),
        ({"kv_dtype": "int4"}, "kv_dtype: expected one of"),
        ({"kv_dtype": "bfloat16"}, "kv_dtype: with weights in float16 expected that or int8"),
        ({"weight_dtype": "int8"}, "weight_dtype: expected float32 or float16"),
        ({"way": "fast"}, "way: expected 'auto' or one of"),
        ({"gpu_layers": 5}, "gpu_layers: expected 0 to 4, got 5"),
        ({"chunk": 0}, "chunk: expected a whole number"),
        ({"slots": True}, "slots: expected a whole number"),
        ({"slot_tokens": "9"}, "slot_tokens: expected a whole number"),
        ({"share": 1.1}, "share: expected 0 to 1, got 1.1"),
        ({"halves": 2}, "halves: expected 1, or 2 with a batch of at least 2"),
        ({"threads": 0}, "threads: expected a whole number"),
        ({"margin": 1.0}, "margin: expected 0 to 1"),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(ValueError, match=message):
        plan_offload(TINY, machine(150, 1000), **({"context": 100} | given))


def test_the_table():
    text = str(plan_offload(TINY, machine(300, 1000), context=65536, batch=2, way="cooperative"))
    for part in ("in host memory; the CPU attends", "classical", "cooperative", "split", "<- planned"):
        assert part in text
    assert "trained on 8,192" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())


def test_names_are_taken_for_what_they_name():
    assert plan_offload("smollm2", "t4", context=100) == plan_offload(
        model_shape("smollm2"), hardware("t4"), context=100
    )
