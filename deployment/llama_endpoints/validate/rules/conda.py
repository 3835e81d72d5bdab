"""What a conda file brings: dependencies that can be read, Azure's runtime among them, and what the script imports."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import yaml

from llama_endpoints.validate import disk
from llama_endpoints.validate.document import MOST_BYTES, Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, Kind
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.script import Script
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import shown

_RUNTIMES: Final[Mapping[bool, tuple[str, ...]]] = {
    True: ("azureml-core", "azureml-defaults", "azureml-sdk", "azureml-mlflow"),
    False: ("azureml-inference-server-http", "azureml-defaults"),
}
"""What Azure starts a script with, by whether it is for batch; the last ones bring the first."""
_SPELT: Final = {
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "cv2": "opencv",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "bs4": "beautifulsoup4",
}
_BROUGHT: Final = frozenset({
    "azure", "azureml", "attr", "dateutil", "flask", "fsspec", "google", "inference_schema", "jinja2", "mltable", "packaging", "PIL", "pkg_resources",
    "pydantic", "requests", "setuptools", "six", "typing_extensions", "werkzeug", "yaml",
})  # fmt: skip
"""Imports that other packages bring so often that a missing line says nothing."""
_OFTEN_BROUGHT: Final = frozenset({"joblib", "numpy", "pandas", "pyarrow", "scipy", "tqdm"})
"""Imports that Azure's own runtimes don't bring, and most of what stands beside them may."""
_BASE: Final = frozenset({"azureml-core", "azureml-defaults", "azureml-inference-server-http", "pip", "python"})
_NAME: Final = re.compile(r"\s*(?:[\w.-]+::)?([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True)
class Conda:
    """A conda file.

    Attributes:
        packages: of conda and pip, in small letters and with hyphens.
        is_whole: whether they are all, and no other file is read by pip.
    """

    packages: frozenset[str]
    is_whole: bool

    @classmethod
    def of(cls, root: Mapping[str, Any]) -> "Conda":
        """From its sections."""
        lines = [str(one) for one in _flat(root.get("dependencies"))]
        names = (_NAME.match(line) for line in lines if not line.lstrip().startswith("-"))
        options = [line for line in lines if line.lstrip().startswith(("-r", "--requirement", "-e", "."))]
        packages = frozenset(match[1].lower().replace("_", "-") for match in names if match)
        return cls(packages, not options)


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of environments, alone or inside of a deployment or a job; of deployments also what runs in them."""
    place: Place = ("conda_file",) if spec.kind is Kind.ENVIRONMENT else ("environment", "conda_file")
    given = spec.at(*place)
    if isinstance(given, str | dict):
        problem = _problem(spec, given)
        if problem:
            yield spec.find(Rule.CONDA, place, problem)
            return
    if spec.kind in DEPLOYMENTS and spec.at("code_configuration") is not None:
        yield from _serves(spec, tree, place if given is not None else ("environment",))


def _problem(spec: Spec, given: str | dict[str, Any]) -> str:
    """Why it brings nothing; empty where it can be read, or its path is wrong, which another rule says."""
    try:
        root = _root(spec, given)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in its line {mark.line + 1}" if mark else ""
        return f"names a file that is not YAML{line}: {getattr(error, 'problem', None) or error}."
    except OSError:
        return ""
    if not isinstance(root, dict):
        return "" if root is _ELSEWHERE else "must name a conda file: a mapping with dependencies."
    if isinstance(root.get("dependencies"), list):
        return ""
    near = get_close_matches("dependencies", map(str, root), n=1)
    return f"has no list of dependencies{f' (it has {near[0]}: is it that?)' if near else ''}, so that nothing is installed."


_ELSEWHERE: Final = object()
"""What is not on this machine."""


def _root(spec: Spec, given: str | dict[str, Any]) -> Any:
    if isinstance(given, dict):
        return given
    path = spec.path.parent / given
    if "://" in given or not disk.is_file(path):
        return _ELSEWHERE
    with path.open("rb") as file:
        return yaml.safe_load(file.read(MOST_BYTES).decode("utf-8"))


def _serves(spec: Spec, tree: Tree, place: Place) -> Iterator[Finding]:
    """Whether a script can run in the deployment's environment."""
    environment = asset(spec.at("environment"), Kind.ENVIRONMENT, tree)
    given = environment.at("conda_file") if environment else spec.at("environment", "conda_file")
    owner = environment or spec
    if not isinstance(given, str | dict) or _problem(owner, given):
        return
    try:
        root = _root(owner, given)
    except OSError:
        return
    if not isinstance(root, dict):
        return
    conda = Conda.of(root)
    needed = _RUNTIMES[spec.kind is Kind.BATCH_DEPLOYMENT]
    if conda.is_whole and not conda.packages & set(needed):
        yield spec.find(
            Rule.CONDA, place,
            f"brings no {needed[0]}, which runs the script ({shown(given) if isinstance(given, str) else 'its dependencies'}). Add it below pip.",
        )  # fmt: skip
    script = Script.of(spec)
    missing = _missing(script, conda) if script is not None and conda.is_whole else []
    if missing:
        yield spec.find(
            Rule.IMPORT, place,
            f"names nothing that looks like {', '.join(missing)}, which {script.path.name if script else ''} imports. Add what brings it.",
        )  # fmt: skip


def _missing(script: Script, conda: Conda) -> list[str]:
    """Top-level modules that are neither Python's, nor beside the script, nor like the name of a package."""
    folder = script.path.parent
    known = sys.stdlib_module_names | _BROUGHT | (_OFTEN_BROUGHT if conda.packages - _BASE else frozenset())
    tops = {name.partition(".")[0] for name in script.imported if name not in known}
    others = (
        name
        for name in tops - known
        if not disk.exists(folder / name) and not disk.is_file(folder / f"{name}.py")
    )
    return sorted(name for name in others if not _is_like_one(name, conda))


def _is_like_one(name: str, conda: Conda) -> bool:
    spelt = _SPELT.get(name, name).lower().replace("_", "-")
    return any(spelt in package or package in spelt for package in conda.packages)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = [inner for some in value.values() for inner in (some if isinstance(some, list) else [some])]
    for one in value if isinstance(value, list) else []:
        if isinstance(one, dict | list):
            yield from _flat(one)
        else:
            yield one
