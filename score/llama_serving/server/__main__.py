"""`python -m llama_serving.server`: serve a packaged model where nothing else is installed, as in a container.

A packaged model has this code in its folder `code`, so a container only needs
`PYTHONPATH=MODEL/code python -m llama_serving.server --host 0.0.0.0 --port 5001 --open-to-all`.
`llama-endpoints serve` does the same with more options.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.server.fronts.binding import Binding, permissions, port_number
from llama_serving.server.json_logs import log_as_json
from llama_serving.server.run import serve
from llama_serving.service.service import Service
from llama_serving.settings import Settings

UNUSABLE: Final = 2
"""Exit code if the server cannot start."""
MODEL: Final = "AZUREML_MODEL_DIR"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the model until told to stop; return the exit code."""
    options = _options(arguments)
    log_as_json()
    try:
        files, settings = ModelFiles.find(_folder(options.model)), Settings.from_environment()
        binding = Binding(options.host, options.port, options.open_to_all, options.uds, options.uds_mode)
        return serve(lambda: Service.start(files, settings), settings, binding)
    except SetupError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return UNUSABLE


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in ("host", "port"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(Binding(), name))
        elif options.uds is not None:
            parser.error(f"Give either --uds or --{name}.")
    return options


def _sentence(parse: Callable[[str], int]) -> Callable[[str], int]:
    """Return the parser of an option whose message argparse prints; that of a ValueError it replaces by its own."""

    def parsed(text: str) -> int:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_serving.server", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--model", help=f"Folder of a packaged model; {MODEL} by default.")
    parser.add_argument("--host", help=f"Address to listen on; {Binding().host} by default.")
    parser.add_argument("--port", type=_sentence(port_number), help=f"{Binding().port} by default.")
    parser.add_argument("--uds", metavar="PATH", help="Listen on a Unix socket instead.")
    parser.add_argument(
        "--uds-mode",
        type=_sentence(permissions),
        default=Binding().uds_mode,
        help="Permissions of its file; 660 by default.",
    )
    parser.add_argument(
        "--open-to-all",
        action="store_true",
        help="Allow an address that other machines can reach without a key.",
    )
    return parser


def _folder(given: str | None) -> Path:
    folder = given or os.environ.get(MODEL)
    if not folder:
        raise SetupError(f"{MODEL} is not set. Set it to the folder of the packaged model, or give --model.")
    return Path(folder)


if __name__ == "__main__":
    sys.exit(main())
