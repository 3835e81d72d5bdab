"""`llama-endpoints package`: turn a checkpoint into an MLflow model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from llama_endpoints.cli.options import DTYPES, default_options, format_options, infill_order_option, warn
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from tqdm import tqdm

    from llama_endpoints.checkpoints.inspection import Checkpoint
    from llama_endpoints.checkpoints.package import Packaged, WeightsMode
    from llama_serving.catalog import ModelVariant


@click.command()
@click.option(
    "--checkpoint",
    required=True,
    help="Folder with config.json, tokenizer.json and safetensors, an azureml: URI, or nano.",
)
@click.option(
    "--variant", help="The model's name in the catalog (`llama-endpoints models`). Not needed for nano."
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the new model.")
@click.option(
    "--weights",
    type=click.Choice(["link", "copy", "reference"]),
    default="link",
    help="Hard links take no disk space; reference records only the checkpoint's path.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Type to serve in. Default: the catalog's: bfloat16; nano float32.",
)
@infill_order_option
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="PEFT LoRA adapter to merge: a folder with adapter_config.json and adapter_model.safetensors.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it is a model.")
@format_options
@default_options
def package(  # noqa: PLR0913  (one argument an option)
    *,
    checkpoint: str,
    variant: str | None,
    output: Path,
    weights: str,
    dtype: str | None,
    infill_order: str | None,
    adapter: Path | None,
    overwrite: bool,
    **described: Any,
) -> None:
    """Turn a checkpoint into an MLflow model.

    OUTPUT is the model: pass it to `mlflow models serve --model-uri` and to every --model option.
    If the command fails, OUTPUT is removed.

    AWQ, GPTQ and compressed-tensors checkpoints are detected by their config and checked tensor by
    tensor; serve them with LLAMA_ENGINE=vllm. --adapter merges the weights in float32 and writes a copy.

    \b
    Examples:
      llama-endpoints package --checkpoint nano --output build/nano
      llama-endpoints package --checkpoint CodeLlama-7b-hf --variant codellama/CodeLlama-7b-hf --output models/7b
      llama-endpoints package --checkpoint CodeLlama-7b-hf --variant codellama/CodeLlama-7b-hf \\
        --adapter my-lora --output models/7b-tuned
      llama-endpoints package --checkpoint my-llama --dialog inst --infill none --output models/mine
    """  # noqa: D301
    from llama_endpoints.checkpoints.inspection import inspect
    from llama_endpoints.checkpoints.package import WeightsMode
    from llama_endpoints.checkpoints.package import package as write
    from llama_endpoints.checkpoints.variants import infilling_in, row_for
    from llama_endpoints.download.resolve import folder_of

    folder = folder_of(checkpoint)
    row = infilling_in(row_for(checkpoint, folder, variant, described), infill_order)
    found = inspect(folder, _served_in(row, dtype))
    warn(found.warnings)
    if adapter is None:
        with _weights_bar("weights", found.weight_bytes) as bar:
            done = write(found, output, weights=WeightsMode(weights), overwrite=overwrite, progress=bar.update)
    else:
        found, done = _merge(found, adapter, output, WeightsMode(weights), overwrite=overwrite)
    if done.copied:
        click.echo(f"The weights were copied, since they cannot be linked ({done.copied}).", err=True)
    if done.no_kernels:
        click.echo(f"The model lacks compiled CPU kernels: {done.no_kernels}.", err=True)
    verb = {"link": "linked", "copy": "copied", "reference": "referred to"}[done.weights]
    if adapter is not None:
        verb = "merged and written"
    click.echo(
        f"{output} is {found.variant.title} as an MLflow model, {found.weight_bytes:,} bytes of weights {verb}."
    )


def _weights_bar(what: str, size: int) -> "tqdm[NoReturn]":
    from tqdm import tqdm

    return tqdm(total=size, unit="B", unit_scale=True, desc=what, file=sys.stderr, delay=0.5)


def _merge(
    base: "Checkpoint", folder: Path, output: Path, weights: "WeightsMode", *, overwrite: bool
) -> tuple["Checkpoint", "Packaged"]:
    """Merge an adapter, print how far it moved the model, and package the result."""
    from llama_endpoints.checkpoints.merge_package import base_differs, open_adapter, package_merged

    adapter = open_adapter(base, folder)
    if (warning := base_differs(base, adapter)) is not None:
        warn([warning])
    with _weights_bar("merging", base.weight_bytes) as bar:
        found, done, shift = package_merged(
            base, adapter, output, weights=weights, overwrite=overwrite, progress=bar.update
        )
    for sentence in shift:
        click.echo(sentence)
    return found, done


def _served_in(row: "ModelVariant", dtype: str | None) -> "ModelVariant":
    from dataclasses import replace

    if dtype is None and row.dtype not in DTYPES:
        raise SetupError(
            f"{row.name} has weights in {row.dtype}, which cannot be served. Choose a type with --dtype."
        )
    return row if dtype is None else replace(row, dtype=dtype)
