"""The planner against published figures, by hand, and by its properties."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli import plan_report
from llama_endpoints.planning.advice import advice
from llama_endpoints.planning.planner import (
    MOST_AT_A_TIME,
    USUAL_TOKENS,
    Plan,
    PlanRequest,
    deployable,
    plan,
    plan_with_max_concurrency,
    to_dict,
)
from llama_endpoints.planning.published import PUBLISHED, Published
from llama_endpoints.planning.sizing import (
    BANDWIDTH,
    GRAPHS_MIB,
    IMAGE_GIB,
    Fit,
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
    spreads,
    weight_bytes,
)
from llama_endpoints.planning.skus import SKUS, Cloud, Offer, Sku
from llama_serving.catalog import CATALOG, NANO, ModelVariant
from llama_serving.errors import SetupError

LLAMA_13B: Final = CATALOG["meta-llama/Llama-2-13b-hf"]
CODE_7B: Final = CATALOG["codellama/CodeLlama-7b-hf"]
CODE_34B: Final = CATALOG["codellama/CodeLlama-34b-hf"]
CODE_70B: Final = CATALOG["codellama/CodeLlama-70b-hf"]
PUBLISHED_MIB: Final = 26_406
"""A registry page for Llama-2-13B: what it takes to run it, on one A100 or two V100s."""
A100: Final = SKUS["Standard_NC24ads_A100_v4"]
H100: Final = SKUS["Standard_NC40ads_H100_v5"]
TWO_V100: Final = SKUS["Standard_NC12s_v3"]

variants = st.sampled_from([row for row in CATALOG.values() if row is not NANO])
skus = st.sampled_from(list(SKUS.values()))
precisions = st.sampled_from(list(Precision))
runners = st.sampled_from([None, *Runner])
contexts = st.integers(16, 4096)
numbers = st.integers(1, 64)


def chosen(found: Plan) -> Fit:
    assert found.chosen is not None
    return found.chosen


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


@given(variants, contexts, numbers, st.sampled_from(list(Offer)))
def test_what_is_chosen_is_offered_and_holds_it(
    variant: ModelVariant, context: int, number: int, offer: Offer
) -> None:
    found = plan(PlanRequest(variant, Workload(context, number), offer=offer))
    if found.chosen is None:
        return
    assert found.fits
    assert found.chosen.sku.retired is None
    assert found.chosen.sku.is_offered(offer)
    assert found.chosen.memory.total <= found.chosen.placement.limit_mib
    assert found.chosen.placement.gpus in spreads(variant.shape, 8, found.chosen.placement.runner)
    smaller = [one.sku for one in found.alternatives if one.fits and one.sku.gpus < found.chosen.sku.gpus]
    assert all(sku.retired or not sku.is_offered(offer) for sku in smaller)


def test_over_how_many_gpus_a_model_is_spread() -> None:
    """13B has 40 heads, and 13,824 columns between, which 5 does not divide: vLLM refuses that."""
    assert spreads(LLAMA_13B.shape, 8, Runner.VLLM) == [1, 2, 4, 8]
    assert spreads(CODE_70B.shape, 8, Runner.VLLM) == [1, 2, 4, 8]
    assert spreads(replace(LLAMA_13B.shape, ffn=13_825), 8, Runner.VLLM) == [1, 5]
    assert spreads(replace(LLAMA_13B.shape, kv_heads=10), 8, Runner.VLLM) == [1, 2]
    assert spreads(replace(LLAMA_13B.shape, heads=4), 8, Runner.VLLM) == [1, 2, 4]
    assert spreads(replace(NANO.shape, heads=15, kv_heads=15, ffn=15, vocab=60), 8, Runner.VLLM) == [1]  # 64
    assert spreads(CODE_7B.shape, 8, Runner.VLLM, 1, Precision.INT4) == [
        1,
        2,
    ]  # 11,008 columns are 86 groups of 128
    assert spreads(CODE_7B.shape, 8, Runner.VLLM, 1, Precision.INT8) == [1, 2, 4, 8]
    assert spreads(LLAMA_13B.shape, 8, Runner.PIPELINE) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_v100_and_t4_have_no_bf16_and_v100_is_not_chosen() -> None:
    for name in ("Standard_NC6s_v3", "Standard_NC4as_T4_v3"):
        reasons = fit(CODE_7B, Workload(512), Precision.BF16, SKUS[name], Runner.PIPELINE).reasons
        assert "does not compute in bf16" in reasons[0]
        assert fit(CODE_7B, Workload(512), Precision.FP16, SKUS[name], Runner.PIPELINE).fits
    found = plan(PlanRequest(CODE_7B, Workload(12_288), Precision.INT4))
    assert chosen(found).sku.name == "Standard_NC4as_T4_v3"
    assert found.quota_cores == 8  # one instance and a fifth, in whole ones
    assert all(sku.retired for name, sku in SKUS.items() if "s_v3" in name and "T4" not in name)
    assert plan(PlanRequest(CODE_7B, Workload(12_288), Precision.INT4, instances=10)).quota_cores == 12 * 4
    assert plan(PlanRequest(CODE_7B, Workload(12_288), Precision.INT4, offer=Offer.BATCH)).quota_cores == 4


def test_a_v100_is_too_old_for_the_vllm_of_the_image() -> None:
    """Its wheels are built for CUDA 13; the sources would take it. `auto` is the pipeline there."""
    v100 = SKUS["Standard_NC6s_v3"]
    (reason,) = fit(CODE_7B, Workload(256), Precision.FP16, v100, Runner.VLLM).reasons
    assert reason == (
        "V100 16 GB PCIe has compute capability 7.0, but vLLM's wheels for CUDA 13 need 7.5: use the engine pipeline, in fp16"
    )
    assert fit(CODE_7B, Workload(256), Precision.FP16, v100).placement.runner is Runner.PIPELINE
    assert "too old for vLLM" in [
        shortfall.short for shortfall in fit(CODE_7B, Workload(256), Precision.INT4, v100).shortfalls
    ]


def test_a_t4_with_ecc_is_too_small_for_7b_in_16_bits() -> None:
    t4 = SKUS["Standard_NC4as_T4_v3"]
    assert not fit(CODE_7B, Workload(2048), Precision.FP16, t4).fits
    assert not fit(CODE_7B, Workload(2048), Precision.FP16, t4, Runner.PIPELINE).fits
    found = plan(PlanRequest(CODE_7B, Workload(2048), Precision.FP16))
    assert chosen(found).sku.name == "Standard_NV36ads_A10_v5"


@pytest.mark.parametrize(
    ("name", "precision", "size"),
    [
        ("CodeLlama-7b-hf", Precision.INT4, "Standard_NV12ads_A10_v5"),
        ("CodeLlama-7b-hf", Precision.INT8, "Standard_NV18ads_A10_v5"),
        ("CodeLlama-13b-hf", Precision.INT4, "Standard_NC4as_T4_v3"),
        ("CodeLlama-34b-hf", Precision.INT4, "Standard_NV36ads_A10_v5"),
        ("CodeLlama-34b-hf", Precision.INT8, "Standard_NC24ads_A100_v4"),
        ("CodeLlama-70b-hf", Precision.INT4, "Standard_NC24ads_A100_v4"),
        ("CodeLlama-70b-hf", Precision.FP8, "Standard_NC40ads_H100_v5"),
    ],
)
def test_a_precision_that_saves_machines(name: str, precision: Precision, size: str) -> None:
    found = plan_with_max_concurrency(PlanRequest(CATALOG[f"codellama/{name}"], Workload(4096), precision))
    assert chosen(found).sku.name == size
    assert chosen(found).placement.gpus == 1
    assert chosen(found).placement.runner is Runner.VLLM


def test_34b_in_int4_fits_one_a100_of_40_gb() -> None:
    found = fit(CODE_34B, Workload(16_384), Precision.INT4, SKUS["Standard_ND96asr_v4"])
    assert (found.fits, found.placement.gpus) == (True, 1)


def test_a_step_of_vllm_has_a_token_of_each_sequence() -> None:
    few = VllmSizingOptions(prefill_tokens=64)
    found = plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(4096, usual=256), sku=H100, options=few))
    assert found.request.workload.concurrency == 64
    with pytest.raises(
        SetupError, match="65 sequences need a prefill budget of at least as many tokens, not 64"
    ):
        plan(PlanRequest(CODE_7B, Workload(4096, 65), sku=H100, options=few))


def test_a_cache_in_fp8_needs_a_gpu_that_has_it_and_holds_twice_as_many() -> None:
    fp8 = VllmSizingOptions(kv_dtype=KvDtype.FP8)
    (shortfall,) = fit(CODE_7B, Workload(2048), Precision.BF16, A100, options=fp8).shortfalls
    assert shortfall.short == "no fp8 cache"
    assert "fp8 cache needs Ada or Hopper" in shortfall.sentence
    numbers = [
        plan_with_max_concurrency(
            PlanRequest(CODE_7B, Workload(4096), sku=H100, options=options)
        ).request.workload.concurrency
        for options in (VllmSizingOptions(), fp8)
    ]
    assert numbers[1] in (2 * numbers[0], 2 * numbers[0] + 1)


def test_weights_in_fp8_are_widened_where_the_gpu_has_none() -> None:
    told = plan_report.of(plan(PlanRequest(CODE_7B, Workload(2048), Precision.FP8, sku=A100)))
    assert "Warning: A100 80 GB PCIe has no fp8; vLLM widens the weights." in told
    assert "Warning" not in plan_report.of(plan(PlanRequest(CODE_7B, Workload(2048), Precision.FP8, sku=H100)))


def test_a_part_of_a_gpu_holds_a_quantized_model() -> None:
    assert (
        chosen(plan(PlanRequest(CODE_7B, Workload(2048), Precision.INT8))).sku.name == "Standard_NV18ads_A10_v5"
    )


@pytest.mark.parametrize(
    ("variant", "size", "short"),
    [
        (CODE_34B, "Standard_NC24ads_A100_v4", "18.9 GiB of disk short"),
        (CODE_70B, "Standard_NC48ads_A100_v4", "20.5 GiB of disk short"),
    ],
)
def test_weights_and_image_must_fit_on_the_disk(variant: ModelVariant, size: str, short: str) -> None:
    shortfall = fit(variant, Workload(2048), Precision.BF16, SKUS[size]).shortfalls[-1]
    assert shortfall.short == short
    assert (
        f"an image of {IMAGE_GIB[Runner.VLLM]} GiB do not fit on its disk of {SKUS[size].disk_gib} GiB"
        in shortfall.sentence
    )
    assert fit(variant, Workload(2048), Precision.BF16, SKUS[size], own_disk=False).fits
    assert fit(variant, Workload(2048), Precision.BF16, replace(SKUS[size], disk_gib=None)).fits
    assert fit(variant, Workload(2048), Precision.INT8, SKUS[size]).fits


def test_a_cluster_of_one_s_own_has_disks_of_its_own() -> None:
    managed, batch, cluster = (
        chosen(plan(PlanRequest(CODE_34B, Workload(2048), offer=offer))).sku.name
        for offer in (Offer.MANAGED_ONLINE, Offer.BATCH, Offer.KUBERNETES)
    )
    assert (managed, batch, cluster) == (*["Standard_NC40ads_H100_v5"] * 2, "Standard_NC24ads_A100_v4")


def test_a_host_without_memory_loads_nothing() -> None:
    (reason,) = fit(CODE_7B, Workload(512), Precision.BF16, replace(A100, ram_gib=7)).reasons
    assert reason == "its 7 GiB of RAM are less than the 8 GiB that loading takes"
    assert fit(CODE_7B, Workload(512), Precision.BF16, replace(A100, ram_gib=8)).fits


def test_a_retired_machine_is_not_chosen_though_it_is_the_smallest() -> None:
    wanted = PlanRequest(CODE_7B, Workload(512), Precision.FP16)
    found = plan(wanted, skus=[SKUS["Standard_NC6s_v3"], A100])
    assert (chosen(found).sku, found.alternatives[0].sku.name, found.alternatives[0].fits) == (
        A100,
        "Standard_NC6s_v3",
        True,
    )
    asked = plan(replace(wanted, sku=SKUS["Standard_NC6s_v3"]))
    assert (chosen(asked).sku.name, asked.fits) == ("Standard_NC6s_v3", True)


def test_vllm_computes_on_every_gpu_in_every_way_of_use() -> None:
    two = SKUS["Standard_NV72ads_A10_v5"]
    spread = fit(LLAMA_13B, Workload(2048), Precision.BF16, two)
    assert (spread.fits, spread.placement.gpus, spread.placement.runner) == (True, 2, Runner.VLLM)
    for variant in (CODE_7B, CODE_70B):
        placed = [
            chosen(plan_with_max_concurrency(PlanRequest(variant, Workload(4096), offer=offer))).placement
            for offer in Offer
        ]
        assert {one.runner for one in placed} == {Runner.VLLM}
        assert {one.gpus for one in placed} == {2 if variant is CODE_70B else 1}
    asked = plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(4096), runner=Runner.PIPELINE))
    assert (chosen(asked).placement.runner, asked.request.workload.concurrency) == (Runner.PIPELINE, 1)


def test_vllm_is_given_as_many_sequences_as_the_same_gpus_hold() -> None:
    long, short = (
        plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(context))) for context in (16_384, 2048)
    )
    assert long.request.workload.concurrency == short.request.workload.concurrency == 62
    assert (long.request.workload.length, short.request.workload.usual) == (USUAL_TOKENS, USUAL_TOKENS)
    more = replace(long.request, workload=replace(long.request.workload, concurrency=63))
    assert not plan(more).fits
    four = SKUS["Standard_NC96ads_A100_v4"]
    assert plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(4096), sku=four)).spread == 2, (
        "not the machine's other GPUs"
    )
    assert (
        plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(16))).request.workload.concurrency
        == MOST_AT_A_TIME
    )
    long_ones = plan_with_max_concurrency(PlanRequest(CODE_7B, Workload(16_384, usual=16_384)))
    assert long_ones.request.workload.concurrency == 7
    assert plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(100_000), cloud=Cloud.AWS)).chosen is None


def test_each_of_vllm_s_sequences_has_an_answer_in_time() -> None:
    """A slow memory: 256 steps, each reading the weights and all caches, are to end in 178 s, behind all their prompts."""
    h100 = SKUS["Standard_NC80adis_H100_v5"]
    slow = replace(h100, gpu=replace(h100.gpu, bandwidth_gb_s=160))
    found = plan_with_max_concurrency(PlanRequest(CODE_70B, Workload(4096), sku=slow), skus=[slow])
    number = found.request.workload.concurrency
    assert 1 < number < 62
    workload = replace(found.request.workload, concurrency=number + 1)
    more = plan(replace(found.request, workload=workload), skus=[slow])
    assert more.fits
    assert more.longest_answer < 256 <= found.longest_answer


def test_h200_is_not_offered_for_managed_endpoints() -> None:
    workload = Workload(100_000, 2)
    assert chosen(plan(PlanRequest(CODE_70B, workload, offer=Offer.BATCH))).sku.is_offered(Offer.BATCH)
    assert not SKUS["Standard_ND96isr_H200_v5"].is_offered(Offer.MANAGED_ONLINE)
    assert not SKUS["Standard_ND96amsr_A100_v4"].is_offered(Offer.BATCH)  # nobody says so


def test_nothing_fits() -> None:
    found = plan(PlanRequest(CODE_70B, Workload(100_000, 64)))
    assert (found.chosen, found.fits, found.quota_cores, found.longest_answer) == (None, False, 0, 0)
    told = to_dict(found)
    assert (told["sku"], told["gpus"], told["fits"], told["memory_mib"]) == (None, 0, False, None)
    assert len(told["alternatives"]) == len([sku for sku in SKUS.values() if sku.cloud is Cloud.AZURE])


def test_as_json() -> None:
    told = to_dict(plan(PlanRequest(CODE_70B, Workload(4096, 8), instances=2)))
    assert (told["sku"], told["gpus"], told["fits"], told["engine"]) == (
        "Standard_NC80adis_H100_v5",
        2,
        True,
        "vllm",
    )
    items = told["memory_mib"]
    assert items["total"] == pytest.approx(sum(mib for name, mib in items.items() if name != "total"), abs=0.3)
    assert told["quota_cores"] == 2 * 80
    assert (told["ram_gib"], told["disk_gib"], told["request_limit_s"]) == (640, 7152, 178)
    assert told["copy"] == {"bytes": 137_953_820_672, "seconds": 690, "seconds_on_a_slow_day": 5518}
    fitting = [one["fits"] for one in told["alternatives"]]
    assert fitting == sorted(fitting, reverse=True)


@pytest.mark.parametrize(
    ("precision", "gb"), [(Precision.BF16, 13.48), (Precision.INT8, 7.00), (Precision.INT4, 3.86)]
)
def test_a_quantized_checkpoint_is_the_one_that_is_copied(precision: Precision, gb: float) -> None:
    found = plan(PlanRequest(CODE_7B, Workload(2048), precision))
    assert found.copy_bytes / 1e9 == pytest.approx(gb, abs=0.005)
    assert found.start_s == (found.copy_bytes / 200e6, found.copy_bytes / 25e6)


def test_a_request_s_limit_is_that_of_the_offer() -> None:
    managed, kubernetes, batch, elsewhere = (
        plan(PlanRequest(LLAMA_13B, Workload(4096), Precision.FP16, offer=offer, cloud=cloud))
        for offer, cloud in [*((offer, Cloud.AZURE) for offer in (Offer.MANAGED_ONLINE, Offer.KUBERNETES, Offer.BATCH)),
                             (Offer.MANAGED_ONLINE, Cloud.AWS)]
    )  # fmt: skip
    assert [one.request_s for one in (managed, kubernetes, batch, elsewhere)] == [178, 148, None, None]
    assert managed.longest_answer == 4096, "no more than the context"
    managed, kubernetes = (
        plan(PlanRequest(CODE_7B, Workload(16_384, 7), offer=offer, sku=A100))
        for offer in (Offer.MANAGED_ONLINE, Offer.KUBERNETES)
    )
    reading_s = 7 * 16_384 / chosen(managed).speed.prompt
    assert managed.longest_answer == int((178 - reading_s) * chosen(managed).speed.all / 7) < 16_384
    assert kubernetes.longest_answer == int((148 - reading_s) * chosen(kubernetes).speed.all / 7)
    assert [batch.longest_answer, elsewhere.longest_answer] == [4096, 4096]
    assert "within the request limit of 148 s" in plan_report.of(kubernetes)
    assert "a request may take" not in plan_report.of(batch)


def test_the_cheapest_with_prices() -> None:
    prices = {"Standard_NC24ads_A100_v4": 9.0, "Standard_NC40ads_H100_v5": 7.0}
    assert (
        chosen(plan(PlanRequest(LLAMA_13B, Workload(2048)), prices=prices)).sku.name
        == "Standard_NC40ads_H100_v5"
    )
    assert (
        chosen(plan(PlanRequest(LLAMA_13B, Workload(2048)), prices={"Standard_NC24ads_A100_v4": 9.0})).sku
        is A100
    )


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (PlanRequest(CODE_7B, Workload(100_001)), "16 to 100,000 tokens"),
        (PlanRequest(CODE_7B, Workload(0)), "not 0"),
        (PlanRequest(CODE_7B, Workload(4096, 0)), "at least 1"),
        (PlanRequest(CODE_7B, Workload(4096), instances=0), "1 to 50 instances, not 0"),
        (PlanRequest(CODE_7B, Workload(4096), instances=51), "1 to 50 instances, not 51"),
        (PlanRequest(CODE_7B, Workload(4096, 16), runner=Runner.PIPELINE), "one sequence at a time, not 16"),
        (PlanRequest(CODE_7B, Workload(4096), Precision.INT4, runner=Runner.PIPELINE), "has no int4 weights"),
        (PlanRequest(CODE_7B, Workload(4096), cloud=Cloud.AWS, sku=A100), "a machine of azure, not of aws"),
        (PlanRequest(CODE_7B, Workload(4096, usual=15)), "at least 16 tokens, not 15"),
        (
            PlanRequest(
                CODE_7B, Workload(4096), runner=Runner.PIPELINE, options=VllmSizingOptions(speculative_tokens=2)
            ),
            "require the engine vllm",
        ),
    ],
)
def test_what_cannot_be_planned(wanted: PlanRequest, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        plan(wanted)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (
            PlanRequest(CODE_70B, Workload(100_000, 64)),
            "no machine offered for managed_online holds it",
        ),
        (
            PlanRequest(CODE_7B, Workload(4096), sku=SKUS["Standard_NC4as_T4_v3"]),
            "T4 does not compute in bf16; it takes",
        ),
        (
            PlanRequest(CODE_7B, Workload(512), Precision.FP16, sku=SKUS["Standard_NC6s_v3"]),
            "Azure retires Standard_NC6s_v3",
        ),
        (
            PlanRequest(CODE_7B, Workload(512), sku=SKUS["Standard_ND96isr_H200_v5"]),
            "is not offered for managed_online",
        ),
    ],
)
def test_what_cannot_be_deployed(wanted: PlanRequest, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        deployable(plan(wanted))


def test_a_plan_that_can_be_deployed_has_a_machine() -> None:
    found = plan(PlanRequest(CODE_7B, Workload(4096)))
    made = deployable(found)
    assert (made.chosen, made.request, made.copy_bytes) == (found.chosen, found.request, found.copy_bytes)


CHANGES: Final = {
    "--kv-dtype": lambda wanted, value: replace(wanted, options=VllmSizingOptions(kv_dtype=KvDtype(value))),
    "--engine": lambda wanted, value: replace(wanted, runner=Runner(value), options=VllmSizingOptions()),
    "--dtype": lambda wanted, value: replace(wanted, precision=Precision(value)),
    "--concurrency": lambda wanted, value: replace(
        wanted, workload=replace(wanted.workload, concurrency=int(value))
    ),
    "--context": lambda wanted, value: replace(wanted, workload=replace(wanted.workload, context=int(value))),
    "--cloud": lambda wanted, value: replace(wanted, cloud=Cloud(value)),
}


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        (PlanRequest(LLAMA_13B, Workload(4096), cloud=Cloud.AWS), ["--dtype fp16", "--cloud azure"]),
        (PlanRequest(LLAMA_13B, Workload(4096), Precision.FP16, cloud=Cloud.AWS, runner=Runner.VLLM), ["--engine pipeline", "--cloud azure"]),
        (PlanRequest(LLAMA_13B, Workload(4096), cloud=Cloud.AWS, runner=Runner.PIPELINE), ["--dtype fp16", "--cloud azure"]),
        (PlanRequest(CODE_70B, Workload(16_384, 200)), ["--concurrency 1", "--context 4096"]),
    ],
)  # fmt: skip
def test_advice_would_do(wanted: PlanRequest, options: list[str]) -> None:
    assert plan(wanted).chosen is None
    found = advice(wanted)
    assert [option for option, _ in found] == options
    for option, sku in found:
        name, value = option.split()
        assert chosen(plan(CHANGES[name](wanted, value))).sku is sku
    assert all(f"  {option:<16}" in plan_report.of(plan(wanted)) for option in options)


@given(
    variant=variants,
    context=contexts,
    number=st.sampled_from([1, 16, 400]),
    precision=precisions,
    cloud=st.sampled_from(list(Cloud)),
    offer=st.sampled_from(list(Offer)),
    sku=st.sampled_from([None, *SKUS.values()]),
    price=st.sampled_from([None, 3.67, 123.456]),
)
def test_a_plan_as_text_has_80_columns(
    *, variant: ModelVariant, context: int, number: int, precision: Precision, cloud: Cloud, offer: Offer, sku: Sku | None,
    price: float | None
) -> None:  # fmt: skip
    wanted = PlanRequest(
        variant, Workload(context, number), precision, offer, sku.cloud if sku else cloud, sku, instances=50
    )
    text = plan_report.of(plan(wanted, prices=dict.fromkeys(SKUS, price) if price else None))
    assert max(map(len, text.splitlines())) <= 80
    assert ("HOURLY" in text) <= (price is not None)
