"""The command `llama-endpoints`. Heavy libraries are imported by the commands that need them."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

import click

from llama_endpoints.cli.batch import batch
from llama_endpoints.cli.deploy import deploy
from llama_endpoints.cli.endpoint import COMMANDS
from llama_endpoints.cli.fetch import fetch
from llama_endpoints.cli.models import models
from llama_endpoints.cli.plan import plan
from llama_endpoints.cli.render import render
from llama_endpoints.cli.rollout import rollout
from llama_endpoints.cli.setting_options import setting_options
from llama_endpoints.cli.validate import validate
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError, SetupError

if TYPE_CHECKING:
    from tqdm import tqdm

    from llama_endpoints.checkpoints.inspection import Checkpoint
    from llama_endpoints.checkpoints.package import Packaged, Weights
    from llama_serving.catalog import ModelVariant
    from llama_serving.model_files import ModelFiles
    from llama_serving.settings import Settings

_DTYPES: Final = ("float32", "bfloat16", "float16")


class _Refusal(click.ClickException):
    """One clear sentence and exit code 2."""

    exit_code = 2


class _Group(click.Group):
    """Turns what can't succeed into a sentence, and a stop from outside into an orderly end."""

    def invoke(self, context: click.Context) -> Any:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # where nohup ignores one, that stays
                signal.signal(number, _terminate)
        try:
            return super().invoke(context)
        except SetupError as error:
            raise _Refusal(" ".join(str(error).splitlines())) from error


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llama-endpoints")
def main() -> None:
    """Code Llama and Llama-2 behind Azure-ML-style endpoints.

    \b
    A first look, with the embedded model and no download:
      llama-endpoints package --checkpoint nano --output build/nano
      llama-endpoints score --model build/nano --request yaml/online/samples/completion.json
      mlflow models serve --model-uri build/nano --env-manager local

    Settings come from the environment (LLAMA_CONTEXT, LLAMA_DTYPE, LLAMA_THREADS, …); README.md lists them.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")


_Command = Callable[..., None]


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# What describes a checkpoint that the catalog does not have.
_format_options = _options(
    click.option("--dialog", type=click.Choice(["inst", "source", "none"]),
                 help="Outside the catalog: the dialog format it was tuned on."),
    click.option("--infill", metavar="PRE,SUF,MID,EOT|none",
                 help="Outside the catalog: its infilling ids, such as 32007,32008,32009,32010."),
    click.option("--step-id", type=int, help="Outside the catalog: the id of <step>, for --dialog source."),
)  # fmt: skip
_default_options = _options(
    click.option("--temperature", type=click.FloatRange(0, 2),
                 help="Outside the catalog: what it samples with by default; 0.2 if not given."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True),
                 help="Outside the catalog: likewise; 0.9 if not given."),
    click.option("--max-context", type=click.IntRange(16),
                 help="Outside the catalog: how far it may read; its config's positions by default."),
)  # fmt: skip


@main.command()
@click.option(
    "--checkpoint",
    required=True,
    help="Folder with config.json, tokenizer.json and safetensors, azureml:...; or nano.",
)
@click.option("--variant", help="Its name in the catalog (`llama-endpoints models`); not needed for nano.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder that becomes the model.")
@click.option(
    "--weights",
    type=click.Choice(["link", "copy", "reference"]),
    default="link",
    show_default=True,
    help="Hard links need no space; a reference records the checkpoint's path and nothing else.",
)
@click.option(
    "--dtype",
    type=click.Choice(_DTYPES),
    help="What to serve in; the catalog's by default (bfloat16, nano float32).",
)
@click.option(
    "--infill-order",
    type=click.Choice(["psm", "spm"]),
    help="Order of infilling prompts; the catalog's by default (psm, nano spm).",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="Folder of a PEFT LoRA adapter to merge into the weights: adapter_config.json, adapter_model.safetensors.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it is a model already.")
@_format_options
@_default_options
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
    """Make an MLflow model of a checkpoint.

    OUTPUT becomes the model itself: `mlflow models serve --model-uri OUTPUT` and every --model of this
    command take it. On any failure nothing is left of it.

    AWQ, GPTQ and compressed-tensors checkpoints are recognized by their config and checked tensor by
    tensor; LLAMA_ENGINE=vllm serves them. With --adapter the weights are merged in float32 and written anew.

    \b
    Examples:
      llama-endpoints package --checkpoint nano --output build/nano
      llama-endpoints package --checkpoint CodeLlama-7b-hf --variant codellama/CodeLlama-7b-hf --output models/7b
      llama-endpoints package --checkpoint CodeLlama-7b-hf --variant codellama/CodeLlama-7b-hf \\
        --adapter my-lora --output models/7b-tuned
      llama-endpoints package --checkpoint my-llama --dialog inst --infill none --output models/mine
    """  # noqa: D301
    from llama_endpoints.checkpoints.inspection import folder_of, inspect
    from llama_endpoints.checkpoints.package import Weights
    from llama_endpoints.checkpoints.package import package as write

    folder = folder_of(checkpoint)
    row = _infilling_in(_row(checkpoint, folder, variant, described), infill_order)
    found = inspect(folder, _served_in(row, dtype))
    _warn(found.warnings)
    if adapter is None:
        with _weights_bar("weights", found.weight_bytes) as bar:
            done = write(found, output, weights=Weights(weights), overwrite=overwrite, progress=bar.update)
    else:
        found, done = _merge(found, adapter, output, Weights(weights), overwrite=overwrite)
    if done.copied:
        click.echo(f"The weights were copied: they can't be linked ({done.copied}).", err=True)
    if done.no_kernels:
        click.echo(f"It brings no compiled kernels for CPUs along: {done.no_kernels}.", err=True)
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
    base: "Checkpoint", folder: Path, output: Path, weights: "Weights", *, overwrite: bool
) -> tuple["Checkpoint", "Packaged"]:
    """Merge an adapter, say how far it moved the model, and package what comes of it."""
    from llama_endpoints.checkpoints.merge_package import base_differs, open_adapter, package_merged

    adapter = open_adapter(base, folder)
    if (warning := base_differs(base, adapter)) is not None:
        _warn([warning])
    with _weights_bar("merging", base.weight_bytes) as bar:
        found, done, shift = package_merged(
            base, adapter, output, weights=weights, overwrite=overwrite, progress=bar.update
        )
    for sentence in shift:
        click.echo(sentence)
    return found, done


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        click.echo(f"Warning: {warning}.", err=True)


def _served_in(row: "ModelVariant", dtype: str | None) -> "ModelVariant":
    from dataclasses import replace

    if dtype is None and row.dtype not in _DTYPES:
        raise SetupError(
            f"{row.name} has weights in {row.dtype}, which is not served. Give the --dtype to serve it in."
        )
    return row if dtype is None else replace(row, dtype=dtype)


def _infilling_in(row: "ModelVariant", order: str | None) -> "ModelVariant":
    from dataclasses import replace

    from llama_serving.catalog import Fact, InfillOrder

    if order is None:
        return row
    if row.infill.value is None:
        raise SetupError(f"{row.name} has no infilling, so --infill-order says nothing. Leave it out.")
    tokens = replace(row.infill.value, order=InfillOrder(order))
    return replace(row, infill=Fact(tokens, row.infill.source))


def _row(checkpoint: str, folder: Path, variant: str | None, described: dict[str, Any]) -> "ModelVariant":
    """The catalog's row, or one made from explicit options. Nothing is read off the checkpoint's name."""
    from llama_endpoints.checkpoints.inspection import variant_of
    from llama_endpoints.checkpoints.variants import custom_variant
    from llama_endpoints.nano import FOLDER
    from llama_serving.catalog import NANO

    given = {name: value for name, value in described.items() if value is not None}
    if variant is not None and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SetupError(f"--variant says all of a model; {options} would describe one outside the catalog. "
                         "Give the one or the other.")  # fmt: skip
    if variant is not None:
        return variant_of(
            variant, "For a checkpoint outside it give --dialog and --infill instead of --variant."
        )
    if not given and folder.samefile(FOLDER):
        return NANO
    if not {"dialog", "infill"} <= given.keys():
        raise SetupError(
            f"Which model is {checkpoint}? Give --variant with a name of `llama-endpoints models`, or both "
            "--dialog and --infill for a checkpoint outside the catalog."
        )
    return custom_variant(folder, **given)


@main.command()
@click.option("--model", required=True, help="Folder of a packaged model, azureml:...; or nano.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8453, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on."
)
@click.option("--open-to-all", is_flag=True, help="Let an address that others reach be used without a key.")
@click.option("--strict-model", is_flag=True, help="Answer 404 to the name of another model.")
@setting_options
@click.option("--deadline", "deadline_s", help="LLAMA_DEADLINE_S: seconds that a request may take.")
def serve(
    *, model: str, host: str, port: int, open_to_all: bool, strict_model: bool, **flags: str | None
) -> None:
    """Serve a model: Azure's, MLflow's and OpenAI's protocols on one port.

    \b
    Paths: /score, /invocations, /v1/completions, /v1/chat/completions, /v1/models,
    /health/live, /health/ready, /ping, /version, /metrics, /openapi.json.
    Keys:  LLAMA_API_KEYS or LLAMA_API_KEYS_FILE; without one it listens on this machine alone.
    End:   SIGTERM or Ctrl-C finishes what is inside; a second one refuses it.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_serving.server.app import Options
    from llama_serving.server.run import Binding, log_as_json
    from llama_serving.server.run import serve as run
    from llama_serving.service.service import Service

    files, settings = model_files(model), settings_of(flags)
    log_as_json()
    click.echo(f"http://{host}:{port} serves {files.variant.name} once it is loaded; Ctrl-C ends it.", err=True)
    binding = Binding(host, port, open_to_all)
    code = run(lambda: Service.start(files, settings), settings, binding, Options(strict_model=strict_model))
    raise SystemExit(code)


