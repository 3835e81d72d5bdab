"""Conda files: whether they are readable, and contain Azure's runtime and what the script imports."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import yaml

from llama_endpoints.validate import filesystem
from llama_endpoints.validate.document import MOST_BYTES, Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, SpecKind
from llama_endpoints.validate.references import asset
from llama_endpoints.validate.script import Script
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

_RUNTIMES: Final[Mapping[bool, tuple[str, ...]]] = {
    True: ("azureml-core", "azureml-defaults", "azureml-sdk", "azureml-mlflow"),
    False: ("azureml-inference-server-http", "azureml-defaults"),
}
"""The packages that run a script, online and batch; the last ones depend on the first."""
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
"""Modules that other packages often install, so a missing line means nothing."""
_OFTEN_BROUGHT: Final = frozenset({"joblib", "numpy", "pandas", "pyarrow", "scipy", "tqdm"})
"""Modules that Azure's own runtimes do not install, though other packages may."""
_BASE: Final = frozenset({"azureml-core", "azureml-defaults", "azureml-inference-server-http", "pip", "python"})
_NAME: Final = re.compile(r"\s*(?:[\w.-]+::)?([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True)
class Conda:
    """A conda file.

    Attributes:
        packages: names of conda and pip packages, in lower case with hyphens.
        is_whole: whether these are all packages, and pip reads no other file.
    """

    packages: frozenset[str]
    is_whole: bool

    @classmethod
    def of(cls, root: Mapping[str, Any]) -> "Conda":
        """Read the packages from the file's sections."""
        lines = [str(one) for one in _flat(root.get("dependencies"))]
        names = (_NAME.match(line) for line in lines if not line.lstrip().startswith("-"))
        options = [line for line in lines if line.lstrip().startswith(("-r", "--requirement", "-e", "."))]
        packages = frozenset(match[1].lower().replace("_", "-") for match in names if match)
        return cls(packages, not options)


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of environments, alone or inside a deployment or job, and of deployments that use them."""
    place: Place = ("conda_file",) if spec.kind is SpecKind.ENVIRONMENT else ("environment", "conda_file")
    given = spec.at(*place)
    if isinstance(given, str | dict):
        problem = _problem(spec, given)
        if problem:
            yield spec.find(Rule.CONDA, place, problem)
            return
    if spec.kind in DEPLOYMENTS and spec.at("code_configuration") is not None:
        yield from _serves(spec, tree, place if given is not None else ("environment",))


def _problem(spec: SpecFile, given: str | dict[str, Any]) -> str:
    """Return why it installs nothing; empty if it can be read, or if its path is wrong, which another rule reports."""
    try:
        root = _root(spec, given)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in its line {mark.line + 1}" if mark else ""
        return f"refers to a file that is not YAML{line}: {getattr(error, 'problem', None) or error}."
    except OSError:
        return ""
    if not isinstance(root, dict):
        return "" if root is _ELSEWHERE else "must refer to a conda file: a mapping with dependencies."
    if isinstance(root.get("dependencies"), list):
        return ""
    near = get_close_matches("dependencies", map(str, root), n=1)
    return (
        f"has no list of dependencies{f' (did you mean {near[0]}?)' if near else ''}, so nothing is installed."
    )


_ELSEWHERE: Final = object()
"""Marks a file that is not on this machine."""


def _root(spec: SpecFile, given: str | dict[str, Any]) -> Any:
    if isinstance(given, dict):
        return given
    path = spec.path.parent / given
    if "://" in given or not filesystem.is_file(path):
        return _ELSEWHERE
    with path.open("rb") as file:
        return yaml.safe_load(file.read(MOST_BYTES).decode("utf-8"))


def _serves(spec: SpecFile, tree: SpecTree, place: Place) -> Iterator[Finding]:
    """Yield findings if the environment cannot run the deployment's script."""
    environment = asset(spec.at("environment"), SpecKind.ENVIRONMENT, tree)
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
    needed = _RUNTIMES[spec.kind is SpecKind.BATCH_DEPLOYMENT]
    if conda.is_whole and not conda.packages & set(needed):
        yield spec.find(
            Rule.CONDA, place,
            f"does not install {needed[0]}, which runs the script ({shown(given) if isinstance(given, str) else 'its dependencies'}). Add it below pip.",
        )  # fmt: skip
    script = Script.of(spec)
    missing = _missing(script, conda) if script is not None and conda.is_whole else []
    if missing:
        yield spec.find(
            Rule.IMPORT, place,
            f"has no package for {', '.join(missing)}, which {script.path.name if script else ''} imports. Add the package.",
        )  # fmt: skip


def _missing(script: Script, conda: Conda) -> list[str]:
    """Return imported top-level modules that are not in the standard library, beside the script, or similar to a package's name."""
    folder = script.path.parent
    known = sys.stdlib_module_names | _BROUGHT | (_OFTEN_BROUGHT if conda.packages - _BASE else frozenset())
    tops = {name.partition(".")[0] for name in script.imported if name not in known}
    others = (
        name
        for name in tops - known
        if not filesystem.exists(folder / name) and not filesystem.is_file(folder / f"{name}.py")
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
