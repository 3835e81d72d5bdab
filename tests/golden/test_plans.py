"""Golden table: which machine each model needs for three workloads. After an intended change write it anew:

python tests/golden/test_plans.py --write
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llama_endpoints.cli.tables import table
from llama_endpoints.planning.planner import PlanRequest, plan, plan_with_max_concurrency
from llama_endpoints.planning.sizing import Workload
from llama_serving.catalog import CATALOG, NANO, ModelVariant

FILE: Final = Path(__file__).parent / "plans.table"
HEADER: Final = ("MODEL", "CONTEXT", "AT A TIME", "MACHINE", "GPUS", "ENGINE", "WEIGHTS", "CACHE", "TOTAL MiB", "TOKENS/S",
                 "QUOTA")  # fmt: skip


def workloads(variant: ModelVariant) -> Iterator[Workload]:
    yield Workload(2048)
    yield Workload(variant.trained_positions.value)
    yield Workload(4096, 16)


def line(variant: ModelVariant, workload: Workload) -> tuple[str, ...]:
    wanted = PlanRequest(variant, workload)
    found = plan_with_max_concurrency(wanted) if workload.concurrency == 1 else plan(wanted)
    assert found.chosen is not None
    placed, memory = found.chosen.placement, found.chosen.memory
    return (
        variant.name,
        str(workload.context),
        str(found.request.workload.concurrency),
        placed.sku.name,
        str(placed.gpus),
        placed.runner,
        f"{memory.weights:.1f}",
        f"{memory.kv_cache:.1f}",
        f"{memory.total:.1f}",
        f"{found.chosen.speed.all:.0f}",
        str(found.quota_cores),
    )


def made() -> str:
    rows = [variant for variant in CATALOG.values() if variant is not NANO]
    lines = [line(variant, workload) for variant in rows for workload in workloads(variant)]
    return table([HEADER, *lines], left=("MODEL", "MACHINE", "ENGINE")) + "\n"


def test_eighteen_models_times_three_workloads() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) == 1 + 18 * 3
    assert made() == FILE.read_text(encoding="utf-8")


if __name__ == "__main__" and "--write" in sys.argv:
    FILE.write_text(made(), encoding="utf-8")
