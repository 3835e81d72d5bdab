"""What Azure ML reads out of our files, by its own client."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from llama_endpoints.azure.credentials import NOT_INSTALLED
from llama_endpoints.azure.limits import LOGGING_LEVELS, OUTPUT_ACTIONS
from llama_serving.errors import SetupError

_LARGEST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class BatchDeployment:
    """A batch deployment of type `model`, with Azure's defaults where its file says nothing.

    Attributes:
        name: of the deployment.
        script: the scoring script.
        environment: variables of each process.
        mini_batch_size: files that `run` is given at once.
        processes: on an instance.
        instances: that the job asks for.
        output_action: `append_row` or `summary_only`.
        output_file_name: with `append_row`.
        timeout_s: of one call of `run`.
        max_retries: of a mini-batch, after its first try.
        error_threshold: files that may fail; -1 is any number.
        logging_level: what is logged.
    """

    name: str
    script: Path
    environment: Mapping[str, str] = field(repr=False)  # (a key may be among them)
    mini_batch_size: int
    processes: int
    instances: int
    output_action: str
    output_file_name: str
    timeout_s: int
    max_retries: int
    error_threshold: int
    logging_level: str

    @property
    def runs_our_driver(self) -> bool:
        """Whether the scoring script is ours, which needs a model that we packaged; others know their own models."""
        return (self.script.parent / "llama_serving" / "batch" / "driver.py").is_file()

    @classmethod
    def read(cls, path: Path) -> "BatchDeployment":
        """A deployment's file.

        Raises:
            SetupError: azure-ai-ml is not there, it refuses the file, or a value is out of its range.
        """
        given = _load(path)
        settings, retry = given.settings, given.settings.retry_settings
        code = given.code_configuration
        if code is None or not code.scoring_script:
            _refuse(path, "it has no code_configuration with code and scoring_script")
        script = (path.parent / code.code / code.scoring_script).resolve()
        if not script.is_file():
            _refuse(path, f"its scoring script {script} is not there")
        return cls(
            name=given.name,
            script=script,
            environment=_variables(path, given),
            mini_batch_size=_number(path, settings, "mini_batch_size", 10, least=1),
            processes=_number(path, settings, "max_concurrency_per_instance", 1, least=1),
            instances=_number(path, given.resources, "instance_count", 1, least=1),
            output_action=_one_of(path, settings, "output_action", OUTPUT_ACTIONS, "append_row"),
            output_file_name=_file_name(path, settings.output_file_name),
            timeout_s=_number(path, retry, "timeout", 30, least=1),
            max_retries=_number(path, retry, "max_retries", 3, least=0),
            error_threshold=_number(path, settings, "error_threshold", -1, least=-1),
            logging_level=_one_of(path, settings, "logging_level", LOGGING_LEVELS, "info"),
        )


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something that azure-ai-ml refuses.

    Attributes:
        place: keys and indices of what is at fault; empty where it does not say.
        message: its own words.
        unknown: whether it is a field that it does not know.
        known: the fields that it knows there, where one is unknown.
    """

    place: tuple[str | int, ...]
    message: str
    unknown: bool = False
    known: tuple[str, ...] = ()


@contextmanager
def quiet() -> Iterator[None]:
    """Azure's client without its warnings. It is written for marshmallow 3, which warns that 4 is near; and it logs which of its classes are experimental."""
    logs = [logging.getLogger(name) for name in ("azure", "azure.ai.ml")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def complaints(kind: str, path: Path) -> list[Complaint]:
    """What its own loader says of a file of a kind, by the name of its `$schema`.

    Raises:
        SetupError: azure-ai-ml is not there.
    """
    with quiet():
        try:
            load, schema_of = _loaders()[kind]
        except ImportError as error:
            raise SetupError(f"{NOT_INSTALLED} ({error})") from error
    with quiet():  # (again: while it is imported it makes its log talk)
        schema = schema_of(context={"base_path": path.parent})
        try:
            return list(_complaints(_said(kind, path, load, schema), schema))
        except Exception as error:  # (for files of other shapes it has no error of its own)
            return [Complaint((), f"{type(error).__name__}: {error}")]


def _said(kind: str, path: Path, load: Callable[..., Any], schema: Any) -> Any:
    """By field; nothing where the file is taken."""
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
        # Of a job its loader keeps a text alone, so its schema is asked again.
        return said if isinstance(said, dict) else _validated(schema, given) or {"_schema": [str(error)]}
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
        ),
        ("name",),
    ),
    "commandJob": (),
}
"""Fields that a file may leave to the command line of `az ml`."""
_LATER: Final = "given-later"
_DEFAULT_TYPE: Final = "managed"
_TYPES: Final = {
    "managedOnlineDeployment": "managed",
    "kubernetesOnlineDeployment": "kubernetes",
    "amlCompute": "amlcompute",
    "commandJob": "command",
}


@cache
def _loaders() -> dict[str, tuple[Callable[..., Any], Any]]:
    """Kind -> what loads it, and its schema."""
    from azure.ai import ml
    from azure.ai.ml import _schema as schemas
    from azure.ai.ml._schema._deployment.batch.batch_deployment import BatchDeploymentSchema
    from azure.ai.ml._schema._deployment.batch.model_batch_deployment import ModelBatchDeploymentSchema
    from azure.ai.ml._schema._deployment.online import online_deployment
    from azure.ai.ml._schema._endpoint.batch.batch_endpoint import BatchEndpointSchema
    from azure.ai.ml._schema._endpoint.online import online_endpoint
    from azure.ai.ml._schema.compute.aml_compute import AmlComputeSchema
    from azure.ai.ml.entities._load_functions import load_model_batch_deployment

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
    }


