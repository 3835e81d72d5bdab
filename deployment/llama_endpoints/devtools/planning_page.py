"""The tables of docs/planning.md, from the planner. `python -m llama_endpoints.devtools.reference` writes them."""

from collections.abc import Iterator, Sequence
from typing import Final

from llama_endpoints.devtools.blocks import table
from llama_endpoints.planning.planner import Plan, PlanRequest, fit_of, plan_with_max_concurrency
from llama_endpoints.planning.published import PUBLISHED
from llama_endpoints.planning.sizing import Precision, Runner, Workload, full_length
from llama_endpoints.planning.skus import SKUS, Offer, Sku
from llama_serving.catalog import CATALOG, NANO, ModelVariant

GPUS: Final = {
    "A10": ("NV36ads_A10_v5", "NV72ads_A10_v5"),
    "A100 80 GB": ("NC24ads_A100_v4", "NC48ads_A100_v4", "NC96ads_A100_v4"),
    "H100 NVL": ("NC40ads_H100_v5", "NC80adis_H100_v5"),
}
"""Machines with one, two and four GPUs of a kind."""
SIZES: Final = ("7b", "13b", "34b", "70b")


def tables() -> dict[str, str]:
    """Return each table by the name of its block in the page."""
    return {"models": _models(), "precisions": _precisions(), "published": _published()}


def _models() -> str:
    variants = [row for row in CATALOG.values() if row is not NANO]
    rows = [
        [row.name, f"{row.trained_positions.value:,}", *_cells(row, row.trained_positions.value)]
        for row in variants
    ]
    return table([["model, in bf16", "context", *GPUS], *rows])


def _precisions() -> str:
    rows = [
        [
            f"{size.upper()} in {precision}",
            "4,096",
            *_cells(CATALOG[f"codellama/CodeLlama-{size}-hf"], 4096, precision),
        ]
        for size in SIZES
        for precision in (Precision.INT8, Precision.INT4)
    ]
    return table([["weights", "context", *GPUS], *rows])


def _cells(variant: ModelVariant, context: int, precision: Precision = Precision.BF16) -> Iterator[str]:
    for names in GPUS.values():
        yield _cell(variant, context, precision, [SKUS[f"Standard_{name}"] for name in names])


def _cell(variant: ModelVariant, context: int, precision: Precision, machines: Sequence[Sku]) -> str:
    request = PlanRequest(variant, Workload(context), precision, Offer.KUBERNETES, runner=Runner.VLLM)
    sku = next((one for one in machines if fit_of(request, one).fits), None)
    if sku is None:
        return "-"
    found = plan_with_max_concurrency(
        PlanRequest(variant, Workload(context), precision, Offer.KUBERNETES, sku=sku), [sku]
    )
    return _numbers(found)


def _numbers(found: Plan) -> str:
    assert found.chosen is not None  # noqa: S101  (the machine is given)
    work, one = found.request.workload, found.chosen
    longest = full_length(one, found.request.variant.shape, work)
    return f"{one.placement.gpus}: {work.concurrency} ({longest}), **{one.speed.all:,.0f}**"


def _published() -> str:
    rows = [
        [one.model, str(one.precision), one.gpu.name, str(one.workload.concurrency), f"{one.measured:,.1f}", f"{one.planned:,.1f}",
         one.source] for one in PUBLISHED
    ]  # fmt: skip
    return table([["model", "weights", "GPU", "sequences", "measured", "planned", "by whom"], *rows])
