"""The planner against published figures, by hand, and by its properties."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment import plan_text
from deployment.advice import advice
from deployment.planner import MOST_AT_A_TIME, Plan, Wanted, plan, to_dict, usual
from deployment.sizing import (
    BANDWIDTH,
    IMAGE_GIB,
    Fit,
    Memory,
    Placement,
    Precision,
    Runner,
    Workload,
    fit,
    memory,
    speed,
    spreads,
    weight_bytes,
)
from deployment.skus import SKUS, Cloud, Gpu, Offer, Sku
from llama_serving.catalog import CATALOG, NANO, ModelVariant
from llama_serving.errors import SetupError

LLAMA_13B: Final = CATALOG["meta-llama/Llama-2-13b-hf"]
CODE_7B: Final = CATALOG["codellama/CodeLlama-7b-hf"]
CODE_34B: Final = CATALOG["codellama/CodeLlama-34b-hf"]
CODE_70B: Final = CATALOG["codellama/CodeLlama-70b-hf"]
PUBLISHED_MIB: Final = 26_406
"""A registry page for Llama-2-13B: what it takes to run it, on one A100 or two V100s."""
A100: Final = SKUS["Standard_NC24ads_A100_v4"]
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
    found = fit(LLAMA_13B, Workload(2048), precision, sku)
    assert (found.reasons, found.placement.gpus) == ((), gpus)
    assert found.memory.weights == pytest.approx(24_825.8, abs=0.05)
    assert found.memory.kv_cache == 1600
    assert found.memory.total == pytest.approx(PUBLISHED_MIB, rel=0.05)


def test_it_is_planned_on_one_a100() -> None:
    found = plan(Wanted(LLAMA_13B, Workload(2048)))
    assert (chosen(found).sku, chosen(found).placement.gpus, found.quota_cores) == (A100, 1, 24)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_the_page_s_p3_2xlarge_is_refused_with_the_reason(precision: Precision) -> None:
    found = plan(Wanted(LLAMA_13B, Workload(2048), precision, cloud=Cloud.AWS, sku=SKUS["p3.2xlarge"]))
    assert not found.fits
    assert f"it takes {chosen(found).memory.total:,.0f} MiB" in chosen(found).reasons[-1]
    assert "1 x V100 16 GB" in chosen(found).reasons[-1]
    assert [one.sku.name for one in found.alternatives if one.fits] == (
        [] if precision is Precision.BF16 else ["p3.8xlarge", "p3.16xlarge"]
    )


def test_memory_by_hand() -> None:
    """Two GPUs, 16 sequences of 4,096 tokens, 8 bits."""
    placement = Placement(SKUS["Standard_NC48ads_A100_v4"], 2, Precision.INT8, Runner.VLLM)
    found = memory(CODE_7B.shape, Workload(4096, 16), placement)
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    others = 2 * 32016 * 4096 + (2 * 32 + 1) * 4096
    mib = 1 << 20
    assert found == Memory(
        weights=(linear + 2 * others) / mib,
        kv_cache=4096 * 16 * 524_288 / mib,
        activations=(8192 * 2 * (4 * 4096 * 2 + 2 * 11008) + 16 * 32016 * 8) / mib,
        overhead=1000,
    )
    assert found.total == found.weights + found.kv_cache + found.activations + found.overhead


@pytest.mark.parametrize(
    ("precision", "bits"),
    [(Precision.BF16, 16), (Precision.FP16, 16), (Precision.INT8, 8), (Precision.INT4, 4.125)],
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


A100_80: Final = SKUS["Standard_NC24ads_A100_v4"].gpu
A6000: Final = Gpu("A6000", 49_140, 768, 155, bf16=True, source="NVIDIA's A6000 datasheet")


@pytest.mark.parametrize(
    ("gpu", "measured"),
    [
        pytest.param(
            A100_80, 25.5, id="gpt-fast without compiling, pytorch.org/blog/accelerating-generative-ai-2"
        ),
        pytest.param(A100_80, 600 / 25, id="a text-generation pipeline, OpenNMT/CTranslate2#1388"),
        pytest.param(A100_80, 27, id="transformers, lm-sys/FastChat#3192"),
        pytest.param(
            A6000, 188 / 7.84, id="transformers, hamelsmu/llama-inference hf/bench.csv, the shortest prompt"
        ),
        pytest.param(SKUS["Standard_NV36ads_A10_v5"].gpu, 1 / 0.034, id="transformers, InternLM/lmdeploy#210"),
    ],
)
def test_a_7b_in_plain_python_is_as_fast_as_was_measured(gpu: Gpu, measured: float) -> None:
    """One sequence on GPUs whose bandwidths differ by three: what Python launches decides."""
    placement = Placement(replace(A100, gpu=gpu), 1, Precision.BF16, Runner.PIPELINE)
    expected = speed(CODE_7B.shape, Workload(400), placement).one
    assert measured / 1.25 < expected < measured * 1.25


def test_compiled_is_as_fast_as_was_measured() -> None:
    """gpt-fast, 7B on an A100-80 with 2,039 GB/s: 104.9 tokens/s."""
    placement = Placement(SKUS["Standard_ND96amsr_A100_v4"], 1, Precision.BF16, Runner.VLLM)
    assert speed(CODE_7B.shape, Workload(400), placement).one == pytest.approx(104.9, rel=0.03)


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
    found = plan(Wanted(variant, Workload(context, number), offer=offer))
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
    assert spreads(LLAMA_13B.shape, 8, Runner.PIPELINE) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_v100_and_t4_have_no_bf16_and_v100_is_not_chosen() -> None:
    for name in ("Standard_NC6s_v3", "Standard_NC4as_T4_v3"):
        assert "does not compute in bf16" in fit(CODE_7B, Workload(512), Precision.BF16, SKUS[name]).reasons[0]
        assert fit(CODE_7B, Workload(512), Precision.FP16, SKUS[name]).fits
    found = plan(Wanted(CODE_7B, Workload(512), Precision.FP16))
    assert chosen(found).sku.name == "Standard_NC4as_T4_v3"
    assert found.quota_cores == 8  # one instance and a fifth, in whole ones
    assert all(sku.retired for name, sku in SKUS.items() if "s_v3" in name and "T4" not in name)
    assert plan(Wanted(CODE_7B, Workload(512), Precision.FP16, instances=10)).quota_cores == 12 * 4
    assert plan(Wanted(CODE_7B, Workload(512), Precision.FP16, offer=Offer.BATCH)).quota_cores == 4


def test_a_t4_with_ecc_is_too_small_for_7b_and_2048_tokens() -> None:
    found = plan(Wanted(CODE_7B, Workload(2048), Precision.FP16))
    assert chosen(found).sku.name == "Standard_NV36ads_A10_v5"
    assert not fit(CODE_7B, Workload(2048), Precision.FP16, SKUS["Standard_NC4as_T4_v3"]).fits


def test_a_part_of_a_gpu_holds_a_quantized_model() -> None:
    assert chosen(plan(Wanted(CODE_7B, Workload(2048), Precision.INT8))).sku.name == "Standard_NV18ads_A10_v5"


@pytest.mark.parametrize(
    ("variant", "size", "short"),
    [
        (CODE_34B, "Standard_NC24ads_A100_v4", "8.9 GiB of disk short"),
        (CODE_70B, "Standard_NC48ads_A100_v4", "10.5 GiB of disk short"),
    ],
)
def test_weights_and_image_must_fit_on_the_disk(variant: ModelVariant, size: str, short: str) -> None:
    (lack,) = fit(variant, Workload(2048), Precision.BF16, SKUS[size]).lacks
    assert lack.short == short
    assert f"an image of {IMAGE_GIB} don't fit on its disk of {SKUS[size].disk_gib} GiB" in lack.sentence
    assert fit(variant, Workload(2048), Precision.BF16, SKUS[size], own_disk=False).fits
    assert fit(variant, Workload(2048), Precision.BF16, replace(SKUS[size], disk_gib=None)).fits
    assert fit(variant, Workload(2048), Precision.INT8, SKUS[size]).fits


def test_a_cluster_of_one_s_own_has_disks_of_its_own() -> None:
    managed, batch, cluster = (
        chosen(plan(Wanted(CODE_34B, Workload(2048), offer=offer))).sku.name
        for offer in (Offer.MANAGED_ONLINE, Offer.BATCH, Offer.KUBERNETES)
    )
    assert (managed, batch, cluster) == (*["Standard_NC40ads_H100_v5"] * 2, "Standard_NC24ads_A100_v4")


def test_a_host_without_memory_loads_nothing() -> None:
    (reason,) = fit(CODE_7B, Workload(512), Precision.BF16, replace(A100, ram_gib=7)).reasons
    assert reason == "its 7 GiB of RAM are less than the 8 that loading takes"
    assert fit(CODE_7B, Workload(512), Precision.BF16, replace(A100, ram_gib=8)).fits


def test_a_retired_machine_is_not_chosen_though_it_is_the_smallest() -> None:
    wanted = Wanted(CODE_7B, Workload(512), Precision.FP16)
    found = plan(wanted, skus=[SKUS["Standard_NC6s_v3"], A100])
    assert (chosen(found).sku, found.alternatives[0].sku.name, found.alternatives[0].fits) == (
        A100,
        "Standard_NC6s_v3",
        True,
    )
    asked = plan(replace(wanted, sku=SKUS["Standard_NC6s_v3"]))
    assert (chosen(asked).sku.name, asked.fits) == ("Standard_NC6s_v3", True)


def test_one_gpu_is_the_pipeline_s_and_several_are_vllm_s() -> None:
    """But in batch, whose image has no vLLM."""
    one, two = SKUS["Standard_NV36ads_A10_v5"], SKUS["Standard_NV72ads_A10_v5"]
    assert fit(LLAMA_13B, Workload(2048), Precision.BF16, A100).placement.runner is Runner.PIPELINE
    spread = fit(LLAMA_13B, Workload(2048), Precision.BF16, two)
    assert (spread.fits, spread.placement.gpus, spread.placement.runner) == (True, 2, Runner.VLLM)
    assert fit(LLAMA_13B, Workload(2048), Precision.BF16, one).placement.runner is Runner.PIPELINE  # and short
    runners = {offer: chosen(usual(Wanted(CODE_70B, Workload(4096), offer=offer))).placement for offer in Offer}
    assert {offer: (placed.runner, placed.gpus) for offer, placed in runners.items()} == {
        Offer.MANAGED_ONLINE: (Runner.VLLM, 2),
        Offer.KUBERNETES: (Runner.VLLM, 2),
        Offer.BATCH: (Runner.PIPELINE, 2),
    }
    several = plan(Wanted(CODE_70B, Workload(4096, 4), offer=Offer.BATCH))
    assert chosen(several).placement.runner is Runner.VLLM, "who asks for more sees what would do it"


def test_vllm_is_given_as_many_sequences_as_the_same_gpus_hold() -> None:
    long, short = (usual(Wanted(CODE_70B, Workload(context))) for context in (16_384, 2048))
    assert (long.wanted.workload.concurrency, short.wanted.workload.concurrency) == (7, MOST_AT_A_TIME)
    eight = plan(Wanted(CODE_70B, Workload(16_384, 8), sku=chosen(long).sku))
    assert not eight.fits
    four = SKUS["Standard_NC96ads_A100_v4"]
    found = usual(Wanted(CODE_70B, Workload(4096), sku=four))
    assert (found.spread, found.wanted.workload.concurrency) == (2, 12), "not the machine's other GPUs"
    assert plan(Wanted(CODE_70B, Workload(4096, 13), sku=four)).spread == 4
    assert usual(Wanted(CODE_7B, Workload(2048))) == plan(Wanted(CODE_7B, Workload(2048)))
    assert usual(Wanted(CODE_7B, Workload(2048), runner=Runner.VLLM)).wanted.workload.concurrency == 8
    assert usual(Wanted(CODE_70B, Workload(100_000), cloud=Cloud.AWS)).chosen is None


def test_each_of_vllm_s_sequences_has_an_answer_in_time() -> None:
    """A slow memory: 256 steps, each reading the weights and all caches, are to end in 178 s."""
    h100 = SKUS["Standard_NC80adis_H100_v5"]
    slow = replace(h100, gpu=replace(h100.gpu, bandwidth_gb_s=152))
    found = usual(Wanted(CODE_70B, Workload(4096), sku=slow), skus=[slow])
    number = found.wanted.workload.concurrency
    assert 1 < number < MOST_AT_A_TIME
    more = plan(Wanted(CODE_70B, Workload(4096, number + 1), sku=slow), skus=[slow])
    assert more.fits
    assert more.longest_answer < 256 <= found.longest_answer


def test_h200_is_not_offered_for_managed_endpoints() -> None:
    workload = Workload(100_000, 2)
    assert chosen(plan(Wanted(CODE_70B, workload, offer=Offer.BATCH))).sku.is_offered(Offer.BATCH)
    assert not SKUS["Standard_ND96isr_H200_v5"].is_offered(Offer.MANAGED_ONLINE)
    assert not SKUS["Standard_ND96amsr_A100_v4"].is_offered(Offer.BATCH)  # nobody says so


def test_nothing_fits() -> None:
    found = plan(Wanted(CODE_70B, Workload(100_000, 64)))
    assert (found.chosen, found.fits, found.quota_cores, found.longest_answer) == (None, False, 0, 0)
    told = to_dict(found)
    assert (told["sku"], told["gpus"], told["fits"], told["memory_mib"]) == (None, 0, False, None)
    assert len(told["alternatives"]) == len([sku for sku in SKUS.values() if sku.cloud is Cloud.AZURE])


def test_as_json() -> None:
    told = to_dict(plan(Wanted(CODE_70B, Workload(4096, 8), instances=2)))
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
    found = plan(Wanted(CODE_7B, Workload(2048), precision))
    assert found.copy_bytes / 1e9 == pytest.approx(gb, abs=0.005)
    assert found.start_s == (found.copy_bytes / 200e6, found.copy_bytes / 25e6)


def test_a_request_s_limit_is_that_of_the_offer() -> None:
    managed, kubernetes, batch, elsewhere = (
        plan(Wanted(LLAMA_13B, Workload(4096), Precision.FP16, offer=offer, cloud=cloud))
        for offer, cloud in [*((offer, Cloud.AZURE) for offer in (Offer.MANAGED_ONLINE, Offer.KUBERNETES, Offer.BATCH)),
                             (Offer.MANAGED_ONLINE, Cloud.AWS)]
    )  # fmt: skip
    assert [one.request_s for one in (managed, kubernetes, batch, elsewhere)] == [178, 148, None, None]
    reading_s = 4096 / chosen(managed).speed.prompt
    assert managed.longest_answer == int((178 - reading_s) * chosen(managed).speed.all)
    assert kubernetes.longest_answer == int((148 - reading_s) * chosen(kubernetes).speed.all)
    assert [batch.longest_answer, elsewhere.longest_answer] == [4096, 4096]
    assert "in the 148 s that a request may take" in plan_text.of(kubernetes)
    assert "a request may take" not in plan_text.of(batch)


def test_the_cheapest_with_prices() -> None:
    prices = {"Standard_NC24ads_A100_v4": 9.0, "Standard_NC40ads_H100_v5": 7.0}
    assert chosen(plan(Wanted(LLAMA_13B, Workload(2048)), prices=prices)).sku.name == "Standard_NC40ads_H100_v5"
    assert chosen(plan(Wanted(LLAMA_13B, Workload(2048)), prices={"Standard_NC24ads_A100_v4": 9.0})).sku is A100


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (Wanted(CODE_7B, Workload(100_001)), "16 to 100,000 tokens"),
        (Wanted(CODE_7B, Workload(0)), "not 0"),
        (Wanted(CODE_7B, Workload(4096, 0)), "at least 1"),
        (Wanted(CODE_7B, Workload(4096), instances=0), "1 to 50 instances, not 0"),
        (Wanted(CODE_7B, Workload(4096), instances=51), "1 to 50 instances, not 51"),
        (Wanted(CODE_7B, Workload(4096, 16), runner=Runner.PIPELINE), "one sequence at a time, not 16"),
        (Wanted(CODE_7B, Workload(4096), Precision.INT4, runner=Runner.PIPELINE), "has no int4 weights"),
        (Wanted(CODE_7B, Workload(4096), cloud=Cloud.AWS, sku=A100), "a machine of azure, not of aws"),
    ],
)
def test_what_cannot_be_planned(wanted: Wanted, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        plan(wanted)


CHANGES: Final = {
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
        (Wanted(LLAMA_13B, Workload(4096), cloud=Cloud.AWS), ["--dtype fp16", "--dtype int8", "--dtype int4", "--cloud azure"]),
        (Wanted(LLAMA_13B, Workload(4096), cloud=Cloud.AWS, runner=Runner.PIPELINE), ["--dtype fp16", "--cloud azure"]),
        (Wanted(CODE_70B, Workload(16_384, 200)), ["--concurrency 1", "--context 4096"]),
    ],
)  # fmt: skip
def test_advice_would_do(wanted: Wanted, options: list[str]) -> None:
    assert plan(wanted).chosen is None
    found = advice(wanted)
    assert [option for option, _ in found] == options
    for option, sku in found:
        name, value = option.split()
        assert chosen(plan(CHANGES[name](wanted, value))).sku is sku
    assert all(f"  {option:<16}" in plan_text.of(plan(wanted)) for option in options)


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
    wanted = Wanted(
        variant, Workload(context, number), precision, offer, sku.cloud if sku else cloud, sku, instances=50
    )
    text = plan_text.of(plan(wanted, prices=dict.fromkeys(SKUS, price) if price else None))
    assert max(map(len, text.splitlines())) <= 80
    assert ("HOURLY" in text) <= (price is not None)
