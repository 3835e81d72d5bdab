"""pyproject.toml: who uses a library's private names holds it to the versions that have them, and every pin fits."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNDOCUMENTED = {"uvicorn.protocols"}
"""Modules without an underscore that their library does not document."""
PROVIDERS = packages_distributions()
SOURCES = [
    path for folder in ("score", "deployment", "load_tests") for path in sorted((ROOT / folder).rglob("*.py"))
]


def requirements() -> dict[str, list[Requirement]]:
    listed = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    found: dict[str, list[Requirement]] = {}
    for line in listed:
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def private_imports(source: str) -> Iterator[str]:
    """Names that a text imports from other libraries and that those do not promise to keep."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            undocumented = any(name.startswith(f"{module}.") for module in UNDOCUMENTED)
            if undocumented or re.search(r"(^|\.)_[a-zA-Z]", name):
                yield name


def private_names() -> set[str]:
    found = {name for path in SOURCES for name in private_imports(path.read_text(encoding="utf-8"))}
    return {
        name
        for name in found
        if name.partition(".")[0] not in {"llama_endpoints", "llama_serving", "__future__"}
    }


def distribution(name: str) -> str:
    """`azure.ai.ml._schema.x` -> `azure-ai-ml`: a namespace package has many, and the longest that fits is it."""
    among = {canonicalize_name(one) for one in PROVIDERS[name.partition(".")[0]]}
    fitting = [one for one in among if name.replace(".", "-").startswith(one)]
    return max(fitting, key=len, default=f"{name.partition('.')[0]}-api")  # (OpenTelemetry's)


def test_private_names_are_found() -> None:
    source = "from a.b import _c\nfrom a._d import e\nimport a._f.g\nfrom uvicorn.protocols.http import h11_impl\nfrom a import b\n"
    assert list(private_imports(source)) == ["a.b._c", "a._d.e", "a._f.g", "uvicorn.protocols.http.h11_impl"]
    assert {distribution(name) for name in private_names()} == {
        "azure-ai-ml", "mlflow", "opentelemetry-api", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk", "uvicorn",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(private_names()))
def test_whose_private_names_are_used_has_an_upper_bound(name: str) -> None:
    (required,) = requirements()[distribution(name)]
    assert any(one.operator in {"<", "<=", "==", "~="} for one in required.specifier), str(required)


def test_every_pin_fits_what_is_required() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    pins = {canonicalize_name(name): version.partition(";")[0].strip() for name, version in pins.items()}
    assert [
        str(one)
        for name, each in requirements().items()
        for one in each
        if name in pins and not one.specifier.contains(pins[name], prereleases=True)
    ] == []


def test_the_licence_is_named_and_there() -> None:
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n" in text
    assert "END OF TERMS AND CONDITIONS" in text
