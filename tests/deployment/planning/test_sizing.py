"""Memory and speed, against published figures, by hand, and by their properties."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.planning.planner import PlanRequest, plan
from llama_endpoints.planning.published import PUBLISHED, Published
from llama_endpoints.planning.sizing import (
    BANDWIDTH,
    GRAPHS_MIB,
    KvDtype,
    MemoryEstimate,
    Placement,
    Precision,
    Runner,
    VllmSizingOptions,
    Workload,
    fit,
    memory,
    prefill_tokens,
    speed,
    weight_bytes,
)
from llama_endpoints.planning.skus import SKUS, Cloud, Sku
from llama_serving.catalog import ModelVariant
from tests.support.plans import (
    A100,
    CODE_7B,
    CODE_34B,
    CODE_70B,
    H100,
    LLAMA_13B,
    chosen,
    contexts,
    numbers,
    precisions,
    variants,
)

PUBLISHED_MIB: Final = 26_406
"""A registry page for Llama-2-13B: what it takes to run it, on one A100 or two V100s."""
TWO_V100: Final = SKUS["Standard_NC12s_v3"]
skus = st.sampled_from(list(SKUS.values()))
runners = st.sampled_from([None, *Runner])


@pytest.mark.parametrize(
    ("sku", "precision", "gpus"), [(A100, Precision.BF16, 1), (TWO_V100, Precision.FP16, 2)]
)
def test_llama_2_13b_takes_what_is_published(sku: Sku, precision: Precision, gpus: int) -> None:
    found = fit(LLAMA_13B, Workload(2048), precision, sku, Runner.PIPELINE)
    assert (found.reasons, found.placement.gpus) == ((), gpus)
    assert found.memory.weights == pytest.approx(24_825.8, abs=0.05)
    assert found.memory.kv_cache == 1600
    assert found.memory.total == pytest.approx(PUBLISHED_MIB, rel=0.05)


def test_it_is_planned_on_one_a100() -> None:
    found = plan(PlanRequest(LLAMA_13B, Workload(2048)))
    assert (chosen(found).sku, chosen(found).placement.gpus, found.quota_cores) == (A100, 1, 24)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_the_page_s_p3_2xlarge_is_refused_with_the_reason(precision: Precision) -> None:
    found = plan(PlanRequest(LLAMA_13B, Workload(2048), precision, cloud=Cloud.AWS, sku=SKUS["p3.2xlarge"]))
    assert not found.fits
    assert f"it takes {chosen(found).memory.total:,.0f} MiB" in chosen(found).reasons[-1]
    assert "1 x V100 16 GB" in chosen(found).reasons[-1]
    assert [one.sku.name for one in found.alternatives if one.fits] == (
        [] if precision is Precision.BF16 else ["p3.8xlarge", "p3.16xlarge"]
    )


def test_memory_by_hand() -> None:
    """Two GPUs, 16 sequences of 4,096 tokens, 8 bits; vLLM takes 2,048 tokens of prompts at a time on an A100."""
    placement = Placement(SKUS["Standard_NC48ads_A100_v4"], 2, Precision.INT8, Runner.VLLM)
    found = memory(CODE_7B.shape, Workload(4096, 16), placement)
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    others = 2 * 32016 * 4096 + (2 * 32 + 1) * 4096
    mib = 1 << 20
    assert found == MemoryEstimate(
        weights=(linear + 2 * others) / mib,
        kv_cache=4096 * 16 * 524_288 / mib,
        activations=(2048 * 2 * (4 * 4096 * 2 + 2 * 11008) + 16 * 32016 * 8) / mib,
        overhead=1000,
        graphs=2 * GRAPHS_MIB,
    )
    items = (found.weights, found.kv_cache, found.activations, found.overhead, found.graphs)
    assert found.total == sum(items)


def test_memory_of_what_vllm_is_asked_for_by_hand() -> None:
    """Half a cache, guessed tokens with their logits and keys, and another budget of prompts; the pipeline captures no graphs."""
    mib, work = 1 << 20, Workload(4096, 8, usual=1024)
    plain = memory(CODE_7B.shape, work, Placement(H100, 1, Precision.BF16, Runner.VLLM))
    asked = VllmSizingOptions(kv_dtype=KvDtype.FP8, prefill_tokens=1024, speculative_tokens=3)
    found = memory(CODE_7B.shape, work, Placement(H100, 1, Precision.BF16, Runner.VLLM, asked))
    assert plain.kv_cache == 8 * 1024 * 524_288 / mib
    assert found.kv_cache == (8 * 1024 + 8 * 3) * 262_144 / mib
    assert plain.activations == (8192 * 2 * (4 * 4096 + 2 * 11008) + 8 * 32016 * 8) / mib
    assert found.activations == (1024 * 2 * (4 * 4096 + 2 * 11008) + 8 * 4 * 32016 * 8) / mib
    assert (
        memory(CODE_7B.shape, Workload(4096), Placement(H100, 1, Precision.BF16, Runner.PIPELINE)).graphs == 0
    )


def test_there_is_room_for_one_sequence_at_its_longest_and_all_at_their_usual_length() -> None:
    assert Workload(4096, 3).cached_tokens == 3 * 4096
    assert Workload(4096, 3, usual=1000).cached_tokens == 4096
    assert Workload(4096, 9, usual=1000).cached_tokens == 9000
    assert Workload(512, 9, usual=1000).cached_tokens == 9 * 512


def test_vllm_s_own_budget_of_prompts() -> None:
    """8,192 on large GPUs but A100s, else 2,048 (vLLM 0.32, engine/arg_utils.py)."""
    assert [prefill_tokens(SKUS[f"Standard_{name}"].gpu) for name in (
        "NC4as_T4_v3", "NV36ads_A10_v5", "ND96asr_v4", "NC24ads_A100_v4", "NC40ads_H100_v5", "ND96isr_H200_v5")] == [
        2048, 2048, 2048, 2048, 8192, 8192]  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "bits"),
    [
        (Precision.BF16, 16),
        (Precision.FP16, 16),
        (Precision.FP8, 8),
        (Precision.INT8, 8),
        (Precision.INT4, 4.125),
    ],
)
def test_weights(precision: Precision, bits: float) -> None:
    shape = CODE_34B.shape
    linear = 48 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 22016)
    assert weight_bytes(shape, precision) == linear * bits / 8 + (33_743_970_304 - linear) * 2


def test_speed_by_hand() -> None:
    """The bandwidth while sequences are few, the operations when they are many; a short context's cache hardly counts."""
    placement = Placement(A100, 1, Precision.BF16, Runner.VLLM)
    one = speed(CODE_7B.shape, Workload(16), placement)
    step_bytes = 13_477_093_376 + 8 * 524_288
    assert one.limit == pytest.approx(1.935e12 / step_bytes)
    assert one.one == one.all == pytest.approx(0.69 * one.limit)
    assert one.prompt == pytest.approx(0.48 * 312e12 / (2 * 6_738_546_688))
    many = speed(CODE_7B.shape, Workload(16, 4096), placement)
    assert (many.one, many.all) == (one.one, pytest.approx(many.prompt))