def _validated(schema: Any, given: Mapping[str, Any]) -> Any:
    """What marshmallow says, by field."""
    return schema.validate({name: value for name, value in given.items() if name != "$schema"})


def _complaints(said: Any, schema: Any) -> Iterator[Complaint]:
    for place, messages in _by_place((), said):
        if "Unknown field." in messages:
            yield Complaint(place, "Unknown field.", unknown=True, known=_known(schema, place[:-1]))
        else:
            yield Complaint(place, " Or: ".join(dict.fromkeys(messages)))


def _by_place(place: tuple[str | int, ...], said: Any) -> Iterator[tuple[tuple[str | int, ...], list[str]]]:
    """Leaves of what marshmallow says; of a field that may be one of several things, the thing that came nearest."""
    if isinstance(said, dict):
        for name, inner in said.items():
            marks = ("_schema", "value", "key", None)  # (the middle two: of a mapping with any keys)
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
    """The fields of all schemas that may hold there."""
    level = [schema]
    for step in place:
        level = [inner for one in level for inner in _below(one, step)]
    fields = (getattr(one, "fields", {}) for one in level)
    return tuple({name for some in fields for name, field in some.items() if not field.dump_only})


def _below(one: Any, step: str | int) -> Iterator[Any]:
    """What may stand behind a key of a schema, or of a mapping with any keys."""
    if hasattr(one, "value_field"):
        yield from _inside(one.value_field)
    elif step in one.fields:
        yield from _inside(one.fields[step])


def _inside(field: Any) -> Iterator[Any]:
    """Schemas of what a field may hold, and mappings with any keys."""
    if hasattr(field, "union_fields"):
        for one in field.union_fields:
            yield from _inside(one)
    elif hasattr(field, "schema"):
        yield field.schema
    elif getattr(field, "value_field", None) is not None:
        yield field


def _load(path: Path) -> Any:
    try:
        with quiet():
            from azure.ai.ml.entities._load_functions import load_model_batch_deployment
            from azure.ai.ml.exceptions import ValidationException
            from marshmallow import ValidationError
    except ImportError:
        raise SetupError(NOT_INSTALLED) from None
    if not path.is_file():
        raise SetupError(
            f"{path} is no file. Name a batch deployment's, such as yaml/batch/codellama-7b-hf.yml."
        )
    try:
        with quiet():
            given = load_model_batch_deployment(path)
    except ValidationError as error:
        _refuse(path, f"azure-ai-ml says: {'; '.join(_messages(error))}")
    except (ValidationException, AttributeError, TypeError) as error:  # (the last two: a file of another shape)
        _refuse(path, f"azure-ai-ml does not take it: {error}")
    if given.settings is None:
        _refuse(path, "it has no settings")
    return given


def _messages(error: Exception) -> Iterator[str]:
    """`settings.mini_batch_size: Not a valid integer.`; azure-ai-ml wraps what marshmallow has said in advertisements."""
    said: Any = getattr(error.__cause__, "messages", None) or getattr(error, "messages", str(error))
    yield from _flat("", said)


def _flat(place: str, said: Any) -> Iterator[str]:
    if isinstance(said, dict):
        for name, inner in said.items():
            yield from _flat(f"{place}.{name}" if place else str(name), inner)
    elif isinstance(said, list):
        for inner in said:
            yield from _flat(place, inner)
    else:
        yield f"{place}: {said}"


def _refuse(path: Path, why: str) -> NoReturn:
    raise SetupError(f"{path} can't be used as a batch deployment of type model: {why}.")


def _variables(path: Path, given: Any) -> dict[str, str]:
    if given.environment_variables:
        _refuse(path, "its environment_variables stand beside settings, from where Azure's client does not send them. Move "
                      "them into settings")  # fmt: skip
    found = given.settings.environment_variables or {}
    empty = [name for name, value in found.items() if value is None]
    if empty:
        _refuse(path, f"its variable {empty[0]} has no value")
    return {str(name): str(value) for name, value in found.items()}  # (what YAML takes for a number, too)


def _number(path: Path, given: Any, name: str, default: int, *, least: int) -> int:
    # (azure-ai-ml gives resources as an object that is a dict as well, and retry settings as none at all)
    value = getattr(given, name, None)
    if value is None:
        return default
    if not isinstance(value, int) or not least <= value <= _LARGEST:
        _refuse(path, f"{name} must be an integer from {least} to {_LARGEST}, not {value}")
    return value


def _one_of(path: Path, given: Any, name: str, allowed: tuple[str, ...], default: str) -> str:
    value = getattr(given, name, None) or default
    if value not in allowed:
        _refuse(path, f"{name} must be one of {', '.join(allowed)}, not {value}")
    return str(value)


def _file_name(path: Path, value: str | None) -> str:
    name = value or "predictions.csv"
    if Path(name).name != name:
        _refuse(path, f"output_file_name must be a file's name, not {name}")
    return name
