"""Options of `serve` that say where it listens and what is in front of it."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from llama_endpoints.cli.options import Command, options

if TYPE_CHECKING:
    from llama_serving.server.fronts.binding import Binding

_BINDING = ("host", "port", "open_to_all", "uds", "uds_mode")


class Permissions(click.ParamType[int]):
    """Permissions of a file in octal digits."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the permissions as a number."""
        from llama_serving.server.fronts.binding import permissions

        try:
            return permissions(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


_add_binding: Callable[[Command], Command] = options(
    click.option(
        "--host", default="127.0.0.1", help="Address to listen on; :: is every address, IPv4 and IPv6."
    ),
    click.option("--port", default=8453, type=click.IntRange(1, 65535), help="Port to listen on."),
    click.option("--uds", metavar="PATH", help="Listen on a Unix socket instead."),
    click.option("--uds-mode", type=Permissions(), default="660", help="Permissions of its file."),
    click.option("--open-to-all", is_flag=True, help="Allow a non-local --host without API keys."),
)

# Options that set the variables named in their help.
front_options = options(
    click.option("--tls-cert", metavar="FILE", help="LLAMA_TLS_CERT: chain of certificates in PEM; serves https."),
    click.option("--tls-key", metavar="FILE", help="LLAMA_TLS_KEY: its key; LLAMA_TLS_KEY_PASSWORD decrypts it."),
    click.option("--tls-client-ca", metavar="FILE", help="LLAMA_TLS_CLIENT_CA: clients need a certificate of it."),
    click.option("--path-prefix", metavar="/PATH", help="LLAMA_PATH_PREFIX: the paths also exist below it."),
    click.option("--trusted-proxies", metavar="LIST", help="LLAMA_TRUSTED_PROXIES: whose X-Forwarded-* are believed."),
)  # fmt: skip


def binding_options(command: Command) -> Command:
    """Add the options of the address, which the command gets as one argument, `binding`."""

    @wraps(command)
    def with_binding(**flags: Any) -> None:
        from llama_serving.server.fronts.binding import Binding

        binding = Binding(**{name: flags.pop(name) for name in _BINDING})
        _refuse_both(binding)
        command(binding=binding, **flags)

    return _add_binding(with_binding)


def _refuse_both(binding: "Binding") -> None:
    context = click.get_current_context()
    for name in ("host", "port"):
        given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if binding.uds is not None and given:
            raise click.UsageError(f"Give either --uds or --{name}.")
