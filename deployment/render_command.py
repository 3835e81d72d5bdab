"""`llama-endpoints render`: the files under yaml/, from the catalog and the planner."""

import re
from pathlib import Path
from typing import Any, Final

import click

from llama_serving.errors import SetupError

DIFFERENT: Final = 1
_NAME: Final = re.compile(r"[a-zA-Z](?:-?[a-zA-Z0-9]){2,31}")
_IDENTITY: Final = re.compile(
    r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft\.managedidentity/userassignedidentities/[^/]+",
    re.IGNORECASE,
)


@click.command()
@click.option(
    "--output",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which yaml/ lies; scripts and models are found from there.",
)
@click.option(
    "--check", is_flag=True, help="Write nothing; exit code 1 where a file is not as it would be written."
)
@click.option(
    "--model", "models", multiple=True, help="This model's deployments only; may be repeated. All by default."
)
@click.option(
    "--context", type=int, help="Tokens of prompt and completion; those a model was trained on by default."
)
@click.option(
    "--dtype", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True, help="Of the weights."
)
@click.option("--sku", help="This machine; by default the smallest that holds the model, as `plan` chooses it.")
@click.option(
    "--instances", type=click.IntRange(1, 50), default=1, show_default=True, help="Of each deployment."
)
@click.option(
    "--endpoint", "online", default="code-llama", show_default=True, help="Name of the managed endpoint."
)
@click.option(
    "--kubernetes-endpoint", "kubernetes", default="code-llama-k8s", show_default=True, help="On a cluster."
)
@click.option(
    "--batch-endpoint", "batch", default="code-llama-batch", show_default=True, help="For files of rows."
)
@click.option(
    "--cluster", default="llama-kubernetes", show_default=True, help="Name of the attached Kubernetes cluster."
)
@click.option(
    "--identity", help="Resource id of a user-assigned identity for the endpoints; the system's by default."
)
@click.option(
    "--public-network-access",
    "public",
    type=click.Choice(["enabled", "disabled"]),
    default="enabled",
    show_default=True,
    help="Of the managed endpoint.",
)
@click.option(
    "--registry",
    help="Registry of Azure ML that the packaged models are in; the workspace's own models by default.",
)
@click.option(
    "--local", is_flag=True, help="yaml/online/local.yml as well, for `az ml online-deployment create --local`."
)
def render(  # noqa: PLR0913  (one argument an option)
    *, output: Path, check: bool, models: tuple[str, ...], context: int | None, dtype: str, sku: str | None, instances: int,
    public: str, identity: str | None, registry: str | None, local: bool, **names: str,
) -> None:  # fmt: skip
    """Write what Azure ML is told: endpoints, a deployment for each model, clusters, models, data.

    \b
    Examples:
      llama-endpoints render                      # all 18 models, into ./yaml
      llama-endpoints render --check              # in CI: is what is committed what would be written?
      llama-endpoints render --model codellama/CodeLlama-7b-hf --context 4096 --endpoint my-code --output ~/deploy
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from deployment.checkpoint import variant_of
    from deployment.render import MODELS, Choice, differences, files, write
    from deployment.sizing import Precision
    from deployment.skus import sku_of
    from deployment.specs import Site

    _check_names(names if registry is None else {**names, "registry": registry}, identity)
    choice = Choice(context, Precision(dtype), sku_of(sku) if sku else None, instances)
    site: dict[str, Any] = {
        **names,
        "identity": identity,
        "public": public == "enabled",
        "registry": registry,
        "local": local,
    }
    made = files([variant_of(name) for name in models] or MODELS, choice, Site(**site))
    if check:
        wrong = differences(made, output)
        for line in wrong:
            click.echo(line, err=True)
        if wrong:
            click.echo("Write them with `llama-endpoints render`.", err=True)
            raise SystemExit(DIFFERENT)
        click.echo(f"{len(made)} files are as they would be written.")
        return
    changed = write(made, output)
    for path in changed:
        click.echo(path)
    click.echo(f"{len(changed)} of {len(made)} files written.", err=True)


def _check_names(names: dict[str, str], identity: str | None) -> None:
    for option, name in names.items():
        if not _NAME.fullmatch(name):
            raise SetupError(
                f"{name} can't be the name of {option}: 3 to 32 letters, digits and single hyphens, a letter first."
            )
    if identity is not None and not _IDENTITY.fullmatch(identity):
        raise SetupError(
            "--identity must be /subscriptions/…/resourceGroups/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/…"
        )
