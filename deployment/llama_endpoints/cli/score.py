"""`llama-endpoints score`: answer one request in this process."""

import logging
import time
from contextlib import closing
from typing import Any

import click

from llama_endpoints.cli.options import (
    deadline_option,
    model_option,
    refuse,
    request_option,
    setting_options,
    settings_of,
)
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError


@click.command()
@model_option
@request_option
@setting_options
@deadline_option
def score(*, model: str, request: Any, **flags: str | None) -> None:
    """Answer one request in this process.

    Takes every body that the endpoints take: Azure's, MLflow's and OpenAI's. Prints the answer. On an
    error, prints the error object to standard error and exits with code 1.
    """
    from llama_endpoints.download.resolve import model_files
    from llama_serving.contract import mlflow, protocol, strict_json
    from llama_serving.service.service import Service

    files, settings = model_files(model), settings_of(flags)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        decoded = strict_json.decode(request.read())
        parsed = protocol.parse(decoded)  # before the model is loaded, so that a bad body fails at once
        with closing(Service.start(files, settings)) as service:
            deadline = None if settings.deadline_s is None else time.monotonic() + settings.deadline_s
            generations = service.generate(parsed, deadline=deadline)
    except ServingError as error:
        refuse(error)
    answer = protocol.answer(parsed, generations, files.variant.name)
    wrapped = mlflow.wrap(answer) if mlflow.speaks(decoded) else answer
    click.echo(json_line(wrapped))
