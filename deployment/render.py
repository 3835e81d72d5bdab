"""All files that Azure ML is told with: written from the catalog and the planner, or compared with what is there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployment import specs, specs_batch, specs_online
from deployment.planner import Plan, Wanted, plan
from deployment.sizing import Precision, Runner, Workload
from deployment.skus import Offer, Sku
from deployment.specs import Site
from deployment.yaml_text import dump
from llama_serving.catalog import CATALOG, NANO, ModelVariant

MODELS: Final = tuple(row for row in CATALOG.values() if row is not NANO)


@dataclass(frozen=True, slots=True)
class Choice:
    """What may differ from the defaults.

    Attributes:
        context: tokens; those that a model was trained on by default.
        precision: of the weights.
        sku: the machine; the smallest that holds the model by default.
        instances: of each deployment.
    """

    context: int | None = None
    precision: Precision = Precision.BF16
    sku: Sku | None = None
    instances: int = 1


def files(
    models: Sequence[ModelVariant] = MODELS, choice: Choice | None = None, site: Site | None = None
) -> dict[str, str]:
    """Every file and its text, by its path below the root.

    Args:
        models: that are deployed.
        choice: what differs from the defaults.
        site: names and network.

    Raises:
        SetupError: a model can't be deployed so.
    """
    return dict(_files(models, choice or Choice(), site or Site()))


def _files(models: Sequence[ModelVariant], choice: Choice, site: Site) -> Iterator[tuple[str, str]]:
    yield "yaml/online/endpoint.yml", dump(specs_online.endpoint(site))
    yield "yaml/online/autoscale.json", json.dumps(specs_online.autoscale(site), indent=2) + "\n"
    yield "yaml/kubernetes/endpoint.yml", dump(specs_online.kubernetes_endpoint(site))
    yield "yaml/batch/endpoint.yml", dump(specs_batch.endpoint(site))
    yield "yaml/data/rows.yml", dump(specs.data())
    images = specs.images()
    for folder, image in images.items():
        yield f"environments/{folder}/environment.yml", dump(image)
    if site.local:
        yield "yaml/online/local.yml", dump(specs_online.local(site, images["online"]))
    clusters = dict[str, Sku]()
    for variant in models:
        name = f"{specs.slug(variant)}.yml"
        plans = {offer: _plan(variant, choice, offer) for offer in Offer}
        yield f"yaml/models/{name}", dump(specs.model(variant))
        yield f"yaml/online/{name}", dump(specs_online.deployment(plans[Offer.MANAGED_ONLINE], site))
        yield f"yaml/kubernetes/{name}", dump(specs_online.kubernetes_deployment(plans[Offer.KUBERNETES], site))
        yield f"yaml/batch/{name}", dump(specs_batch.deployment(plans[Offer.BATCH], site))
        sku = specs.deployable(plans[Offer.BATCH])
        clusters[specs.compute_name(sku)] = sku
    for cluster, sku in clusters.items():
        yield f"yaml/batch/compute/{cluster}.yml", dump(specs_batch.compute(sku))


def _plan(variant: ModelVariant, choice: Choice, offer: Offer) -> Plan:
    context = variant.trained_positions.value if choice.context is None else choice.context
    return plan(Wanted(variant, Workload(context), choice.precision, offer, sku=choice.sku, runner=Runner.PIPELINE,
                       instances=choice.instances))  # fmt: skip


def differences(made: Mapping[str, str], root: Path) -> list[str]:
    """What is not as it would be written: a line for each file, empty where all is."""
    found = []
    for name, text in made.items():
        path = root / name
        if not path.is_file():
            found.append(f"{path} is not there")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{path} differs")
    return found


def write(made: Mapping[str, str], root: Path) -> list[Path]:
    """Write what differs.

    Returns:
        the files that were written.
    """
    changed = [root / name for name, text in made.items() if not _is(root / name, text)]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path.relative_to(root).as_posix()], encoding="utf-8")
    return changed


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
