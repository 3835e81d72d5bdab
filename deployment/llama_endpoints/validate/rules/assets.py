"""Environments, models and data: their paths exist, and their images are pinned."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from llama_endpoints.render.spec import WEIGHTS
from llama_endpoints.validate import filesystem
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.image import Image, dockerfile, tagged
from llama_endpoints.validate.kinds import DEPLOYMENTS, SpecKind
from llama_endpoints.validate.serving import QUANTIZED
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

MADE: Final = "build"
"""The folder that `package` writes to; a model there may not exist yet."""
_URI: Final = re.compile(
    r"azureml://(?:datastores/[^/]+/paths|jobs/[^/]+/outputs|subscriptions/[^/]+|locations/[^/]+|registries/[^/]+)/\S+"
    r"|azureml:[^:/\s]+[:@][^:/\s]+|(?:https?|abfss?|wasbs?|adl)://\S+|runs:/\S+",
    re.IGNORECASE,
)
_FORMS: Final = "a path from this file, azureml://datastores/NAME/paths/..., or a https, abfss or wasbs URL"


def rules(spec: SpecFile, _tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of assets, alone or inside a deployment or a job."""
    if spec.kind is SpecKind.ENVIRONMENT:
        yield from _environment(spec)
    elif spec.at("environment") and spec.mapping("environment"):
        yield from _environment(spec, "environment")
    if spec.kind is SpecKind.MODEL:
        yield from _model(spec)
    elif spec.kind in DEPLOYMENTS and spec.mapping("model"):
        yield from _model(spec, "model")
    if spec.kind is SpecKind.DATA:
        yield from _data(spec)


def _environment(spec: SpecFile, *prefix: str) -> Iterator[Finding]:
    image, build = spec.at(*prefix, "image"), spec.at(*prefix, "build")
    if (image is None) == (build is None):
        said = "neither image nor build" if image is None else "both image and build"
        yield spec.find(Rule.IMAGE, (*prefix, "image"), f"has {said}. Set exactly one of them.")
    if isinstance(image, str) and not tagged(image):
        yield spec.find(
            Rule.UNPINNED, (*prefix, "image"),
            f"is {shown(image)}, which is not pinned. Use a tag other than latest, or a digest.",
        )  # fmt: skip
    conda = spec.at(*prefix, "conda_file")
    if isinstance(conda, str) and "://" not in conda and not filesystem.is_file(spec.path.parent / conda):
        yield spec.find(
            Rule.PATH, (*prefix, "conda_file"), f"must be a file; {spec.path.parent / conda} does not exist."
        )
    if build is not None:
        yield from _build(spec, *prefix)
    yield from _routes(spec, *prefix)
    if Image.built_by(spec, *prefix) is None:  # else its ports are known
        yield from _ports(spec, *prefix)


def _build(spec: SpecFile, *prefix: str) -> Iterator[Finding]:
    path = dockerfile(spec, *prefix)
    if path is None:
        if not spec.text(*prefix, "build", "path"):
            yield spec.find(Rule.PATH, (*prefix, "build", "path"), "must be the folder of the Dockerfile.")
        return
    if not filesystem.is_file(path):
        field = "dockerfile_path" if filesystem.is_dir(path.parent) else "path"
        yield spec.find(
            Rule.PATH, (*prefix, "build", field),
            f"must lead to a Dockerfile; {path} does not exist. Both paths are relative to this file.",
        )  # fmt: skip
        return
    try:
        image = Image.of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield spec.find(Rule.PATH, (*prefix, "build"), f"refers to {path}, which cannot be read: {error}.")
        return
    yield from _dockerfile(spec, image, path, *prefix)


def _dockerfile(spec: SpecFile, image: Image, path: Path, *prefix: str) -> Iterator[Finding]:
    place = (*prefix, "build")
    for base in image.bases:
        if not tagged(base):
            yield spec.find(
                Rule.UNPINNED, place,
                f"uses FROM {base} ({path.name}), which is not pinned. Use a tag other than latest, or a digest.",
            )  # fmt: skip
    if image.user in {"root", "0"}:
        yield spec.find(Rule.ROOT_USER, place, f"runs as root ({path.name} sets no other USER). Add a USER.")
    for route in spec.mapping(*prefix, "inference_config"):
        port = spec.at(*prefix, "inference_config", route, "port")
        if isinstance(port, int) and image.ports and port not in image.ports:
            ports = ", ".join(map(str, sorted(image.ports)))
            yield spec.find(
                Rule.ROUTES, (*prefix, "inference_config", route, "port"),
                f"is {port}, but the image's server listens on {ports} ({path.name}). Use that port.",
            )  # fmt: skip


