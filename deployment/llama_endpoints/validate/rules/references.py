"""What a file names in others: `azureml:NAME:VERSION`, registries, endpoints and clusters."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from llama_endpoints.azure.limits import ENDPOINTS as ENDPOINT_NAMES
from llama_endpoints.validate import disk
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, ENDPOINTS, ONLINE_DEPLOYMENTS, Kind
from llama_endpoints.validate.references import (
    COMPUTE_NAME,
    PLURAL,
    RESOURCE_ID,
    RESOURCE_ID_OF_CLIENT,
    Reference,
    asset,
    cluster,
    elsewhere,
    is_unpinned,
)
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import shown

_FILE: Final = "file:"
"""Before the path of an environment's file; azure-ai-ml takes no other kind so."""
_LOCAL: Final = "local"
"""The machine that the client runs on."""
_ENDPOINT_OF: Final[Mapping[Kind, Kind]] = {
    Kind.MANAGED_DEPLOYMENT: Kind.MANAGED_ENDPOINT,
    Kind.KUBERNETES_DEPLOYMENT: Kind.KUBERNETES_ENDPOINT,
    Kind.BATCH_DEPLOYMENT: Kind.BATCH_ENDPOINT,
}
_ELSEWHERE: Final = (
    "If it is in the workspace already, all is well; else make a file for it, or correct the name."
)


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Names that are not well formed, or are nowhere."""
    if spec.kind in DEPLOYMENTS:
        yield from _asset(spec, tree, Kind.MODEL)
        yield from _endpoint(spec, tree)
    if spec.kind in (*DEPLOYMENTS, Kind.COMMAND_JOB):
        yield from _asset(spec, tree, Kind.ENVIRONMENT)
        yield from _environment_kind(spec, tree)
    if spec.kind in (Kind.BATCH_DEPLOYMENT, Kind.COMMAND_JOB):
        yield from _compute(spec, tree)
    if spec.kind in ENDPOINTS:
        yield from _deployments(spec, tree)


def _asset(spec: Spec, tree: Tree, kind: Kind) -> Iterator[Finding]:
    place = (kind.value,)
    value = spec.at(*place)
    if not isinstance(value, str):
        return
    if kind is Kind.ENVIRONMENT and value.startswith(_FILE):
        path = spec.path.parent / value.removeprefix(_FILE)
        if not disk.is_file(path):
            yield spec.find(
                Rule.PATH,
                place,
                f"must lead to an environment's file; {path} is none. The path begins at this file.",
            )
        return
    if elsewhere(value, kind):
        if RESOURCE_ID.fullmatch(value) and not RESOURCE_ID_OF_CLIENT.fullmatch(value):
            yield spec.find(
                Rule.ID_CASE, place,
                f"is {shown(value)}, an id that Azure reads in any case and azure-ai-ml only as azureml:/subscriptions/S/"
                f"resourceGroups/G/providers/Microsoft.MachineLearningServices/workspaces/W/{PLURAL[kind]}/NAME/versions/VERSION. Write it so.",
            )  # fmt: skip
        return
    if is_unpinned(value, kind):
        yield spec.find(
            Rule.UNPINNED, place,
            f"names no version ({shown(value)}), so that the same file deploys something else tomorrow. Write "
            "azureml:NAME:VERSION.",
        )  # fmt: skip
        return
    if Reference.of(value) is None:
        yield spec.find(
            Rule.REFERENCE, place,
            "must be azureml:NAME:VERSION or "
            f"azureml://registries/REGISTRY/{PLURAL[kind]}/NAME/versions/VERSION, not {shown(value)}.",
        )  # fmt: skip
    elif asset(value, kind, tree) is None:
        there = [f"azureml:{one.name}:{one.at('version')}" for one in tree.of_kind(kind)]
        yield spec.find(
            Rule.NOT_FOUND, place,
            f"names {value}, which no file around describes{_closest(value, there)}. {_ELSEWHERE}",
        )  # fmt: skip


def _endpoint(spec: Spec, tree: Tree) -> Iterator[Finding]:
    name, wanted = spec.text("endpoint_name"), _ENDPOINT_OF[spec.kind]
    if not ENDPOINT_NAMES.take(name) or tree.named(name, wanted):
        return  # (what is no name is said where names are)
    other = tree.named(name, *ENDPOINTS)
    if other:
        yield spec.find(
            Rule.REFERENCE_KIND, ("endpoint_name",),
            f"names {name}, a {other.kind}; a {spec.kind} goes behind a {wanted}. Name one of these, or "
            "change $schema.",
        )  # fmt: skip
    else:
        there = [one.name for one in tree.of_kind(wanted)]
        yield spec.find(
            Rule.NOT_FOUND, ("endpoint_name",),
            f"names {name}, which no file around describes{_closest(name, there)}. {_ELSEWHERE}",
        )  # fmt: skip


def _environment_kind(spec: Spec, tree: Tree) -> Iterator[Finding]:
    image = asset(spec.at("environment"), Kind.ENVIRONMENT, tree)
    if image is None:
        return
    served = bool(image.mapping("inference_config"))
    if spec.kind in ONLINE_DEPLOYMENTS and not served and image.at("build"):
        yield spec.find(
            Rule.REFERENCE_KIND, ("environment",),
            f"names {image.name}, whose image is built without inference_config: Azure can't tell where its "
            "server answers. Name an environment for online deployments.",
        )  # fmt: skip
    if spec.kind is Kind.BATCH_DEPLOYMENT and served:
        yield spec.find(
            Rule.REFERENCE_KIND, ("environment",),
            f"names {image.name}, whose inference_config makes it one for online deployments. Name an "
            "environment with Azure's job runtime.",
        )  # fmt: skip


def _compute(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Azure's client takes a name with and without `azureml:`."""
    value = spec.at("compute")
    if spec.kind is Kind.BATCH_DEPLOYMENT and ("compute",) not in spec.document.lines:
        yield spec.find(
            Rule.GIVEN_LATER, ("compute",),
            "is missing, and must be given with each command (--set compute=...). Write azureml:NAME, and it is looked at.",
        )  # fmt: skip
    if value is None or value == _LOCAL or (isinstance(value, str) and RESOURCE_ID.fullmatch(value)):
        return
    if not isinstance(value, str) or not COMPUTE_NAME.fullmatch(value):
        yield spec.find(Rule.REFERENCE, ("compute",), f"must be azureml:NAME, not {shown(value)}.")
    elif cluster(spec, tree) is None:
        there = [f"azureml:{one.name}" for one in tree.of_kind(Kind.COMPUTE)]
        yield spec.find(
            Rule.NOT_FOUND, ("compute",),
            f"names {value}, which no file around describes{_closest(value, there)}. {_ELSEWHERE}",
        )  # fmt: skip


def _deployments(spec: Spec, tree: Tree) -> Iterator[Finding]:
    there = [one.name for one in tree.of_kind(*DEPLOYMENTS) if one.text("endpoint_name") == spec.name]
    for field in ("traffic", "mirror_traffic"):
        for name in spec.mapping(field):
            if name not in there:
                yield spec.find(
                    Rule.NOT_FOUND, (field, name),
                    f"names a deployment of {spec.name} that no file around describes{_closest(name, there)}. "
                    f"{_ELSEWHERE}",
                )  # fmt: skip


def _closest(name: str, there: list[str]) -> str:
    close = get_close_matches(name, there, n=1) or there[:1]
    return f" (there is {close[0]})" if close else ""
