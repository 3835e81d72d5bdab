"""`llama-endpoints serve`: serve a model over HTTP."""

import click

from llama_endpoints.cli.options import deadline_option, model_option, setting_options, settings_of


@click.command()
@model_option
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=8453, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--open-to-all", is_flag=True, help="Allow a non-local --host without API keys.")
@click.option("--strict-model", is_flag=True, help="Answer 404 if a request names another model.")
@setting_options
@deadline_option
def serve(
    *, model: str, host: str, port: int, open_to_all: bool, strict_model: bool, **flags: str | None
) -> None:
    """Serve a model: Azure's, MLflow's, OpenAI's, Ollama's and llama.cpp's protocols on one port.

    \b
    Paths: /score, /invocations, /v1/completions, /v1/chat/completions, /v1/models,
    /health/live, /health/ready, /ping, /version, /metrics, /openapi.json.
    Keys:  LLAMA_API_KEYS, LLAMA_API_KEYS_FILE or LLAMA_NAMED_KEYS (SIGHUP reads that again);
           required unless --host is local.
    Stop:  SIGTERM or Ctrl-C finishes running requests; a second one cancels them.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_endpoints.download.resolve import model_files
    from llama_serving.server.json_logs import log_as_json
    from llama_serving.server.run import Binding
    from llama_serving.server.run import serve as run
    from llama_serving.server.scoring import Options
    from llama_serving.service.service import Service

    files, settings = model_files(model), settings_of(flags)
    log_as_json()
    click.echo(
        f"Serving {files.variant.name} at http://{host}:{port} once it is loaded. Press Ctrl-C to stop.",
        err=True,
    )
    binding = Binding(host, port, open_to_all)
    code = run(lambda: Service.start(files, settings), settings, binding, Options(strict_model=strict_model))
    raise SystemExit(code)