def _routes(spec: SpecFile, *prefix: str) -> Iterator[Finding]:
    """Yield the findings about the routes of a container's probes."""
    place = (*prefix, "inference_config")
    routes = spec.mapping(*place)
    for route in routes:
        to = spec.at(*place, route, "path")
        if isinstance(to, str) and not to.startswith("/"):
            yield spec.find(Rule.ROUTES, (*place, route, "path"), f"must begin with /, not be {shown(to)}.")


def _ports(spec: SpecFile, *prefix: str) -> Iterator[Finding]:
    """Yield a finding for a port that no other route has, usually a mistake."""
    place = (*prefix, "inference_config")
    ports = {route: spec.at(*place, route, "port") for route in spec.mapping(*place)}
    numbers = list(ports.values())
    for route, port in ports.items():
        if len(numbers) > 2 and numbers.count(port) == 1 and len(set(map(str, numbers))) == 2:
            others = next(one for one in numbers if one != port)
            yield spec.find(
                Rule.ROUTE_PORT, (*place, route, "port"),
                f"is {port}, but the other routes use {others}. Use that port, unless the container listens on both.",
            )  # fmt: skip


def _model(spec: SpecFile, *prefix: str) -> Iterator[Finding]:
    weights = spec.at(*prefix, "properties", WEIGHTS)
    if weights is not None and weights not in QUANTIZED:
        yield spec.find(
            Rule.CHOICE, (*prefix, "properties", WEIGHTS),
            f"must be one of {', '.join(QUANTIZED)}, not {shown(weights)}; omit it for 16-bit weights.",
        )  # fmt: skip
    place = (*prefix, "path")
    value = spec.at(*place)
    if not isinstance(value, str):
        yield spec.find(Rule.PATH, place, f"must be {_FORMS}.")
        return
    if _URI.fullmatch(value):
        return
    path = spec.path.parent / value
    if "://" in value or not (filesystem.exists(path) or _may_come_later(path)):
        yield spec.find(
            Rule.PATH, place,
            f"must be {_FORMS}; {shown(value)} is none of these. Create a model below {MADE}/ with "
            "`llama-endpoints package`.",
        )  # fmt: skip
    elif (
        filesystem.is_dir(path)
        and spec.at(*prefix, "type") == "mlflow_model"
        and not filesystem.is_file(path / "MLmodel")
    ):
        yield spec.find(
            Rule.MLMODEL, place,
            f"is the folder {value}, which has no MLmodel file, but type is mlflow_model. Create it with "
            "`llama-endpoints package`, or set the model's folder.",
        )  # fmt: skip
    elif filesystem.is_file(path) and spec.at(*prefix, "type") == "mlflow_model":
        yield spec.find(
            Rule.MLMODEL, place, f"is the file {value}, but a mlflow_model is a folder with a file MLmodel."
        )


def _may_come_later(path: Path) -> bool:
    """Whether it is where `package` writes models, which may be created later or on another machine."""
    return MADE in {folder.name for folder in islice(Path(os.path.normpath(path.absolute())).parents, 2)}


def _data(spec: SpecFile) -> Iterator[Finding]:
    value, kind = spec.at("path"), spec.text("type") or "uri_folder"
    if isinstance(value, str) and _URI.fullmatch(value):
        return
    path = spec.path.parent / value if isinstance(value, str) and "://" not in value else None
    if path is None or not filesystem.exists(path):
        yield spec.find(Rule.PATH, ("path",), f"must be {_FORMS}; {shown(value)} is none of these.")
    elif filesystem.is_dir(path) is (kind == "uri_file"):
        is_what = "a folder" if filesystem.is_dir(path) else "a file"
        yield spec.find(Rule.PATH, ("path",), f"is {is_what}, but type is {kind}. Change one of them.")
    elif kind == "mltable" and not filesystem.is_file(path / "MLTable"):
        yield spec.find(Rule.PATH, ("path",), "is a mltable, but has no file MLTable.")
