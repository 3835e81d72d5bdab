"""What a plan says: as JSON, as text, its advice, and why nothing fits."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli import plan_report
from llama_endpoints.planning.advice import advice
from llama_endpoints.planning.planner import PlanRequest, deployable, plan, to_dict
from llama_endpoints.planning.sizing import (
    KvDtype,
    Precision,
    Runner,
    VllmSizingOptions,
    Workload,
)
from llama_endpoints.planning.skus import SKUS, Cloud, Offer, Sku
from llama_serving.catalog import ModelVariant
from llama_serving.errors import SetupError
from tests.support.plans import (
    A100,
    CODE_7B,
    CODE_70B,
    LLAMA_13B,
    chosen,
    contexts,
    precisions,
    variants,
)


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
