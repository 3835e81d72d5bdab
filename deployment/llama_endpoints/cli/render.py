"""`llama-endpoints render`: the files under yaml/, from the catalog and the planner."""

from pathlib import Path
from typing import Any, Final

import click

from llama_endpoints.azure.limits import (
    ENDPOINTS,
    IDENTITIES,
    INSTANCE_TYPES,
    MOST_INSTANCES,
    REGISTRIES,
    Names,
)
from llama_endpoints.cli.engine_options import EngineChoice, engine_options
from llama_serving.errors import SetupError

DIFFERENT: Final = 1
_NAMES: Final = {
    "endpoint": ENDPOINTS,
    "kubernetes-endpoint": ENDPOINTS,
    "batch-endpoint": ENDPOINTS,
    "cluster": ENDPOINTS,
    "instance-type": INSTANCE_TYPES,
    "identity": IDENTITIES,
    "registry": REGISTRIES,
}


def _name(_context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    """Refuses what Azure would."""
    name = option.opts[0].removeprefix("--")
    names: Names = _NAMES[name]
    if given is not None and not names.take(given):
        raise SetupError(f"--{name} {given!r} can't be one: {names.allowed}.")
    return given


@click.command()
@click.option(
    "--output",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for yaml/ and environments/. Where it is no checkout itself, the files name score/ and samples of the one that "
    "you are in.",
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
    "--dtype",
    "--precision",
    "dtype",
    type=click.Choice(["bf16", "fp16", "fp8", "int8", "int4"]),
    default="bf16",
    show_default=True,
    help="Of the weights; fp8, int8 and int4 need a quantized checkpoint and vLLM.",
)
@engine_options
@click.option("--sku", help="This machine; by default the smallest that holds the model, as `plan` chooses it.")
@click.option(
    "--instances",
    type=click.IntRange(1, MOST_INSTANCES),
    default=1,
    show_default=True,
    help="Of each deployment.",
)
@click.option(
    "--endpoint",
    "online",
    default="code-llama",
    show_default=True,
    callback=_name,
    help="Name of the managed endpoint.",
)
@click.option(
    "--kubernetes-endpoint",
    "kubernetes",
    default="code-llama-k8s",
    show_default=True,
    callback=_name,
    help="On a cluster.",
)
@click.option(
    "--batch-endpoint",
    "batch",
    default="code-llama-batch",
    show_default=True,
    callback=_name,
    help="For files of rows.",
)
@click.option(
    "--cluster",
    default="llama-kubernetes",
    show_default=True,
    callback=_name,
    help="Name of the attached Kubernetes cluster.",
)
@click.option(
    "--instance-type",
    callback=_name,
    help="One that the cluster has; without it, yaml/kubernetes/instance-types/ is written, too.",
)
@click.option(
    "--identity",
    callback=_name,
    help="Resource id of a user-assigned identity for the endpoints; the system's by default.",
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
    callback=_name,
    help="Registry of Azure ML that the packaged models are in; the workspace's own models by default.",
)
@click.option(
    "--front",
    type=click.Choice(["azmlinfsrv", "server"]),
    default="azmlinfsrv",
    show_default=True,
    help="In the containers of the managed endpoint: Azure's server with our scoring script (/score), or our own with every route, so "
    "that OpenAI's clients work.",
)
@click.option(
    "--local", is_flag=True, help="yaml/online/local.yml as well, for `az ml online-deployment create --local`."
)
def render(  # noqa: PLR0913  (one argument an option)
    *, output: Path, check: bool, models: tuple[str, ...], context: int | None, dtype: str, sku: str | None, instances: int,
    engine: EngineChoice, public: str, front: str, **site: Any,
) -> None:  # fmt: skip
    """Write what Azure ML is told: endpoints, a deployment for each model, clusters, models, data.

    \b
    Examples:
      llama-endpoints render                      # all 18 models, into ./yaml
      llama-endpoints render --check              # in CI: is what is committed what would be written?
      llama-endpoints render --model codellama/CodeLlama-7b-hf --context 4096 --endpoint my-code --output ~/deploy
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_endpoints.checkpoints.variants import variant_of
    from llama_endpoints.planning.sizing import Precision
    from llama_endpoints.planning.skus import sku_of
    from llama_endpoints.render.files import MODELS, Choice, checkout_of, differences, files, left_over, write
    from llama_endpoints.render.spec import FrontServer, Site

    machine = sku_of(sku) if sku else None
    choice = Choice(
        context, Precision(dtype), machine, instances, engine.runner, engine.usual_tokens, engine.options
    )
    place = Site(
        front=FrontServer(front),
        public=public == "enabled",
        output=output.resolve().as_posix(),
        checkout=checkout_of(output).as_posix(),
        **site,
    )
    made = files([variant_of(name) for name in models] or MODELS, choice, place)
    if check:
        _compare(differences(made, output), len(made))
        return
    changed = write(made, output)
    for path in changed:
        click.echo(path)
    for path in left_over(made, output):
        click.echo(f"{path} is of other options: remove it", err=True)
    click.echo(f"{len(changed)} of {len(made)} files written.", err=True)


def _compare(wrong: list[str], files: int) -> None:
    for line in wrong:
        click.echo(line, err=True)
    if wrong:
        click.echo("The same command without --check writes them.", err=True)
        raise SystemExit(DIFFERENT)
    click.echo(f"{files} files are as they would be written.")
