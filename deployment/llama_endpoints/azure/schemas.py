"""Check files with azure-ai-ml's own schemas."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from llama_endpoints.azure.credentials import NOT_INSTALLED
from llama_endpoints.azure.sdk import quiet
from llama_serving.errors import SetupError


@dataclass(frozen=True, slots=True)
class Complaint:
    """An error from azure-ai-ml.

    Attributes:
        place: keys and indices of the value; empty if unknown.
        message: azure-ai-ml's message.
        unknown: whether the field is unknown.
        known: the known fields there, if the field is unknown.
    """

    place: tuple[str | int, ...]
    message: str
    unknown: bool = False
    known: tuple[str, ...] = ()


def complaints(kind: str, path: Path) -> list[Complaint]:
    """Return the errors of azure-ai-ml's loader for a file of a kind, the name of its `$schema`.

    Raises:
        SetupError: azure-ai-ml is not installed.
    """
    with quiet():
        try:
            load, schema_of = _loaders()[kind]
        except ImportError as error:
            raise SetupError(f"{NOT_INSTALLED} ({error})") from error
    with quiet():  # again: its import enables its log
        schema = schema_of(context={"base_path": path.parent})
        try:
            return list(_complaints(_errors_by_field(kind, path, load, schema), schema))
        except Exception as error:  # on unexpected shapes it raises arbitrary errors
            return [Complaint((), f"{type(error).__name__}: {error}")]


def _errors_by_field(kind: str, path: Path, load: Callable[..., Any], schema: Any) -> Any:
    """Return the errors by field; nothing if the file is valid."""
    from marshmallow import ValidationError

    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    later = {name: _LATER for name in LATER[kind] if name not in given}
    given = {**given, **later}
    own = given.get("type", _DEFAULT_TYPE)
    if _TYPES.get(kind, own) != own:  # the loader would read it as another kind
        return _validated(schema, {**given, "type": _TYPES[kind]})
    try:
        load(source=path, params_override=[{name: value} for name, value in later.items()])
    except ValidationError as error:
        said = getattr(error.__cause__, "messages", None)
        # A job's loader keeps only the text of its errors, so its schema is called again.
        return said if isinstance(said, dict) else _validated(schema, given) or {"_schema": [str(error)]}
    except NotImplementedError:  # a schedule's loader cannot tell its errors
        return _validated(schema, given) or {"_schema": ["it cannot be loaded"]}
    return {}


_DEPLOYMENT: Final = ("name", "endpoint_name")
LATER: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("managedOnlineDeployment", "kubernetesOnlineDeployment"), _DEPLOYMENT),
    **dict.fromkeys(("modelBatchDeployment", "batchDeployment"), (*_DEPLOYMENT, "compute")),
    **dict.fromkeys(
        (
            "managedOnlineEndpoint",
            "kubernetesOnlineEndpoint",
            "batchEndpoint",
            "environment",
            "model",
            "data",
            "amlCompute",
            "commandComponent",
            "monitorSchedule",
        ),
        ("name",),
    ),
    "commandJob": (),
}
"""Fields that may be given on the command line of `az ml` instead."""
_LATER: Final = "given-later"
_DEFAULT_TYPE: Final = "managed"
_TYPES: Final = {
    "managedOnlineDeployment": "managed",
    "kubernetesOnlineDeployment": "kubernetes",
    "amlCompute": "amlcompute",
    "commandJob": "command",
    "commandComponent": "command",
}


def loader(kind: str) -> Callable[..., Any]:
    """Return azure-ai-ml's function that loads a file of a kind, the name of its `$schema`."""
    load, _ = _loaders()[kind]
    return load


