"""`llama-endpoints fetch`: download a catalog model from a hub."""

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
    "--variant",
    required=True,
    help="The model's name in the catalog (`llama-endpoints models`) and on the hub.",
)
@click.option(
    "--repo",
    metavar="OWNER/NAME",
    help="The hub's repository, if it has another name, as quantized checkpoints do. Default: --variant.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write. Default: the last part of the name.",
)
@click.option("--revision", help="Branch, tag or commit of the repository. Default: its main branch.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the hub's token. Default: HF_TOKEN, or the token saved by `hf auth login`.",
)
@click.option(
    "--token-secret",
    metavar="ADDRESS",
    envvar="HUB_TOKEN_SECRET",
    help="Azure Key Vault secret that holds the hub's token: https://VAULT.vault.azure.net/secrets/NAME.",
)
@click.option("--overwrite", is_flag=True, help="Replace files of another commit or repository in OUTPUT.")
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
    """Download a model's config, tokenizer and safetensors from a hub. Pickles and code are never downloaded.

    After an interruption, run the same command again to resume. Every file is verified against the
    hub's checksum; if all files are complete, nothing is downloaded. OUTPUT/fetched.json records the commit.

    \b
    Gated models (Llama-2): accept the licence on the model's page, then set the token in HF_TOKEN.
    HF_ENDPOINT sets another hub.

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
            click.echo(f"Stopped. Files in {folder} are kept: run the same command again to resume.", err=True)
        raise
    for warning in done.checkpoint.warnings:
        click.echo(f"Warning: {warning}.", err=True)
    size = sum(file.size for file in done.record.files)
    click.echo(
        f"{folder} holds {source} at {done.record.commit}: {size:,} bytes verified, {done.downloaded:,} of them downloaded."
    )
    click.echo(f"Next: {_package(row.name, folder)}")


def _on_a_hub(name: str) -> "ModelVariant":
    from llama_endpoints.checkpoints.variants import variant_of
    from llama_serving.catalog import NANO

    if name == NANO.name:
        raise SetupError("nano is part of this package and needs no download. Use --checkpoint nano.")
    return variant_of(name)


def _repository(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) or ".." in name:
        raise SetupError(f"Invalid --repo {name}: give a hub repository as OWNER/NAME.")
    return name


def _token(file: Path | None, secret: str | None) -> str | None:
    from llama_endpoints.azure import key_vault
    from llama_endpoints.download import hub

    if file is not None and secret is not None:
        raise SetupError(
            "--token-file and --token-secret (or HUB_TOKEN_SECRET) both give a token. Remove one of them."
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
