"""`llama-endpoints plan`: which machine a model needs, with all numbers, before anything is bought."""

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
@click.option("--model", required=True, help="Its name in the catalog (`llama-endpoints models`).")
@click.option(
    "--context", type=int, help="Tokens of prompt and completion; those it was trained on by default."
)
@click.option(
    "--concurrency",
    type=int,
    help="Sequences that are computed at a time, each as long as the context. By default 1 in the pipeline, and in vLLM as many as the "
    "memory holds at their usual length, up to 256.",
)
@click.option(
    "--dtype",
    "--precision",
    "dtype",
    default="bf16",
    show_default=True,
    type=click.Choice(["bf16", "fp16", "fp8", "int8", "int4"]),
    help="Of the weights; fp8, int8 and int4 (AWQ, GPTQ, compressed-tensors) need a quantized checkpoint and vLLM.",
)
@engine_options
@click.option("--sku", help="This machine, such as Standard_NC24ads_A100_v4, and no other.")
@click.option(
    "--for",
    "offer",
    type=click.Choice(["managed_online", "batch", "kubernetes"]),
    default="managed_online",
    show_default=True,
    help="What Azure ML must offer the machine for.",
)
@click.option(
    "--cloud",
    type=click.Choice(["azure", "aws", "paperspace"]),
    show_default="azure, or that of --sku",
    help="Whose machines.",
)
@click.option(
    "--instances", type=int, default=1, show_default=True, help="Machines, up to 50; quota is counted for all."
)
@click.option(
    "--prices",
    "region",
    metavar="REGION",
    help="Ask Azure's public price list, for such as westeurope, and "
    "choose the cheapest machine. Kept for a day.",
)
@click.option(
    "--prices-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='JSON instead: {"SKU": price an hour}.',
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(  # noqa: PLR0913  (one argument an option)
    *, model: str, context: int | None, concurrency: int | None, dtype: str, engine: EngineChoice, sku: str | None, offer: str,
    cloud: str | None, instances: int, region: str | None, prices_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose the smallest machine that holds a model, and show the arithmetic.

    Nothing is asked of Azure (but prices, with --prices), and nothing is bought. Exit code 1 where nothing fits.

    \b
    Examples:
      llama-endpoints plan --model codellama/CodeLlama-7b-hf
      llama-endpoints plan --model codellama/CodeLlama-70b-Instruct-hf --concurrency 16 --json
      llama-endpoints plan --model codellama/CodeLlama-34b-hf --precision int4 --sku NV36ads_A10_v5
      llama-endpoints plan --model meta-llama/Llama-2-13b-hf --context 2048 --sku p3.2xlarge
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_endpoints.checkpoints.variants import variant_of
    from llama_endpoints.cli import plan_report
    from llama_endpoints.planning.planner import Wanted, to_dict, usual
    from llama_endpoints.planning.planner import plan as planned
    from llama_endpoints.planning.sizing import Precision, Workload
    from llama_endpoints.planning.skus import Cloud, Offer, sku_of

    variant = variant_of(model)
    machine = None if sku is None else sku_of(sku)
    whose = Cloud(cloud) if cloud else machine.cloud if machine else Cloud.AZURE
    wanted = Wanted(
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
    found = usual(wanted, prices=prices) if concurrency is None else planned(wanted, prices=prices)
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
        raise SetupError(f"--prices asks Azure, which has no prices of {cloud}. Give --prices-file instead.")
    return prices.of_region(region, [sku.name for sku in SKUS.values() if sku.cloud is Cloud.AZURE])