@main.command()
@click.option("--model", required=True, help="Folder of a packaged model, azureml:...; or nano.")
@click.option(
    "--request", required=True, type=click.File("rb"), help="File with one JSON body; - is standard input."
)
@setting_options
@click.option("--deadline", "deadline_s", help="LLAMA_DEADLINE_S: seconds that the request may take.")
def score(*, model: str, request: Any, **flags: str | None) -> None:
    """Answer one request in this process.

    Takes every body that the endpoints take: Azure's, MLflow's, OpenAI's. The answer goes to standard
    output; a refusal is the error object on standard error and exit code 1.
    """
    from llama_serving.contract import mlflow, protocol, strict_json
    from llama_serving.service.service import Service

    files, settings = model_files(model), settings_of(flags)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        decoded = strict_json.decode(request.read())
        parsed = protocol.parse(decoded)  # before the model is loaded: a bad body is known at once
        with closing(Service.start(files, settings)) as service:
            generations = service.generate(parsed, deadline=_deadline(settings))
    except ServingError as error:
        _refuse(error)
    answer = protocol.answer(parsed, generations, files.variant.name)
    wrapped = mlflow.wrap(answer) if mlflow.speaks(decoded) else answer
    click.echo(json_line(wrapped))


@main.command()
@click.option(
    "--checkpoint",
    required=True,
    help="Folder with tokenizer.json (config.json is checked if there), azureml:...; or nano.",
)
@click.option("--variant", help="Its name in the catalog; not needed for nano.")
@click.option(
    "--request", required=True, type=click.File("rb"), help="File with one JSON body; - is standard input."
)
@click.option(
    "--context",
    type=click.IntRange(16),
    help="Tokens of prompt and completion; the trained positions by default.",
)
@click.option(
    "--infill-order",
    type=click.Choice(["psm", "spm"]),
    help="Order of infilling prompts; the catalog's by default (psm, nano spm).",
)
@_format_options
def prompt(
    *,
    checkpoint: str,
    variant: str | None,
    request: Any,
    context: int | None,
    infill_order: str | None,
    **described: Any,
) -> None:
    """Show what the model reads for a request: text and token ids. Needs no weights."""
    from llama_endpoints.checkpoints.inspection import adapt, folder_of, read_config
    from llama_serving.contract import protocol, strict_json
    from llama_serving.prompts.builder import PromptBuilder
    from llama_serving.prompts.tokenizer import Tokenizer
    from llama_serving.service.service import context_of
    from llama_serving.settings import Settings

    folder = folder_of(checkpoint, weights=False)
    row = _infilling_in(_row(checkpoint, folder, variant, described), infill_order)
    if (folder / "config.json").is_file():
        row, warnings = adapt(row, read_config(folder), folder)
        _warn(warnings)
    builder = PromptBuilder(
        Tokenizer.from_folder(folder, row.special_ids), row, context_of(row, Settings(context=context))
    )
    try:
        parsed = protocol.parse(strict_json.decode(request.read()))
        prompts = [builder.build_one(parsed, index) for index in range(len(parsed.inputs))]
    except ServingError as error:
        _refuse(error)
    shown = [{"text": p.text, "token_ids": list(p.token_ids)} for p in prompts]
    click.echo(json_line({"prompts": shown}))


