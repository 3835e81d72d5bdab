"""The planner against published figures, by hand, and by its properties."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.planner import Plan, Wanted, plan, to_dict
from deployment.sizing import (
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
from deployment.skus import SKUS, Cloud, Offer, Sku
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
    found = plan(Wanted(LLAMA_13B, Workload(2048), precision, sku=SKUS["p3.2xlarge"]))
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
    assert variant.shape.kv_heads % found.chosen.placement.gpus == 0
    smaller = [one.sku for one in found.alternatives if one.fits and one.sku.gpus < found.chosen.sku.gpus]
    assert all(sku.retired or not sku.is_offered(offer) for sku in smaller)


def test_heads_decide_over_how_many_gpus() -> None:
    assert spreads(LLAMA_13B.shape, 8) == [1, 2, 4, 5, 8]
    assert spreads(CODE_70B.shape, 8) == [1, 2, 4, 8]


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
        "Standard_NC48ads_A100_v4",
        2,
        True,
        "vllm",
    )
    items = told["memory_mib"]
    assert items["total"] == pytest.approx(sum(mib for name, mib in items.items() if name != "total"), abs=0.3)
    assert told["quota_cores"] == 2 * 48
    assert told["copy"] == {"bytes": 137_953_820_672, "seconds": 690, "seconds_on_a_slow_day": 5518}
    fitting = [one["fits"] for one in told["alternatives"]]
    assert fitting == sorted(fitting, reverse=True)


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
        (Wanted(CODE_7B, Workload(4096), instances=0), "at least 1"),
    ],
)
def test_what_cannot_be_planned(wanted: Wanted, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        plan(wanted)


@pytest.mark.parametrize("sku", SKUS.values(), ids=SKUS)
def test_rows(sku: Sku) -> None:
    assert sku.gpus >= 1
    assert sku.cores >= 1
    assert sku.gpu.source
    assert all(fact.source for fact in sku.offered.values())
    assert (sku.cloud is Cloud.AZURE) == sku.name.startswith("Standard_") == bool(sku.family)
