"""`llama-endpoints chat`: talk to a model in the terminal."""

import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.options import setting_options, settings_of
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_endpoints.chat.model import ChatModel

KEY: Final = "LLAMA_CHAT_KEY"


@click.command()
@click.option("--model", help="Folder of a packaged model, an azureml: URI, or nano: loaded here.")
@click.option("--url", help="Address of a running server, such as http://127.0.0.1:8453.")
@click.option("--system", default="", show_default=False, help="System prompt of the dialog.")
@click.option("--parameters", default="{}", help="Parameters of every request, as a JSON object.")
@click.option("--history", is_flag=True, help="Keep what you type on disk, in ~/.local/state/llama-endpoints.")
@setting_options
def chat(
    *,
    model: str | None,
    url: str | None,
    system: str,
    parameters: str,
    history: bool,
    **flags: str | None,
) -> None:
    """Talk to a model in the terminal.

    \b
    Give --model to load one here, or --url for a running server; its key comes from LLAMA_CHAT_KEY.
    A model without a dialog format continues what you type.
    Keys:  Enter sends, Alt-Enter begins a line, Ctrl-C stops an answer, Ctrl-D ends.
    Pipe:  each line is one message. Exit code 1 if one could not be answered.
    /help lists the commands, such as /infill and /set.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    if (model is None) == (url is None):
        raise click.UsageError("Give either --model or --url.")
    if url is not None and any(flags.values()):
        raise click.UsageError(
            "--context, --dtype, --engine and --threads go with --model: a running server has its own."
        )
    from llama_endpoints.chat.conversation import Conversation
    from llama_endpoints.chat.loop import talk
    from llama_endpoints.chat.screen import PlainScreen, TerminalScreen
    from llama_endpoints.chat.typing_lines import LineEditor, Lines

    given = _parameters(parameters)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    typed = LineEditor(keep=history) if interactive else Lines()
    screen = TerminalScreen() if sys.stdout.isatty() else PlainScreen()
    with _opened(model, url, flags) as answering:
        chats = "chat" in answering.capabilities
        if system and not chats:
            raise SetupError(f"{answering.name} has no dialog format, so --system has no effect. Leave it out.")
        if interactive:
            screen.note(_greeting(answering, chats=chats))
        conversation = Conversation(chats, system, given)
        try:
            whole = talk(answering, conversation, typed, screen, interactive=interactive)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    raise SystemExit(0 if whole or interactive else 1)


def _greeting(model: "ChatModel", *, chats: bool) -> str:
    how = "Write a message." if chats else "Write a text, and the model continues it."
    return f"{model.name}. {how} Enter sends, Alt-Enter begins a line, Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands."


def _parameters(text: str) -> dict[str, Any]:
    from llama_endpoints.chat.conversation import Mistake, checked
    from llama_serving.contract import strict_json
    from llama_serving.errors import BadRequest

    try:
        return checked(strict_json.decode(text.encode()))
    except (BadRequest, Mistake) as error:
        raise SetupError(f"--parameters can't be used: {error}") from error


@contextmanager
def _opened(model: str | None, url: str | None, flags: dict[str, str | None]) -> "Iterator[ChatModel]":
    """Yield the model, loaded here or behind the address."""
    if url is not None:
        from llama_endpoints.chat.remote import RemoteModel
        from llama_endpoints.connection.key import key_of

        with closing(RemoteModel(url, key_of(KEY), key_name=KEY)) as remote:
            yield remote
        return
    import logging

    from llama_endpoints.chat.local import LocalModel
    from llama_endpoints.download.resolve import model_files
    from llama_serving.service.service import Service

    files, settings = model_files(str(model)), settings_of(flags)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    click.echo(f"Loading {files.variant.title} ...", err=True)
    with closing(Service.start(files, settings)) as service:
        yield LocalModel(service)
