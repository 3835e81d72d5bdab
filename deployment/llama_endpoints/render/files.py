"""Write all files for Azure ML from the catalog and the planner, or compare them with existing ones."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from llama_endpoints.planning.planner import DeployablePlan, PlanRequest, deployable, plan_with_max_concurrency
from llama_endpoints.planning.sizing import USUAL_OPTIONS, Precision, Runner, VllmSizingOptions, Workload
from llama_endpoints.planning.skus import Offer, Sku
from llama_endpoints.render import autoscale, batch, kubernetes, monitoring, online, spec
from llama_endpoints.render.monitoring import Collection
from llama_endpoints.render.spec import Site
from llama_endpoints.render.yaml_writer import dump
from llama_serving.catalog import CATALOG, NANO, ModelVariant
from llama_serving.errors import SetupError

MODELS: Final = tuple(row for row in CATALOG.values() if row is not NANO)
LOCAL: Final = "yaml/online/local.yml"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """Options that differ from the defaults.

    Attributes:
        context: tokens; the trained context by default.
        precision: type of the weights.
        sku: the machine; the smallest that holds the model by default.
        instances: instances of each deployment.
        runner: the engine; vLLM by default.
        usual: usual tokens of a sequence, which determine the concurrency.
        options: vLLM's options.
        collection: what the managed deployments collect; None collects nothing.
    """

    context: int | None = None
    precision: Precision = Precision.BF16
    sku: Sku | None = None
    instances: int = 1
    runner: Runner | None = None
    usual: int | None = None
    options: VllmSizingOptions = USUAL_OPTIONS
    collection: Collection | None = None


def checkout_of(output: Path) -> Path:
    """Return the folder whose scripts and samples the files refer to: the output, or the current folder.

    Raises:
        SetupError: neither has them.
    """
    for folder in (output, Path()):
        if (folder / "score" / "score.py").is_file():
            return folder.resolve()
    raise SetupError(
        f"Neither {output} nor the current folder has score/score.py, which the files refer to. Run this in a checkout of the project."
    )


def files(
    models: Sequence[ModelVariant] = MODELS, choice: RenderOptions | None = None, site: Site | None = None
) -> dict[str, str]:
    """Return every file's text by its path below the root.

    Args:
        models: the models to deploy.
        choice: options that differ from the defaults.
        site: names and network.

    Raises:
        SetupError: a model cannot be deployed with these options.
    """
    return dict(_files(models, choice or RenderOptions(), site or Site()))


def _files(models: Sequence[ModelVariant], choice: RenderOptions, site: Site) -> Iterator[tuple[str, str]]:
    plans = {offer: [_plan(variant, choice, offer) for variant in models] for offer in Offer}
    yield from _shared(site)
    yield from _online(plans[Offer.MANAGED_ONLINE], site, choice.collection)
    yield from _kubernetes(plans[Offer.KUBERNETES], site)
    yield from _batch(plans[Offer.BATCH], site)
    for variant in models:
        yield f"yaml/models/{spec.slug(variant)}.yml", dump(spec.model(variant, site, choice.precision))


def _shared(site: Site) -> Iterator[tuple[str, str]]:
    images = spec.images(site)
    for folder, image in images.items():
        yield f"environments/{folder}/environment.yml", dump(image)
    yield "yaml/data/rows.yml", dump(spec.data(site))
    if site.local:
        yield LOCAL, dump(online.local(site, images["online"]))


def _online(
    plans: Sequence[DeployablePlan], site: Site, collection: Collection | None
) -> Iterator[tuple[str, str]]:
    yield "yaml/online/endpoint.yml", dump(online.endpoint(site))
    for plan in plans:
        yield _file("yaml/online", plan), dump(online.deployment(plan, site, collection))
        if collection is not None:
            yield (
                _file(monitoring.FOLDER, plan),
                dump(monitoring.schedule(plan.request.variant, site, collection)),
            )
    yield "yaml/online/autoscale.json", json.dumps(autoscale.template(plans, site), indent=2) + "\n"


def _kubernetes(plans: Sequence[DeployablePlan], site: Site) -> Iterator[tuple[str, str]]:
    yield "yaml/kubernetes/endpoint.yml", dump(kubernetes.endpoint(site))
    for plan in plans:
        yield _file("yaml/kubernetes", plan), dump(kubernetes.deployment(plan, site))
    if site.instance_type is None:
        types = {kubernetes.type_name(plan, site): plan for plan in plans}
        for name, plan in types.items():
            yield f"{kubernetes.TYPES}/{name}.yml", dump(kubernetes.instance_type(plan, site))


def _batch(plans: Sequence[DeployablePlan], site: Site) -> Iterator[tuple[str, str]]:
    yield "yaml/batch/endpoint.yml", dump(batch.endpoint(site))
    for plan in plans:
        yield _file("yaml/batch", plan), dump(batch.deployment(plan, site))
    clusters = {spec.compute_name(plan.chosen.sku): plan.chosen.sku for plan in plans}
    for name, sku in clusters.items():
        yield f"yaml/batch/compute/{name}.yml", dump(batch.compute(sku, plans[0].request.instances))


def _file(folder: str, plan: DeployablePlan) -> str:
    return f"{folder}/{spec.slug(plan.request.variant)}.yml"


def _plan(variant: ModelVariant, choice: RenderOptions, offer: Offer) -> DeployablePlan:
    context = variant.trained_positions.value if choice.context is None else choice.context
    request = PlanRequest(
        variant,
        Workload(context, usual=choice.usual),
        choice.precision,
        offer,
        sku=choice.sku,
        runner=choice.runner,
        instances=choice.instances,
        options=choice.options,
    )
    return deployable(plan_with_max_concurrency(request))


def differences(made: Mapping[str, str], root: Path) -> list[str]:
    """Return a line for each file that differs; empty if none does.

    Raises:
        SetupError: a file cannot be read.
    """
    with _write_errors(root):
        found = [line for name, text in made.items() if (line := _difference(root / name, text))]
        return [
            *found,
            *(f"{path} does not belong to these options: remove it" for path in left_over(made, root)),
        ]


def _difference(path: Path, text: str) -> str:
    if not path.is_file():
        return f"{path} does not exist"
    return "" if _is(path, text) else f"{path} differs"


def write(made: Mapping[str, str], root: Path) -> list[Path]:
    """Write the files that differ, each atomically.

    Returns:
        the files written.

    Raises:
        SetupError: a file cannot be written.
    """
    with _write_errors(root):
        changed = [root / name for name, text in made.items() if not _is(root / name, text)]
        for path in changed:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, made[path.relative_to(root).as_posix()])
        return changed


def left_over(made: Mapping[str, str], root: Path) -> list[Path]:
    """Return files that other options wrote, except other models' files and those they refer to."""
    folders = sorted({PurePosixPath(name).parent for name in made})
    beside = (path for folder in folders for path in sorted((root / folder).glob("*.*")) if path.is_file())
    return [
        path for path in beside if path.relative_to(root).as_posix() not in made and not _needed(path, root)
    ]


def _needed(path: Path, root: Path) -> bool:
    if path.suffix not in {".yml", ".json"} or path == root / LOCAL:
        return True
    if path.parent.name not in {"compute", "instance-types"}:
        return path.stem in {spec.slug(row) for row in MODELS}
    deployments = (other.read_text("utf-8", "replace") for other in path.parent.parent.glob("*.yml"))
    return any(path.stem in text.replace("azureml:", "").split() for text in deployments)


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _write_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{error.filename or root}: {error.strerror}. --output must be a writable folder, and the paths "
            "of the files below it must not be folders."
        ) from error
