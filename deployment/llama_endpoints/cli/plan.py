"""`llama-endpoints plan`: choose a machine for a model, and show the numbers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from llama_endpoints.cli.engine_options import EngineChoice, engine_options
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.planning.planner import Prices
    from llama_endpoints.planning.skus import Cloud

NOTHING_FITS: Final = 1


@click.command()
@click.option("--model", required=True, help="The model's name in the catalog (`llama-endpoints models`).")
@click.option(
    "--concurrency",
    type=int,
    help="Concurrent sequences, each as long as the context. Default: 1 in the pipeline; in vLLM as many as memory holds "
    "at their usual length, up to 256.",
)
@engine_options
@click.option("--sku", help="Use this machine, such as Standard_NC24ads_A100_v4.")
@click.option(
    "--for",
    "offer",
    type=click.Choice(["managed_online", "batch", "kubernetes"]),
    default="managed_online",
    help="Azure ML offer the machine must support.",
)
@click.option(
    "--cloud",
    type=click.Choice(["azure", "aws", "paperspace"]),
    show_default="azure, or that of --sku",
    help="Cloud to choose machines from.",
)
@click.option("--instances", type=int, default=1, help="Number of machines, up to 50, for the quota.")
@click.option(
    "--prices",
    "region",
    metavar="REGION",
    help="Azure region, such as westeurope. Choose the cheapest machine by Azure's public price list, "
    "cached for a day.",
)
@click.option(
    "--prices-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='JSON file with hourly prices: {"SKU": PRICE}.',
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(  # noqa: PLR0913  (one argument an option)
    *, model: str, context: int | None, concurrency: int | None, dtype: str, engine: EngineChoice, sku: str | None, offer: str,
    cloud: str | None, instances: int, region: str | None, prices_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose the smallest machine that holds a model, and show the arithmetic.

    Runs offline (except for --prices). Exit code 1 if no machine fits.

    \b
    Examples:
      llama-endpoints plan --model codellama/CodeLlama-7b-hf
      llama-endpoints plan --model codellama/CodeLlama-70b-Instruct-hf --concurrency 16 --json
      llama-endpoints plan --model codellama/CodeLlama-34b-hf --precision int4 --sku NV36ads_A10_v5
      llama-endpoints plan --model meta-llama/Llama-2-13b-hf --context 2048 --sku p3.2xlarge
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_endpoints.checkpoints.variants import variant_of
    from llama_endpoints.cli import plan_report
    from llama_endpoints.planning.planner import PlanRequest, plan_with_max_concurrency, to_dict
    from llama_endpoints.planning.planner import plan as planned
    from llama_endpoints.planning.sizing import Precision, Workload
    from llama_endpoints.planning.skus import Cloud, Offer, sku_of

    variant = variant_of(model)
    machine = None if sku is None else sku_of(sku)
    whose = Cloud(cloud) if cloud else machine.cloud if machine else Cloud.AZURE
    request = PlanRequest(
        variant,
        Workload(
            variant.trained_positions.value if context is None else context,
            1 if concurrency is None else concurrency,
            engine.usual_tokens,
        ),
        Precision(dtype),
        Offer(offer),
        whose,
        machine,
        engine.runner,
        instances,
        engine.options,
    )
    prices = _prices(region, prices_file, whose)
    found = (
        plan_with_max_concurrency(request, prices=prices)
        if concurrency is None
        else planned(request, prices=prices)
    )
    if as_json:
        click.echo(json.dumps(to_dict(found), allow_nan=False))
    else:
        click.echo(plan_report.of(found))
    if not found.fits:
        raise SystemExit(NOTHING_FITS)


def _prices(region: str | None, file: Path | None, cloud: "Cloud") -> "Prices":
    from llama_endpoints.planning import prices
    from llama_endpoints.planning.skus import SKUS, Cloud

    if region is not None and file is not None:
        raise SetupError("Give --prices or --prices-file, not both.")
    if file is not None:
        return prices.read(file)
    if region is None:
        return {}
    if cloud is not Cloud.AZURE:
        raise SetupError(
            f"--prices uses Azure's price list, which has no prices for {cloud}. Use --prices-file instead."
        )
    return prices.of_region(region, [sku.name for sku in SKUS.values() if sku.cloud is Cloud.AZURE])
