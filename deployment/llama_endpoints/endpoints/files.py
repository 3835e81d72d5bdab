"""Find the files that a deployment's file refers to, in the folders around it, as `validate` does."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_endpoints.validate.findings import Level
from llama_endpoints.validate.kinds import ENDPOINT_OF, SpecKind
from llama_endpoints.validate.references import Reference, asset
from llama_endpoints.validate.report import check
from llama_endpoints.validate.spec_files import SpecFile, SpecTree, around, beside, specs_of
from llama_serving.errors import SetupError

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Files:
    """A deployment's file and the files it refers to.

    Attributes:
        endpoint: the endpoint's file.
        model: the model's file; None if there is none.
        environment: the environment's file; None if there is none.
        compute: a batch deployment's cluster file; None if there is none.
    """

    deployment: SpecFile
    endpoint: SpecFile
    model: SpecFile | None
    environment: SpecFile | None
    compute: SpecFile | None

    @classmethod
    def around(cls, path: Path, *kinds: SpecKind) -> "Files":
        """Find the files of a deployment of one of these kinds.

        Raises:
            SetupError: `path` is not such a file, its endpoint has no file, or `validate` finds errors.
        """
        own = next(specs_of([path]), None) if path.is_file() else None
        if own is None or own.kind not in kinds:
            allowed = " or ".join(kinds)
            raise SetupError(f"{path} is not the file of a {allowed}. Pass one, such as yaml/{'batch' if SpecKind.BATCH_DEPLOYMENT in kinds else 'online'}/"
                             "codellama-7b-hf.yml; `llama-endpoints render` writes them.")  # fmt: skip
        tree = SpecTree(tuple(specs_of(beside(around(path)))))
        compute = tree.named(own.text("compute").removeprefix("azureml:"), SpecKind.COMPUTE)
        found = cls(
            own,
            _endpoint(own, tree),
            asset(own.at("model"), SpecKind.MODEL, tree),
            asset(own.at("environment"), SpecKind.ENVIRONMENT, tree),
            compute,
        )
        found._check()
        return found

    @property
    def model_folder(self) -> Path | None:
        """The local folder to create the model from; None if it does not exist."""
        if self.model is None:
            return None
        folder = (self.model.path.parent / self.model.text("path")).resolve()
        return folder if folder.exists() else None

    def code(self) -> str:
        """Return a digest of the code to upload; empty if the deployment runs the model's own code."""
        if self.deployment.at("code_configuration") is None:
            return ""
        folder = self.deployment.path.parent / self.deployment.text("code_configuration", "code")
        digest = hashlib.sha256()
        for path in sorted(
            file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts
        ):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def _check(self) -> None:
        given = (self.deployment, self.endpoint, self.model, self.environment, self.compute)
        findings = check([spec.path for spec in given if spec is not None]).findings
        errors = [one.shown() for one in findings if one.level is Level.ERROR]
        if errors:
            more = f" {len(errors) - _SHOWN} more." if len(errors) > _SHOWN else ""
            raise SetupError(
                f"Azure would refuse these files, or they could not work: {' '.join(errors[:_SHOWN])}{more} Nothing was changed."
            )


def _endpoint(own: SpecFile, tree: SpecTree) -> SpecFile:
    kind = ENDPOINT_OF[own.kind]
    name = own.text("endpoint_name")
    found = tree.named(name, kind) or next(
        (one for one in tree.of_kind(kind) if one.path.parent == own.path.parent.absolute()), None
    )
    if found is None:
        raise SetupError(
            f"No file near {own.path} describes the endpoint {name}. Create it with `llama-endpoints render`."
        )
    return found


def reference(spec: SpecFile, key: str) -> str:
    """Return a reference as `NAME:VERSION`, or as written if it has another form."""
    found = Reference.of(spec.at(key))
    return f"{found.name}:{found.version}" if found else spec.text(key)
