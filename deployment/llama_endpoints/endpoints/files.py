"""The files that a deployment's file names, found around it, as `validate` finds them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llama_endpoints.validate.findings import Level
from llama_endpoints.validate.kinds import Kind
from llama_endpoints.validate.references import Reference, asset
from llama_endpoints.validate.report import check
from llama_endpoints.validate.spec_files import Spec, Tree, around, beside, specs_of
from llama_serving.errors import SetupError

_ENDPOINT_OF: Final = {
    Kind.MANAGED_DEPLOYMENT: Kind.MANAGED_ENDPOINT,
    Kind.KUBERNETES_DEPLOYMENT: Kind.KUBERNETES_ENDPOINT,
    Kind.BATCH_DEPLOYMENT: Kind.BATCH_ENDPOINT,
}
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Files:
    """A deployment's file and those around it.

    Attributes:
        endpoint: of the kind that the deployment needs.
        model: None where no file describes it.
        environment: likewise.
        compute: likewise; of a batch deployment.
    """

    deployment: Spec
    endpoint: Spec
    model: Spec | None
    environment: Spec | None
    compute: Spec | None

    @classmethod
    def around(cls, path: Path, *kinds: Kind) -> "Files":
        """Those that belong to a deployment of one of these kinds.

        Raises:
            SetupError: it is no such file, its endpoint has none, or `validate` finds errors in them.
        """
        own = next(specs_of([path]), None) if path.is_file() else None
        if own is None or own.kind not in kinds:
            allowed = " or ".join(kinds)
            raise SetupError(f"{path} is no file of a {allowed}. Name one, such as yaml/{'batch' if Kind.BATCH_DEPLOYMENT in kinds else 'online'}/"
                             "codellama-7b-hf.yml; `llama-endpoints render` writes them.")  # fmt: skip
        tree = Tree(tuple(specs_of(beside(around(path)))))
        compute = tree.named(own.text("compute").removeprefix("azureml:"), Kind.COMPUTE)
        found = cls(
            own,
            _endpoint(own, tree),
            asset(own.at("model"), Kind.MODEL, tree),
            asset(own.at("environment"), Kind.ENVIRONMENT, tree),
            compute,
        )
        found._check()
        return found

    @property
    def model_folder(self) -> Path | None:
        """What the model would be made from, where it is on this machine."""
        if self.model is None:
            return None
        folder = (self.model.path.parent / self.model.text("path")).resolve()
        return folder if folder.exists() else None

    def code(self) -> str:
        """A digest of the code that would be uploaded; empty where the model's own code runs."""
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
            more = f" And {len(errors) - _SHOWN} more." if len(errors) > _SHOWN else ""
            raise SetupError(
                f"Azure would refuse this, or it could not work: {' '.join(errors[:_SHOWN])}{more} Nothing was changed."
            )


def _endpoint(own: Spec, tree: Tree) -> Spec:
    kind = _ENDPOINT_OF[own.kind]
    name = own.text("endpoint_name")
    found = tree.named(name, kind) or next(
        (one for one in tree.of_kind(kind) if one.path.parent == own.path.parent.absolute()), None
    )
    if found is None:
        raise SetupError(
            f"No file around {own.path} describes the endpoint {name}. `llama-endpoints render` writes it."
        )
    return found


def reference(spec: Spec, key: str) -> str:
    """`NAME:VERSION` of what a deployment names; what is named otherwise as it stands."""
    found = Reference.of(spec.at(key))
    return f"{found.name}:{found.version}" if found else spec.text(key)
