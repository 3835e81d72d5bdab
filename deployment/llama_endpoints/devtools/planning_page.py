"""The tables of docs/planning.md, from the planner. After a change: `python -m llama_endpoints.devtools.planning_page`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from llama_endpoints.planning.planner import Plan, Wanted, fit_of, usual
from llama_endpoints.planning.published import PUBLISHED
from llama_endpoints.planning.sizing import Precision, Runner, Workload, full_length
from llama_endpoints.planning.skus import SKUS, Offer, Sku
from llama_serving.catalog import CATALOG, NANO, ModelVariant

PAGE: Final = Path(__file__).resolve().parents[3] / "docs/planning.md"
GPUS: Final = {
    "A10": ("NV36ads_A10_v5", "NV72ads_A10_v5"),
    "A100 80 GB": ("NC24ads_A100_v4", "NC48ads_A100_v4", "NC96ads_A100_v4"),
    "H100 NVL": ("NC40ads_H100_v5", "NC80adis_H100_v5"),
}
"""Machines with one, two and four of a GPU."""
SIZES: Final = ("7b", "13b", "34b", "70b")
_BLOCK: Final = r"(<!-- {} -->\n).*?(<!-- end -->)"


def tables() -> dict[str, str]:
    """Each by its name in the page."""
    return {"models": _models(), "precisions": _precisions(), "published": _published()}


def page(text: str) -> str:
    """The page with its tables as the planner has them now."""
    for name, table in tables().items():
        pattern = re.compile(_BLOCK.format(name), re.DOTALL)
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", text)  # type: ignore[misc]
    return text


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _models() -> str:
    variants = [row for row in CATALOG.values() if row is not NANO]
    rows = [
        [row.name, f"{row.trained_positions.value:,}", *_cells(row, row.trained_positions.value)]
        for row in variants
    ]
    return _table([["model, in bf16", "context", *GPUS], *rows])


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
    return _table([["weights", "context", *GPUS], *rows])


def _cells(variant: ModelVariant, context: int, precision: Precision = Precision.BF16) -> Iterator[str]:
    for names in GPUS.values():
        yield _cell(variant, context, precision, [SKUS[f"Standard_{name}"] for name in names])


def _cell(variant: ModelVariant, context: int, precision: Precision, machines: Sequence[Sku]) -> str:
    wanted = Wanted(variant, Workload(context), precision, Offer.KUBERNETES, runner=Runner.VLLM)
    sku = next((one for one in machines if fit_of(wanted, one).fits), None)
    if sku is None:
        return "-"
    found = usual(Wanted(variant, Workload(context), precision, Offer.KUBERNETES, sku=sku), [sku])
    return _numbers(found)


def _numbers(found: Plan) -> str:
    assert found.chosen is not None  # noqa: S101  (it fits)
    work, one = found.wanted.workload, found.chosen
    longest = full_length(one, found.wanted.variant.shape, work)
    return f"{one.placement.gpus}: {work.concurrency} ({longest}), **{one.speed.all:,.0f}**"


def _published() -> str:
    rows = [
        [one.model, str(one.precision), one.gpu.name, str(one.workload.concurrency), f"{one.measured:,.1f}", f"{one.planned:,.1f}",
         one.source] for one in PUBLISHED
    ]  # fmt: skip
    return _table([["model", "weights", "GPU", "sequences", "measured", "planned", "by whom"], *rows])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
