"""`llama-endpoints package`: turn a checkpoint into an MLflow model."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from llama_endpoints.cli.options import DTYPES, default_options, format_options, infill_order_option, warn
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm

    from llama_endpoints.checkpoints.gguf_package import GgufModel
    from llama_endpoints.checkpoints.inspection import Checkpoint
    from llama_endpoints.checkpoints.package import Packaged, WeightsMode
    from llama_serving.catalog import ModelVariant


@click.command()
@click.option(
    "--checkpoint",
    required=True,
    help="Folder with config.json, tokenizer.json and safetensors, a GGUF file, an azureml: URI, or nano.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="With a GGUF file: folder with tokenizer.json of the model it was made from. Default: the file's folder.",
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
    tokenizer: Path | None,
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
    The weights of a GGUF file are decoded to float16 (or its own 16 or 32 bits), for every engine.

    \b
    Examples:
      llama-endpoints package --checkpoint nano --output build/nano
      llama-endpoints package --checkpoint CodeLlama-7b-hf --variant codellama/CodeLlama-7b-hf --output models/7b
      llama-endpoints package --checkpoint CodeLlama-7b-hf --variant codellama/CodeLlama-7b-hf \\
        --adapter my-lora --output models/7b-tuned
      llama-endpoints package --checkpoint codellama-7b.Q4_K_M.gguf --tokenizer CodeLlama-7b-hf \\
        --variant codellama/CodeLlama-7b-hf --output models/7b-gguf
      llama-endpoints package --checkpoint my-llama --dialog inst --infill none --output models/mine
    """  # noqa: D301
    from llama_endpoints.checkpoints.variants import infilling_in, row_for
    from llama_endpoints.download.resolve import GGUF, checkpoint_of

    def row(folder: Path) -> "ModelVariant":
        return _served_in(infilling_in(row_for(checkpoint, folder, variant, described), infill_order), dtype)

    how = _How(output, weights, adapter, overwrite)
    path = checkpoint_of(checkpoint)
    if path.suffix.lower() == GGUF and path.is_file():
        _package_gguf(path, tokenizer or path.parent, row, how)
    elif tokenizer is not None:
        raise SetupError("--tokenizer belongs to a GGUF file; other checkpoints bring theirs. Remove it.")
    else:
        _package(path, row(path), how)


@dataclass(frozen=True, slots=True)
class _How:
    """The options of all kinds of checkpoints."""

    output: Path
    weights: str
    adapter: Path | None
    overwrite: bool


def _package_gguf(path: Path, tokenizer: Path, row: "Callable[[Path], ModelVariant]", how: _How) -> None:
    """Convert a GGUF file and package the result."""
    from llama_endpoints.checkpoints.gguf_package import GgufModel, unpacked

    if how.weights == "reference":
        raise SetupError(
            f"The weights of {path} are converted, so they cannot be referenced. Use --weights link or copy."
        )
    model = GgufModel.open(path, tokenizer)
    with unpacked(model, how.output, overwrite=how.overwrite) as folder:
        variant = row(folder)
        model.check_variant(variant)
        with _weights_bar("converting", model.llama.source_bytes) as bar:
            model.write_weights(folder, bar.update)
        _package(folder, variant, replace(how, weights="link"), model)


def _package(folder: Path, variant: "ModelVariant", how: _How, gguf: "GgufModel | None" = None) -> None:
    """Package a checkpoint and print what was done; `gguf` is what it was converted from."""
    from llama_endpoints.checkpoints.inspection import inspect
    from llama_endpoints.checkpoints.package import WeightsMode
    from llama_endpoints.checkpoints.package import package as write

    found = inspect(folder, variant)
    if gguf is not None:
        found = replace(found, gguf=gguf.origin)
    warn(found.warnings)
    weights = WeightsMode(how.weights)
    if how.adapter is None:
        with _weights_bar("weights", found.weight_bytes) as bar:
            done = write(found, how.output, weights=weights, overwrite=how.overwrite, progress=bar.update)
    else:
        found, done = _merge(found, how.adapter, how.output, weights, overwrite=how.overwrite)
    if done.copied:
        click.echo(f"The weights were copied, since they cannot be linked ({done.copied}).", err=True)
    if done.no_kernels:
        click.echo(f"The model lacks compiled CPU kernels: {done.no_kernels}.", err=True)
    verb = {"link": "linked", "copy": "copied", "reference": "referred to"}[done.weights]
    if gguf is not None:
        verb = f"converted from {gguf.path.name} ({gguf.llama.kinds})"
    if how.adapter is not None:
        verb = "merged and written"
    click.echo(
        f"{how.output} is {found.variant.title} as an MLflow model, {found.weight_bytes:,} bytes of weights {verb}."
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
    if dtype is None and row.dtype not in DTYPES:
        raise SetupError(
            f"{row.name} has weights in {row.dtype}, which cannot be served. Choose a type with --dtype."
        )
    return row if dtype is None else replace(row, dtype=dtype)
