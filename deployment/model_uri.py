"""Azure ML's names of a model that lies in Azure, and how it comes onto a disk. Pure: nothing here asks Azure.

    azureml:NAME:VERSION            azureml:NAME@LABEL
    azureml://registries/REGISTRY/models/NAME/versions/VERSION            (or /labels/LABEL)
    azureml://datastores/DATASTORE/paths/PATH
    azureml://jobs/JOB/outputs/OUTPUT[/paths/PATH]
    azureml://subscriptions/ID/resourcegroups/GROUP/workspaces/WORKSPACE/   with models/..., datastores/... or jobs/... behind it

The commands work on folders. They do not download a model themselves: azure-ai-ml (1.35) reads each file whole into memory
before it writes it, and neither goes on after a break nor verifies, which is no way to fetch a shard of 10 GB.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from llama_serving.errors import SetupError

PREFIX: Final = "azureml:"
ALLOWED: Final = (
    "azureml:NAME:VERSION, azureml:NAME@LABEL, azureml://registries/REGISTRY/models/NAME/versions/VERSION (or /labels/LABEL), "
    "azureml://datastores/DATASTORE/paths/PATH, azureml://jobs/JOB/outputs/OUTPUT/paths/PATH, or the long form "
    "azureml://subscriptions/ID/resourcegroups/GROUP/workspaces/WORKSPACE/..."
)


class Kind(StrEnum):
    """Where a model lies."""

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
        (Kind.MODEL, rf"azureml:(?P<name>{_NAME})(?::(?P<version>{_NAME})|@(?P<label>{_NAME}))"),
        (Kind.REGISTRY, rf"azureml://registries/(?P<registry>{_NAME})/{_MODEL}"),
        (Kind.MODEL, rf"azureml:/{{1,2}}(?:{_WORKSPACE})?{_MODEL}"),
        (Kind.DATASTORE, rf"azureml://(?:{_WORKSPACE})?datastores/(?P<datastore>{_NAME})/{_PATH}"),
        (Kind.JOB, rf"azureml://(?:{_WORKSPACE})?jobs/(?P<job>{_NAME})/outputs/(?P<output>{_NAME})(?:/{_PATH})?/?"),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelUri:
    """A model's place in Azure.

    Attributes:
        kind: what sort of place.
        parts: of the URI, by the names in this file's table, in small letters; those that it does not have are not there.
    """

    kind: Kind
    parts: Mapping[str, str]

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether a text is meant as one, rather than as a folder."""
        return text.startswith(PREFIX)

    @classmethod
    def parse(cls, text: str) -> "ModelUri":
        """The parts of a URI.

        Raises:
            SetupError: it is none of the known forms.
        """
        for kind, form in _FORMS:
            found = form.fullmatch(text)
            if found is not None:
                return cls(kind, {name: part for name, part in found.groupdict().items() if part is not None})
        raise SetupError(
            f"{text} names no model in Azure. Allowed are {ALLOWED}; or the folder of a model here."
        )

    def download(self, folder: str) -> str:
        """The shell command that brings it into `folder`; words in capitals are still to be filled in."""
        words = {
            Kind.MODEL: self._model,
            Kind.REGISTRY: self._model,
            Kind.DATASTORE: self._datastore,
            Kind.JOB: self._job,
        }[self.kind](folder)
        return shlex.join(words)

    def missing(self) -> str | None:
        """The shell command that says what is to be filled in."""
        if self.kind is Kind.DATASTORE:
            return shlex.join(
                ["az", "ml", "datastore", "show", "--name", self.parts["datastore"], *self._where()]
            )
        if "label" in self.parts:
            words = ["az", "ml", "model", "show", "--name", self.parts["name"], "--label", self.parts["label"]]
            return shlex.join([*words, *self._where()])
        return None

    def _model(self, folder: str) -> list[str]:
        which = self.parts.get("version", "VERSION")
        words = ["az", "ml", "model", "download", "--name", self.parts["name"], "--version", which]
        return [*words, "--download-path", folder, *self._where()]

    def _datastore(self, folder: str) -> list[str]:
        place = f"https://ACCOUNT.blob.core.windows.net/CONTAINER/{self.parts['path']}"
        return ["azcopy", "copy", "--recursive", place, folder]

    def _job(self, folder: str) -> list[str]:
        words = [
            "az",
            "ml",
            "job",
            "download",
            "--name",
            self.parts["job"],
            "--output-name",
            self.parts["output"],
        ]
        return [*words, "--download-path", folder, *self._where()]

    def _where(self) -> list[str]:
        if self.kind is Kind.REGISTRY:
            return ["--registry-name", self.parts["registry"]]
        given = (
            ("--workspace-name", "workspace"),
            ("--resource-group", "group"),
            ("--subscription", "subscription"),
        )
        return [word for option, part in given if part in self.parts for word in (option, self.parts[part])]


def refuse(text: str) -> None:
    """Nothing, unless `text` names a model in Azure.

    Raises:
        SetupError: it does; with the command that downloads it.
    """
    if not ModelUri.is_one(text):
        return
    uri = ModelUri.parse(text)
    missing = uri.missing()
    hint = f" (`{missing}` says what stands for the words in capitals)" if missing else ""
    raise SetupError(
        f"{text} lies in Azure, and the folder of a model here is needed. Run `{uri.download('build/from-azure')}`{hint}, "
        "and name the folder that it makes."
    )