def model_files(name: str) -> "ModelFiles":
    """The model `name`: a folder that `package` wrote, one of Azure's names of such, or `nano`.

    Raises:
        SetupError: there is no such model, or it can't be downloaded.
    """
    from llama_endpoints.download.azureml_cache import here
    from llama_endpoints.nano import FOLDER
    from llama_serving.catalog import NANO
    from llama_serving.model_files import ModelFiles

    if name == NANO.name and not any(Path(name).rglob("MLmodel")):
        return ModelFiles(FOLDER, NANO)
    return ModelFiles.find(here(name))


def settings_of(flags: dict[str, str | None]) -> "Settings":
    """The environment's settings, under the flags of a command.

    Raises:
        SetupError: a value can't be used.
    """
    from llama_serving.settings import Settings

    given = {f"LLAMA_{name.upper()}": value for name, value in flags.items() if value is not None}
    return Settings.from_environment({**os.environ, **given})


def _deadline(settings: "Settings") -> float | None:
    import time

    return None if settings.deadline_s is None else time.monotonic() + settings.deadline_s


def _refuse(error: ServingError) -> NoReturn:
    stream: TextIO = sys.stderr
    click.echo(json_line(error.body()), file=stream)
    raise SystemExit(1)


for _command in (batch, models, plan, render, fetch, validate, deploy, rollout, *COMMANDS):
    main.add_command(_command)
