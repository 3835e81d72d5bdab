"""`llama-endpoints render`: write the files under yaml/ from the catalog and the planner."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.azure.limits import (
    CONNECTIONS,
    ENDPOINTS,
    IDENTITIES,
    INSTANCE_TYPES,
    MOST_INSTANCES,
    REGISTRIES,
    Names,
)
from llama_endpoints.cli.engine_options import EngineChoice, engine_options
from llama_endpoints.cli.options import Command, FiniteRange
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.render.monitoring import Collection

DIFFERENT: Final = 1
_NAMES: Final = {
    "endpoint": ENDPOINTS,
    "kubernetes-endpoint": ENDPOINTS,
    "batch-endpoint": ENDPOINTS,
    "cluster": ENDPOINTS,
    "instance-type": INSTANCE_TYPES,
    "identity": IDENTITIES,
    "registry": REGISTRIES,
    "monitor-connection": CONNECTIONS,
}


def _name(_context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    """Refuse a name that Azure would refuse."""
    name = option.opts[0].removeprefix("--")
    names: Names = _NAMES[name]
    if given is not None and not names.take(given):
        raise SetupError(f"Invalid --{name} {given!r}: {names.allowed}.")
    return given


def _named(*names: str, **options: Any) -> Callable[[Command], Command]:
    return click.option(*names, callback=_name, **options)


@click.command()
@click.option(
    "--output",
    default=".",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for yaml/ and environments/. If it is not a checkout, the files refer to score/ and samples in the current "
    "one.",
)
@click.option("--check", is_flag=True, help="Write nothing. Exit with code 1 if a file differs.")
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Render only this model's deployments. Repeatable. Default: all.",
)
@engine_options
@click.option("--sku", help="Machine. Default: the smallest that holds the model, as `plan` chooses it.")
@click.option(
    "--instances",
    type=click.IntRange(1, MOST_INSTANCES),
    default=1,
    help="Instances of each deployment.",
)
@_named("--endpoint", "online", default="code-llama", help="Name of the managed endpoint.")
@_named(
    "--kubernetes-endpoint", "kubernetes", default="code-llama-k8s", help="Name of the Kubernetes endpoint."
)
@_named("--batch-endpoint", "batch", default="code-llama-batch", help="Name of the batch endpoint.")
@_named("--cluster", default="llama-kubernetes", help="Name of the attached Kubernetes cluster.")
@_named(
    "--instance-type",
    help="Instance type that the cluster defines. Without it, yaml/kubernetes/instance-types/ is written.",
)
@_named(
    "--identity",
    help="Resource id of a user-assigned identity for the endpoints. Default: a system-assigned one.",
)
@click.option(
    "--public-network-access",
    "public",
    type=click.Choice(["enabled", "disabled"]),
    default="enabled",
    help="Network access of the managed endpoint.",
)
@_named("--registry", help="Azure ML registry that holds the packaged models. Default: the workspace's models.")
@click.option(
    "--front",
    type=click.Choice(["azmlinfsrv", "server"]),
    default="azmlinfsrv",
    help="Server of the managed endpoint: Azure's with our scoring script (/score), or ours with every route, for OpenAI "
    "clients.",
)
@click.option(
    "--collect",
    type=FiniteRange(1e-9, 1),  # (LLAMA_COLLECT_RATE has nine digits)
    metavar="SHARE",
    help="Collect prompts and answers of this share of the managed endpoint's requests, redacted, and write yaml/monitoring/. "
    "Default: nothing is collected.",
)
@_named(
    "--monitor-connection",
    help="With --collect: resource id of the workspace's connection to Azure OpenAI, whose model judges the texts.",
)
@click.option("--monitor-model", help="With --monitor-connection: name of that model's deployment.")
@click.option(
    "--local",
    is_flag=True,
    help="Also write yaml/online/local.yml, for `az ml online-deployment create --local`.",
)
def render(  # noqa: PLR0913  (one argument an option)
    *, output: Path, check: bool, models: tuple[str, ...], context: int | None, dtype: str, sku: str | None, instances: int,
    engine: EngineChoice, public: str, front: str, collect: float | None, monitor_connection: str | None,
    monitor_model: str | None, **site: Any,
) -> None:  # fmt: skip
    """Write Azure ML's files: endpoints, a deployment for each model, clusters, models, data.

    \b
    Examples:
      llama-endpoints render                      # all 18 models, into ./yaml
      llama-endpoints render --check              # in CI: are the committed files up to date?
      llama-endpoints render --model codellama/CodeLlama-7b-hf --context 4096 --endpoint my-code --output ~/deploy
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    from llama_endpoints.checkpoints.variants import variant_of
    from llama_endpoints.planning.sizing import Precision
    from llama_endpoints.planning.skus import sku_of
    from llama_endpoints.render.files import (
        MODELS,
        RenderOptions,
        checkout_of,
        differences,
        files,
        left_over,
        write,
    )
    from llama_endpoints.render.spec import FrontServer, Site

    machine = sku_of(sku) if sku else None
    choice = RenderOptions(
        context,
        Precision(dtype),
        machine,
        instances,
        engine.runner,
        engine.usual_tokens,
        engine.options,
        _collection(collect, monitor_connection, monitor_model),
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
        click.echo(f"{path} does not belong to these options: remove it", err=True)
    click.echo(f"{len(changed)} of {len(made)} files written.", err=True)


def _collection(share: float | None, connection: str | None, judge: str | None) -> "Collection | None":
    from llama_endpoints.render.monitoring import Collection

    if (connection is None) != (judge is None):
        raise SetupError("--monitor-connection and --monitor-model belong together. Give both, or none.")
    if share is None and connection is not None:
        raise SetupError("--monitor-connection needs --collect SHARE: there would be nothing to monitor.")
    return None if share is None else Collection(share, connection, judge)


def _compare(wrong: list[str], files: int) -> None:
    for line in wrong:
        click.echo(line, err=True)
    if wrong:
        click.echo("Run the same command without --check to write them.", err=True)
        raise SystemExit(DIFFERENT)
    click.echo(f"{files} files are up to date.")
