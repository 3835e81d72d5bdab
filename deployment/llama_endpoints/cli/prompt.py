"""`llama-endpoints prompt`: show the prompt of a request."""

from typing import Any

import click

from llama_endpoints.cli.options import format_options, infill_order_option, refuse, request_option, warn
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError


@click.command()
@click.option(
    "--checkpoint",
    required=True,
    help="Folder with tokenizer.json (config.json is checked if present), an azureml: URI, or nano.",
)
@click.option("--variant", help="The model's name in the catalog. Not needed for nano.")
@request_option
@click.option(
    "--context",
    type=click.IntRange(16),
    help="Tokens of prompt and completion. Default: the trained context.",
)
@infill_order_option
@format_options
def prompt(
    *,
    checkpoint: str,
    variant: str | None,
    request: Any,
    context: int | None,
    infill_order: str | None,
    **described: Any,
) -> None:
    """Show the text and token ids the model reads for a request. Needs no weights."""
    from llama_endpoints.checkpoints.inspection import adapt, read_config
    from llama_endpoints.checkpoints.variants import infilling_in, row_for
    from llama_endpoints.download.resolve import folder_of
    from llama_serving.contract import protocol, strict_json
    from llama_serving.prompts.builder import PromptBuilder
    from llama_serving.prompts.tokenizer import Tokenizer
    from llama_serving.service.service import context_of
    from llama_serving.settings import Settings

    folder = folder_of(checkpoint, weights=False)
    row = infilling_in(row_for(checkpoint, folder, variant, described), infill_order)
    if (folder / "config.json").is_file():
        row, warnings = adapt(row, read_config(folder), folder)
        warn(warnings)
    builder = PromptBuilder(
        Tokenizer.from_folder(folder, row.special_ids), row, context_of(row, Settings(context=context))
    )
    try:
        parsed = protocol.parse(strict_json.decode(request.read()))
        prompts = [builder.build_one(parsed, index) for index in range(len(parsed.inputs))]
    except ServingError as error:
        refuse(error)
    shown = [{"text": p.text, "token_ids": list(p.token_ids)} for p in prompts]
    click.echo(json_line({"prompts": shown}))
