"""URIs of models stored in Azure ML. Pure functions: no requests.

azureml:NAME:VERSION            azureml:NAME@LABEL
azureml://registries/REGISTRY/models/NAME/versions/VERSION            (or /labels/LABEL)
azureml://datastores/DATASTORE/paths/PATH
azureml://jobs/JOB/outputs/OUTPUT[/paths/PATH]
azureml://subscriptions/ID/resourcegroups/GROUP/workspaces/WORKSPACE/   followed by models/..., datastores/... or jobs/...

`azureml_cache` downloads them.
"""

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

from llama_serving.errors import SetupError

PREFIX: Final = "azureml:"
ALLOWED: Final = (
    "azureml:NAME:VERSION, azureml:NAME@LABEL, azureml://registries/REGISTRY/models/NAME/versions/VERSION (or /labels/LABEL), "
    "azureml://datastores/DATASTORE/paths/PATH, azureml://jobs/JOB/outputs/OUTPUT/paths/PATH, or the long form "
    "azureml://subscriptions/ID/resourcegroups/GROUP/workspaces/WORKSPACE/..."
)
_ANY_CASE: Final = ("subscription", "group", "workspace", "registry")
"""Parts that Azure compares without case."""


class UriKind(StrEnum):
    """Where a model is stored."""

    MODEL = "model"  # an asset of a workspace
    REGISTRY = "registry"  # an asset of a registry
    DATASTORE = "datastore"  # a path in storage
    JOB = "job"  # an output of a job


_NAME: Final = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_WHICH: Final = rf"(?:versions/(?P<version>{_NAME})|labels/(?P<label>{_NAME}))"
_MODEL: Final = rf"models/(?P<name>{_NAME})/{_WHICH}"
_WORKSPACE: Final = (
    rf"subscriptions/(?P<subscription>{_NAME})/resource[gG]roups/(?P<group>[\w().-]+)/"
    rf"(?:providers/Microsoft\.MachineLearningServices/)?workspaces/(?P<workspace>{_NAME})/"
)
_PATH: Final = r"paths/(?P<path>[^?#\s]+)"
_FORMS: Final = tuple(
    (kind, re.compile(form))
    for kind, form in (
        (UriKind.MODEL, rf"azureml:(?P<name>{_NAME})(?::(?P<version>{_NAME})|@(?P<label>{_NAME}))"),
        (UriKind.REGISTRY, rf"azureml://registries/(?P<registry>{_NAME})/{_MODEL}"),
        (UriKind.MODEL, rf"azureml:/{{1,2}}(?:{_WORKSPACE})?{_MODEL}"),
        (UriKind.DATASTORE, rf"azureml://(?:{_WORKSPACE})?datastores/(?P<datastore>{_NAME})/{_PATH}"),
        (UriKind.JOB, rf"azureml://(?:{_WORKSPACE})?jobs/(?P<job>{_NAME})/outputs/(?P<output>{_NAME})(?:/{_PATH})?/?"),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelUri:
    """The URI of a model stored in Azure.

    Attributes:
        kind: where it is stored.
        parts: the parts of the URI, by lower-case name; absent ones are missing.
    """

    kind: UriKind
    parts: Mapping[str, str]

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether a text is meant as a URI rather than a folder."""
        return text.startswith(PREFIX)

    @classmethod
    def parse(cls, text: str) -> "ModelUri":
        """Parse a URI.

        Raises:
            SetupError: it has none of the known forms.
        """
        for kind, form in _FORMS:
            found = form.fullmatch(text)
            if found is not None:
                return cls(kind, {name: part for name, part in found.groupdict().items() if part is not None})
        raise SetupError(f"{text} is not a model in Azure. Allowed are {ALLOWED}; or a local model folder.")

    @property
    def needs_workspace(self) -> bool:
        """Whether it is in a workspace, but does not name it."""
        return self.kind is not UriKind.REGISTRY and "workspace" not in self.parts

    @property
    def place(self) -> PurePosixPath:
        """Its relative path in the cache, unique for each version of a model and each path in storage."""
        parts = {name: part.lower() if name in _ANY_CASE else part for name, part in self.parts.items()}
        if self.kind is UriKind.DATASTORE:
            digest = hashlib.sha256(parts["path"].strip("/").encode()).hexdigest()
            return PurePosixPath(_within(parts), "datastores", parts["datastore"], digest[:16])
        return PurePosixPath(_within(parts), *_asset(parts))

    @property
    def title(self) -> str:
        """The model's name, or its folder's name."""
        last = self.parts.get("name") or self.parts["path"].strip("/").rpartition("/")[2]
        return re.sub(r"[^\w.-]", "-", last).lstrip(".")[-100:] or "model"

    def in_workspace(self, subscription: str, group: str, workspace: str) -> "ModelUri":
        """Return the URI with a workspace added."""
        return replace(
            self, parts={**self.parts, "subscription": subscription, "group": group, "workspace": workspace}
        )

    def of_version(self, version: str) -> "ModelUri":
        """Return the URI with a label replaced by its version."""
        rest = {name: part for name, part in self.parts.items() if name != "label"}
        return replace(self, parts={**rest, "version": version})

    def listing(self) -> str:
        """Return the shell command that lists its siblings."""
        if self.kind is UriKind.DATASTORE:
            return shlex.join(["az", "ml", "datastore", "list", *self._where()])
        return shlex.join(["az", "ml", "model", "list", "--name", self.parts["name"], *self._where()])

    def job_download(self, folder: str) -> str:
        """Return the shell command that downloads a job's output into `folder`."""
        what = ["--name", self.parts["job"], "--output-name", self.parts["output"]]
        return shlex.join(["az", "ml", "job", "download", *what, "--download-path", folder, *self._where()])

    def __str__(self) -> str:
        if self.kind is UriKind.JOB:
            return f"azureml://{_within(self.parts)}jobs/{self.parts['job']}/outputs/{self.parts['output']}"
        if self.kind is UriKind.DATASTORE:
            return f"azureml://{_within(self.parts)}datastores/{self.parts['datastore']}/paths/{self.parts['path']}"
        return f"azureml://{_within(self.parts)}{'/'.join(_asset(self.parts))}"

    def _where(self) -> list[str]:
        if self.kind is UriKind.REGISTRY:
            return ["--registry-name", self.parts["registry"]]
        given = (
            ("--workspace-name", "workspace"),
            ("--resource-group", "group"),
            ("--subscription", "subscription"),
        )
        return [word for option, part in given if part in self.parts for word in (option, self.parts[part])]


def _within(parts: Mapping[str, str]) -> str:
    """Return the prefix of the registry or workspace, ending with `/`; empty if neither is given."""
    if "registry" in parts:
        return f"registries/{parts['registry']}/"
    if "workspace" in parts:
        return f"subscriptions/{parts['subscription']}/resourcegroups/{parts['group']}/workspaces/{parts['workspace']}/"
    return ""


def _asset(parts: Mapping[str, str]) -> tuple[str, ...]:
    which = ("versions", parts["version"]) if "version" in parts else ("labels", parts["label"])
    return "models", parts["name"], *which


def refusal(uri: ModelUri) -> str:
    """Return why a job's output is not downloaded, and what to do."""
    return (
        f"{uri} is a job's output, which cannot be downloaded here. Run `{uri.job_download('build/from-azure')}`, and pass the "
        "resulting folder; or register the output as a model."
    )