@cache
def _loaders() -> dict[str, tuple[Callable[..., Any], Any]]:
    """Return the loader and schema of each kind."""
    from azure.ai import ml
    from azure.ai.ml import _schema as schemas
    from azure.ai.ml._schema._deployment.batch.batch_deployment import BatchDeploymentSchema
    from azure.ai.ml._schema._deployment.batch.model_batch_deployment import ModelBatchDeploymentSchema
    from azure.ai.ml._schema._deployment.online import online_deployment
    from azure.ai.ml._schema._endpoint.batch.batch_endpoint import BatchEndpointSchema
    from azure.ai.ml._schema._endpoint.online import online_endpoint
    from azure.ai.ml._schema.component import CommandComponentSchema
    from azure.ai.ml._schema.compute.aml_compute import AmlComputeSchema
    from azure.ai.ml._schema.monitoring.schedule import MonitorScheduleSchema
    from azure.ai.ml.entities._load_functions import load_model_batch_deployment, load_schedule

    return {
        "managedOnlineEndpoint": (ml.load_online_endpoint, online_endpoint.ManagedOnlineEndpointSchema),
        "kubernetesOnlineEndpoint": (ml.load_online_endpoint, online_endpoint.KubernetesOnlineEndpointSchema),
        "managedOnlineDeployment": (ml.load_online_deployment, online_deployment.ManagedOnlineDeploymentSchema),
        "kubernetesOnlineDeployment": (
            ml.load_online_deployment,
            online_deployment.KubernetesOnlineDeploymentSchema,
        ),
        "batchEndpoint": (ml.load_batch_endpoint, BatchEndpointSchema),
        "batchDeployment": (ml.load_batch_deployment, BatchDeploymentSchema),
        "modelBatchDeployment": (load_model_batch_deployment, ModelBatchDeploymentSchema),
        "environment": (ml.load_environment, schemas.EnvironmentSchema),
        "model": (ml.load_model, schemas.ModelSchema),
        "data": (ml.load_data, schemas.DataSchema),
        "amlCompute": (ml.load_compute, AmlComputeSchema),
        "commandJob": (ml.load_job, schemas.CommandJobSchema),
        "commandComponent": (ml.load_component, CommandComponentSchema),
        "monitorSchedule": (load_schedule, MonitorScheduleSchema),
    }


def _validated(schema: Any, given: Mapping[str, Any]) -> Any:
    """Return marshmallow's errors by field."""
    return schema.validate({name: value for name, value in given.items() if name != "$schema"})


def _complaints(said: Any, schema: Any) -> Iterator[Complaint]:
    for place, messages in _by_place((), said):
        if "Unknown field." in messages:
            yield Complaint(place, "Unknown field.", unknown=True, known=_known(schema, place[:-1]))
        else:
            yield Complaint(place, " Or: ".join(dict.fromkeys(messages)))


def _by_place(place: tuple[str | int, ...], said: Any) -> Iterator[tuple[tuple[str | int, ...], list[str]]]:
    """Yield the leaves of marshmallow's errors; for a field with several allowed forms, those of the closest form."""
    if isinstance(said, dict):
        for name, inner in said.items():
            marks = ("_schema", "value", "key", None)  # the middle two for a mapping with arbitrary keys
            yield from _by_place(place if name in marks else (*place, name), inner)
        return
    if not isinstance(said, list):
        yield place, [str(said)]
        return
    each = [list(_by_place(place, inner)) for inner in said]
    inside = [leaves for leaves in each if any(len(where) > len(place) for where, _ in leaves)] or each
    fewest = min(map(len, inside), default=0)
    together: dict[tuple[str | int, ...], list[str]] = {}
    for where, messages in (leaf for leaves in inside if len(leaves) == fewest for leaf in leaves):
        together.setdefault(where, []).extend(messages)
    yield from together.items()


def _known(schema: Any, place: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the fields of all schemas that are allowed there."""
    level = [schema]
    for step in place:
        level = [inner for one in level for inner in _below(one, step)]
    fields = (getattr(one, "fields", {}) for one in level)
    return tuple({name for some in fields for name, field in some.items() if not field.dump_only})


def _below(one: Any, step: str | int) -> Iterator[Any]:
    """Yield what a schema allows below a key, or below any key of a mapping."""
    if hasattr(one, "value_field"):
        yield from _inside(one.value_field)
    elif step in one.fields:
        yield from _inside(one.fields[step])


def _inside(field: Any) -> Iterator[Any]:
    """Yield the schemas and mappings that a field may hold."""
    if hasattr(field, "union_fields"):
        for one in field.union_fields:
            yield from _inside(one)
    elif hasattr(field, "schema"):
        yield field.schema
    elif getattr(field, "value_field", None) is not None:
        yield field
