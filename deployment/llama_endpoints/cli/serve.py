"""`llama-endpoints serve`: serve a model over HTTP."""

from typing import TYPE_CHECKING

import click

from llama_endpoints.cli.options import deadline_option, model_option, setting_options, settings_of
from llama_endpoints.cli.serve_options import binding_options, front_options

if TYPE_CHECKING:
    from llama_serving.server.fronts.binding import Binding


@click.command()
@model_option
@binding_options
@front_options
@click.option("--strict-model", is_flag=True, help="Answer 404 if a request names another model.")
@setting_options
@deadline_option
def serve(*, model: str, binding: "Binding", strict_model: bool, **flags: str | None) -> None:
    """Serve a model: Azure's, MLflow's, OpenAI's, Ollama's and llama.cpp's protocols on one port.

    \b
    Paths: /score, /invocations, /v1/completions, /v1/chat/completions, /v1/models,
    /health/live, /health/ready, /ping, /version, /metrics, /openapi.json.
    Keys:  LLAMA_API_KEYS, LLAMA_API_KEYS_FILE or LLAMA_NAMED_KEYS (SIGHUP reads that again);
           required unless --host is local.
    TLS:   the files of --tls-cert and --tls-key are read again when they change, and on SIGHUP.
    Stop:  SIGTERM or Ctrl-C finishes running requests; a second one cancels them.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_endpoints.download.resolve import model_files
    from llama_serving.server.json_logs import log_as_json
    from llama_serving.server.run import serve as run
    from llama_serving.server.scoring import Options
    from llama_serving.service.service import Service

    files, settings = model_files(model), settings_of(flags)
    log_as_json()
    address = binding.told(tls=settings.tls_cert is not None, prefix=settings.path_prefix)
    click.echo(f"Serving {files.variant.name} at {address} once it is loaded. Press Ctrl-C to stop.", err=True)
    code = run(lambda: Service.start(files, settings), settings, binding, Options(strict_model=strict_model))
    raise SystemExit(code)