@pytest.mark.parametrize(
    "one", PUBLISHED, ids=lambda one: f"{one.model} {one.precision} {one.gpu.name}: {one.source}"
)
def test_it_is_as_fast_as_was_measured(one: Published) -> None:
    """In plain Python what is launched decides, whatever the GPU; compiled, the memory does, and operations where there are many."""
    assert one.measured / 1.25 < one.planned < one.measured * 1.25


def test_groups_of_gpus_make_many_faster_and_not_one() -> None:
    two = SKUS["Standard_NC48ads_A100_v4"]
    alone = Placement(two, 1, Precision.BF16, Runner.VLLM)
    groups = Placement(two, 2, Precision.BF16, Runner.VLLM, VllmSizingOptions(pipeline_parallel=2))
    one, grouped = (speed(CODE_7B.shape, Workload(2048, 8), placement) for placement in (alone, groups))
    assert (groups.tensor_parallel, grouped.one) == (1, one.one)
    assert grouped.all == pytest.approx(2 * one.all)
    assert speed(CODE_7B.shape, Workload(2048, 1), groups).all == one.one


def test_a_slow_memory_decides_where_python_is_done_sooner() -> None:
    placement = Placement(SKUS["Standard_NC4as_T4_v3"], 1, Precision.FP16, Runner.PIPELINE)
    found = speed(CODE_7B.shape, Workload(16), placement)
    assert found.one == pytest.approx(BANDWIDTH * found.limit)
    assert found.one < 25.5


def test_ours_has_one_sequence_and_one_gpu_at_a_time() -> None:
    two = SKUS["Standard_NC48ads_A100_v4"]
    ours, vllm = (
        speed(CODE_70B.shape, Workload(4096, 8), Placement(two, 2, Precision.BF16, runner)) for runner in Runner
    )
    assert ours.one == ours.all
    assert vllm.limit == pytest.approx(2 * ours.limit)
    assert vllm.all > 7 * vllm.one * 0.9


@given(
    variant=variants,
    context=contexts,
    number=numbers,
    precision=precisions,
    sku=skus,
    runner=runners,
    mib=st.integers(1, 100_000),
    double=st.integers(0, 2),
)
def test_more_memory_never_stops_fitting(
    *, variant: ModelVariant, context: int, number: int, precision: Precision, sku: Sku, runner: Runner | None, mib: int, double: int
) -> None:  # fmt: skip
    larger = replace(sku, gpu=replace(sku.gpu, memory_mib=sku.gpu.memory_mib + mib), gpus=sku.gpus * 2**double)
    workload = Workload(context, number)
    before = fit(variant, workload, precision, sku, runner)
    after = fit(variant, workload, precision, larger, runner)
    assert after.fits or not before.fits
    assert not before.fits or after.placement.gpus <= before.placement.gpus


@given(
    variant=variants,
    one=contexts,
    another=contexts,
    number=numbers,
    precision=precisions,
    sku=skus,
    runner=runners,
)
def test_more_context_never_needs_less(
    *, variant: ModelVariant, one: int, another: int, number: int, precision: Precision, sku: Sku, runner: Runner | None
) -> None:  # fmt: skip
    few, many = sorted((one, another))
    before = fit(variant, Workload(few, number), precision, sku, runner)
    after = fit(variant, Workload(many, number), precision, sku, runner)
    assert before.memory.total <= after.memory.total
    assert before.fits or not after.fits


@given(
    variant=variants,
    context=contexts,
    one=numbers,
    another=numbers,
    precision=precisions,
    sku=skus,
    runner=runners,
)
def test_more_sequences_never_need_less(
    *, variant: ModelVariant, context: int, one: int, another: int, precision: Precision, sku: Sku, runner: Runner | None
) -> None:  # fmt: skip
    few, many = sorted((one, another))
    before = fit(variant, Workload(context, few), precision, sku, runner or Runner.VLLM)
    after = fit(variant, Workload(context, many), precision, sku, runner or Runner.VLLM)
    assert before.memory.total <= after.memory.total
