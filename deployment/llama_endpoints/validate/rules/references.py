"""References between files: `azureml:NAME:VERSION`, registries, endpoints and clusters."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Final

from llama_endpoints.azure.limits import ENDPOINTS as ENDPOINT_NAMES
from llama_endpoints.validate import filesystem
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import (
    COMMANDS,
    DEPLOYMENTS,
    ENDPOINT_OF,
    ENDPOINTS,
    ONLINE_DEPLOYMENTS,
    SpecKind,
)
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
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

_FILE: Final = "file:"
"""The prefix of an environment file's path; azure-ai-ml accepts it for no other kind."""
_LOCAL: Final = "local"
"""The machine that runs azure-ai-ml."""
_ELSEWHERE: Final = (
    "If it already exists in the workspace, ignore this; otherwise add a file for it, or correct the name."
)


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield findings for references that are malformed, or that no file defines."""
    if spec.kind in DEPLOYMENTS:
        yield from _asset(spec, tree, SpecKind.MODEL)
        yield from _endpoint(spec, tree)
    if spec.kind in (*DEPLOYMENTS, *COMMANDS):
        yield from _asset(spec, tree, SpecKind.ENVIRONMENT)
        yield from _environment_kind(spec, tree)
    if spec.kind in (SpecKind.BATCH_DEPLOYMENT, SpecKind.COMMAND_JOB):
        yield from _compute(spec, tree)
    if spec.kind in ENDPOINTS:
        yield from _deployments(spec, tree)


def _asset(spec: SpecFile, tree: SpecTree, kind: SpecKind) -> Iterator[Finding]:
    place = (kind.value,)
    value = spec.at(*place)
    if not isinstance(value, str):
        return
    if kind is SpecKind.ENVIRONMENT and value.startswith(_FILE):
        path = spec.path.parent / value.removeprefix(_FILE)
        if not filesystem.is_file(path):
            yield spec.find(
                Rule.PATH,
                place,
                f"must lead to an environment's file; {path} does not exist. The path is relative to this file.",
            )
        return
    if elsewhere(value, kind):
        if RESOURCE_ID.fullmatch(value) and not RESOURCE_ID_OF_CLIENT.fullmatch(value):
            yield spec.find(
                Rule.ID_CASE, place,
                f"is {shown(value)}, an id that Azure reads in any case, but azure-ai-ml only as azureml:/subscriptions/S/"
                f"resourceGroups/G/providers/Microsoft.MachineLearningServices/workspaces/W/{PLURAL[kind]}/NAME/versions/VERSION. Use that form.",
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
            f"refers to {value}, which no nearby file defines{_closest(value, there)}. {_ELSEWHERE}",
        )  # fmt: skip


def _endpoint(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    name, kind = spec.text("endpoint_name"), ENDPOINT_OF[spec.kind]
    if not ENDPOINT_NAMES.take(name) or tree.named(name, kind):
        return  # `names` reports a malformed name
    other = tree.named(name, *ENDPOINTS)
    if other:
        yield spec.find(
            Rule.REFERENCE_KIND, ("endpoint_name",),
            f"refers to {name}, a {other.kind}, but a {spec.kind} needs a {kind}. Use one of these, or "
            "change $schema.",
        )  # fmt: skip
    else:
        there = [one.name for one in tree.of_kind(kind)]
        yield spec.find(
            Rule.NOT_FOUND, ("endpoint_name",),
            f"refers to {name}, which no nearby file defines{_closest(name, there)}. {_ELSEWHERE}",
        )  # fmt: skip


def _environment_kind(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    image = asset(spec.at("environment"), SpecKind.ENVIRONMENT, tree)
    if image is None:
        return
    served = bool(image.mapping("inference_config"))
    if spec.kind in ONLINE_DEPLOYMENTS and not served and image.at("build"):
        yield spec.find(
            Rule.REFERENCE_KIND, ("environment",),
            f"refers to {image.name}, whose build has no inference_config, so Azure does not know where its "
            "server answers. Use an environment for online deployments.",
        )  # fmt: skip
    if spec.kind is SpecKind.BATCH_DEPLOYMENT and served:
        yield spec.find(
            Rule.REFERENCE_KIND, ("environment",),
            f"refers to {image.name}, whose inference_config makes it one for online deployments. Use an "
            "environment with Azure's job runtime.",
        )  # fmt: skip


def _compute(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings about compute. Azure accepts a name with and without `azureml:`."""
    value = spec.at("compute")
    if spec.kind is SpecKind.BATCH_DEPLOYMENT and ("compute",) not in spec.document.lines:
        yield spec.find(
            Rule.GIVEN_LATER, ("compute",),
            "is missing, so each command must give it (--set compute=...). Set azureml:NAME, so that it can be checked.",
        )  # fmt: skip
    if value is None or value == _LOCAL or (isinstance(value, str) and RESOURCE_ID.fullmatch(value)):
        return
    if not isinstance(value, str) or not COMPUTE_NAME.fullmatch(value):
        yield spec.find(Rule.REFERENCE, ("compute",), f"must be azureml:NAME, not {shown(value)}.")
    elif cluster(spec, tree) is None:
        there = [f"azureml:{one.name}" for one in tree.of_kind(SpecKind.COMPUTE)]
        yield spec.find(
            Rule.NOT_FOUND, ("compute",),
            f"refers to {value}, which no nearby file defines{_closest(value, there)}. {_ELSEWHERE}",
        )  # fmt: skip


def _deployments(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    there = [one.name for one in tree.of_kind(*DEPLOYMENTS) if one.text("endpoint_name") == spec.name]
    for field in ("traffic", "mirror_traffic"):
        for name in spec.mapping(field):
            if name not in there:
                yield spec.find(
                    Rule.NOT_FOUND, (field, name),
                    f"refers to a deployment of {spec.name} that no nearby file defines{_closest(name, there)}. "
                    f"{_ELSEWHERE}",
                )  # fmt: skip


def _closest(name: str, there: list[str]) -> str:
    close = get_close_matches(name, there, n=1) or there[:1]
    return f" (did you mean {close[0]}?)" if close else ""
