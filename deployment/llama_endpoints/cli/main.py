"""The command `llama-endpoints`. Each command imports the heavy libraries it needs."""

import signal
from typing import Any, Final, NoReturn

import click

from llama_endpoints.cli.audit import audit
from llama_endpoints.cli.batch import batch
from llama_endpoints.cli.chat import chat
from llama_endpoints.cli.deploy import deploy
from llama_endpoints.cli.endpoint import COMMANDS
from llama_endpoints.cli.evaluate import evaluate
from llama_endpoints.cli.fetch import fetch
from llama_endpoints.cli.guard import guard
from llama_endpoints.cli.models import models
from llama_endpoints.cli.package import package
from llama_endpoints.cli.plan import plan
from llama_endpoints.cli.prompt import prompt
from llama_endpoints.cli.render import render
from llama_endpoints.cli.replay import replay
from llama_endpoints.cli.rollout import rollout
from llama_endpoints.cli.score import score
from llama_endpoints.cli.serve import serve
from llama_endpoints.cli.top import top
from llama_endpoints.cli.usage import usage
from llama_endpoints.cli.validate import validate
from llama_endpoints.version import full_version
from llama_serving.errors import SetupError


class _Refusal(click.ClickException):
    """An error as one sentence, with exit code 2."""

    exit_code = 2


class _Group(click.Group):
    """Turns setup errors into one sentence, and SIGTERM into an orderly exit."""

    def invoke(self, context: click.Context) -> Any:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # keep a signal ignored if nohup ignores it
                signal.signal(number, _terminate)
        try:
            return super().invoke(context)
        except SetupError as error:
            raise _Refusal(" ".join(str(error).splitlines())) from error


_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _show_version(context: click.Context, _option: click.Parameter, requested: bool) -> None:  # noqa: FBT001  (click's signature)
    if requested and not context.resilient_parsing:
        click.echo(f"llama-endpoints {full_version()}")
        context.exit()


@click.group(cls=_Group, context_settings=_SETTINGS)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
    help="Show the version and its commit, and exit.",
)  # fmt: skip
def main() -> None:
    """Code Llama and Llama-2 behind Azure-ML-style endpoints.

    \b
    Try the embedded model, without a download:
      llama-endpoints package --checkpoint nano --output build/nano
      llama-endpoints score --model build/nano --request yaml/online/samples/completion.json
      mlflow models serve --model-uri build/nano --env-manager local

    Settings are environment variables (LLAMA_CONTEXT, LLAMA_DTYPE, LLAMA_THREADS, …); docs/configuration.md lists them.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")


for _command in (
    audit, batch, chat, deploy, evaluate, fetch, guard, models, package, plan, prompt, render, replay, rollout, score, serve, top,
    usage, validate, *COMMANDS,
):  # fmt: skip
    main.add_command(_command)
