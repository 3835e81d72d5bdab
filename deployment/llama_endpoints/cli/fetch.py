"""`llama-endpoints fetch`: a model of the catalog from a hub onto this disk."""

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.download.fetch import Fetched
    from llama_serving.catalog import ModelVariant


@click.command()
@click.option(
    "--variant", required=True, help="Its name in the catalog (`llama-endpoints models`), which is the hub's."
)
@click.option(
    "--repo",
    metavar="OWNER/NAME",
    help="The hub's repository, where it has another name: quantized checkpoints do. By default --variant.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the files; by default the last part of the name.",
)
@click.option("--revision", help="Branch, tag or commit of the hub's repository; its main branch by default.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the hub's token. By default HF_TOKEN, or what `hf auth login` left.",
)
@click.option(
    "--token-secret",
    metavar="ADDRESS",
    envvar="HUB_TOKEN_SECRET",
    help="Secret of an Azure key vault with the hub's token: https://VAULT.vault.azure.net/secrets/NAME.",
)
@click.option("--overwrite", is_flag=True, help="Replace what OUTPUT holds of another commit or origin.")
def fetch(  # noqa: PLR0913  (the options of a command)
    *,
    variant: str,
    repo: str | None,
    output: Path | None,
    revision: str | None,
    token_file: Path | None,
    token_secret: str | None,
    overwrite: bool,
) -> None:
    """Download a model from a hub: config, tokenizer and safetensors, never a pickle, never code.

    Killed, out of network or stopped with Ctrl-C, the same command goes on where it ended. Every file
    is verified by the checksum that the hub states; with all there, it verifies and downloads nothing.
    OUTPUT/fetched.json says which commit it is.

    \b
    Gated models (Llama-2): accept the licence on the model's page, then give the token in HF_TOKEN.
    HF_ENDPOINT names another hub.

    \b
    Examples:
      llama-endpoints fetch --variant codellama/CodeLlama-7b-hf
      llama-endpoints fetch --variant codellama/CodeLlama-7b-hf --repo OWNER/CodeLlama-7B-AWQ
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    row = _on_a_hub(variant)
    source = _repository(repo or row.name)
    folder = output or Path(source.rpartition("/")[2])
    try:
        token = _token(token_file, token_secret)
        done = _fetch(row, source, folder, revision, token, overwrite=overwrite)
    except KeyboardInterrupt:
        with suppress(OSError):
            click.echo(f"Stopped. {folder} keeps what is there: run the same command again to go on.", err=True)
        raise
    for warning in done.checkpoint.warnings:
        click.echo(f"Warning: {warning}.", err=True)
    size = sum(file.size for file in done.record.files)
    click.echo(
        f"{folder} is {source} at {done.record.commit}: {size:,} bytes verified, {done.downloaded:,} of them downloaded."
    )
    click.echo(f"Next: {_package(row.name, folder)}")


def _on_a_hub(name: str) -> "ModelVariant":
    from llama_endpoints.checkpoints.variants import variant_of
    from llama_serving.catalog import NANO

    if name == NANO.name:
        raise SetupError("nano comes with this package, and there is nothing to fetch. Use --checkpoint nano.")
    return variant_of(name)


def _repository(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) or ".." in name:
        raise SetupError(f"--repo must be a repository of the hub, OWNER/NAME, not {name}.")
    return name


def _token(file: Path | None, secret: str | None) -> str | None:
    from llama_endpoints.azure import key_vault
    from llama_endpoints.download import hub

    if file is not None and secret is not None:
        raise SetupError(
            "--token-file and --token-secret (or HUB_TOKEN_SECRET) both name the token. Give one of them."
        )
    hub.quiet()
    return hub.token_of(file, None if secret is None else lambda: key_vault.secret_of(secret))


def _fetch(  # noqa: PLR0913  (what is fetched, from where, to where)
    row: "ModelVariant", repo: str, folder: Path, revision: str | None, token: str | None, *, overwrite: bool
) -> "Fetched":
    from llama_endpoints.download import hub
    from llama_endpoints.download.fetch import fetch as run
    from llama_endpoints.download.fetch import look_up
    from llama_endpoints.download.progress import download_bar
    from llama_endpoints.download.transfer import Download

    source = hub.Hub(token)
    snapshot = look_up(source, repo, revision, tell=lambda text: click.echo(text, err=True))
    with download_bar() as bar:
        download = Download(hub.Repository(source, snapshot), folder, progress=bar.progress, tell=bar.tell)
        return run(download, snapshot, row, overwrite=overwrite, expect=bar.expect)


def _package(name: str, folder: Path) -> str:
    model = f"build/{name.rpartition('/')[2].lower()}"
    return shlex.join(
        ("llama-endpoints", "package", "--checkpoint", str(folder), "--variant", name, "--output", model)
    )
