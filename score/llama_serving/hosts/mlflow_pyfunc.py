"""The MLflow model. The only file that imports mlflow."""

import json
import logging
import math
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.environment_variables import (
    _MLFLOW_IS_IN_SERVING_ENVIRONMENT,
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
    MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import AnyType, Array, DataType, Object, ParamSchema, ParamSpec, Property

from llama_serving.batch import table
from llama_serving.contract import azure, openai, protocol, rows
from llama_serving.contract import mlflow as protocol_mlflow
from llama_serving.contract.adapter import events_of
from llama_serving.contract.request import Parameters, Request
from llama_serving.contract.rows import RowLocation
from llama_serving.contract.strict_json import check_value, present, too_deep
from llama_serving.errors import BadRequest, ServingError
from llama_serving.faults import as_serving_error, log_to_stderr
from llama_serving.hosts import mlflow_thread_pool
from llama_serving.model_files import ARTIFACT, ModelFiles
from llama_serving.service import fingerprint
from llama_serving.service.collection import configuration as collection
from llama_serving.service.collection.caller import Caller
from llama_serving.service.service import Service
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

PACKAGE: Final = Path(__file__).parents[1]
REQUIREMENTS: Final = (
    "mlflow", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "jsonschema",
    "llguidance", "numpy", "pandas", "PyYAML",
)  # fmt: skip
WHERE_INSTALLED: Final = ("detect-secrets",)
"""What a served model may use, recorded if the packaging Python has it: for guards of the type `secrets`."""
EXAMPLE: Final = {
    "input_string": ["Develop a Python function to sort a list of integers in ascending order"],
    "parameters": {"return_full_text": False, "do_sample": True},
}
"""The model card's example, as MLflow's `inputs`."""

_BODIES: Final = frozenset(("input_data", "messages", "prompt", *protocol_mlflow.KEYS))
"""Keys that make an object a whole body instead of a value of `inputs`."""

SERVER: Final = "mlflow.pyfunc.scoring_server.app"
"""MLflow's server loads the model while it imports this."""
MARGIN_S: Final = 2.0
"""Seconds between our deadline and the server's, for the response."""

_TYPES: Final = {int: "long", bool: "boolean", float: "double", tuple[str, ...]: "string"}
PARAMS: Final[Mapping[str, str]] = {
    name: _TYPES[get_args(hint)[0]]
    for name, hint in get_type_hints(Parameters).items()
    if get_args(hint)[0] in _TYPES
}
"""Parameters allowed in top-level `params`; MLflow drops all others before the model sees them. (Its schemas have no object of
any keys, such as `logit_bias`.)"""
OBJECTS: Final[Mapping[str, tuple[Object, Mapping[str, str]]]] = {
    "response_format": (
        Object([Property("type", DataType.string), Property("json_schema", AnyType(), required=False)]),
        {"type": "text"},
    ),
    "structured_outputs": (
        Object(
            [
                Property("json", AnyType(), required=False),
                Property("json_object", DataType.boolean, required=False),
                Property("regex", DataType.string, required=False),
                Property("choice", Array(DataType.string), required=False),
                Property("grammar", DataType.string, required=False),
            ]
        ),
        {},
    ),
}
"""Those that are objects. MLflow gives a model the value at the end, which asks for nothing, where the client gave none."""


_services: dict[tuple[str, Settings], Service] = {}
"""Services loaded in this process. Spark loads the model again in each task (MLflow only caches models that it sent to
executors itself), and so does a notebook each time a cell runs; weights and engine would be there several times."""
_loading: Final = threading.Lock()
"""Held while a service is looked up or loaded, so that it is loaded once."""


class ServingException(MlflowException):  # type: ignore[misc]  # mlflow is untyped
    """A `ServingError` as MLflow's exception: MLflow's server takes status and body from it."""

    def __init__(self, error: ServingError) -> None:
        super().__init__(error.message)
        self.error = error
        self.openai = False
        self.request_id = uuid.uuid4().hex

    def serialize_as_json(self) -> str:
        """Return our own error body. MLflow's would contain the input, and so the prompt, in `message`."""
        return json.dumps(self.error.body(self.request_id, openai=self.openai))

    def get_http_status_code(self) -> int:
        """Return the status of the error."""
        return self.error.status


class LlamaModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is untyped
    """Serves `/invocations` of `mlflow models serve`, and `predict` in a program.

    The methods have no type hints: MLflow would read them as the model's signature.
    """

    _skip_type_hint_validation = True  # MLflow would warn about missing hints at every import

    def __init__(self) -> None:
        self._service: Service | None = None

    def load_context(self, context: Any) -> None:
        """Start the engine on the packaged checkpoint.

        Raises:
            SetupError: the files or settings cannot be used.
        """
        log_to_stderr()
        settings = Settings.from_environment()
        if settings.api_keys:
            _log.warning("LLAMA_API_KEYS has no effect here: MLflow's server does not check keys")
        if settings.traces != "off":
            _log.warning("LLAMA_TRACES has no effect here: only our own server writes traces")
        if settings.named_keys is not None or settings.audit is not None:
            _log.warning("LLAMA_NAMED_KEYS and LLAMA_AUDIT have no effect here: only our own server has them")
        self._service = _service(ModelFiles.read(Path(context.artifacts[ARTIFACT])), settings)
        if SERVER in sys.modules:
            mlflow_thread_pool.widen(settings.max_num_seqs + settings.queue + 4)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return the response to one body, without MLflow's `predictions` around it, or the records of a table of rows.

        Args:
            context: unused.
            model_input: MLflow's form of `inputs`, `dataframe_*` or `instances`, or an OpenAI body. Outside of MLflow's server
                also a table with a column `row` (see `_cells`), as `mlflow.pyfunc.spark_udf` passes it.
            params: the top-level `params`, filtered by the model's schema.

        Raises:
            ServingException: with the status and body that every endpoint gives this error.
        """
        del context
        service = self._loaded()
        openai_body = False
        try:
            if _is_table(model_input):
                return table.records(service, _cells(model_input), _defaults(params))
            with service.admitted():
                request = _request(model_input, params)
                openai_body = request.openai
                generations = service.generate(
                    request, deadline=_deadline(service.settings), caller=Caller(uuid.uuid4().hex)
                )
                return protocol.answer(request, generations, service.variant.name)
        except Exception as error:
            raise _exception(error, openai=openai_body or _is_openai(model_input)) from None

    def predict_stream(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Stream the response to a body with one prompt.

        Yields:
            OpenAI's chunk objects for OpenAI bodies, `{"<sequence>": "piece"}` for all others, and `{"details": [...]}` at the
            end if details are requested.

        Raises:
            ServingException: as in `predict`, and for several prompts.
        """
        del context
        service = self._loaded()
        try:
            with service.admitted():
                request = _request(model_input, params)
                deltas = service.stream(
                    request, deadline=_deadline(service.settings), caller=Caller(uuid.uuid4().hex)
                )
                name = service.variant.name
                writer = openai.Chunks(request, name) if request.openai else azure.Events(request)
                yield from events_of(writer, deltas)
        except Exception as error:
            raise _exception(error, openai=_is_openai(model_input)) from None

    def _loaded(self) -> Service:
        if self._service is None:
            raise RuntimeError("load_context has not run: load the model with mlflow.pyfunc.load_model")
        return self._service


def _service(files: ModelFiles, settings: Settings) -> Service:
    """Return the service of a model, reusing a live one with the same files and settings."""
    key = (fingerprint.of(files)["digest"], settings)
    with _loading:
        if key in _services and not _services[key].engine.stats().alive:
            _services.pop(key).close()  # (a dead engine may still hold a GPU)
        if key not in _services:
            _services[key] = collection.started(settings, lambda: Service.start(files, settings))
        return _services[key]


def set_model() -> None:
    """Set the model, as a models-from-code file must."""
    mlflow.models.set_model(LlamaModel())


def save_model(path: Path, *, artifact: Path, metadata: Mapping[str, Any], size: int) -> None:
    """Write an MLflow model around `artifact`, a folder in the layout of `model_files`.

    Args:
        path: of the model; must not exist.
        artifact: copied without weights, which packaging links in afterwards.
        metadata: recorded in `MLmodel`.
        size: bytes of the weights that are not there yet.
    """
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(value=False)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(_entry()),
        code_paths=[str(PACKAGE)],
        artifacts={ARTIFACT: str(artifact)},
        signature=ModelSignature(params=_param_schema()),
        input_example=EXAMPLE,
        pip_requirements=_requirements(),
        metadata=dict(metadata),
    )
    _forget_this_machine(path, size)


def _requirements() -> list[str]:
    """Return what a served model needs, in the versions that are installed here."""
    found = {name: version(name) for name in REQUIREMENTS}
    for name in WHERE_INSTALLED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return [f"{name}=={number.partition('+')[0]}" for name, number in found.items()]


def _param_schema() -> ParamSchema:
    return ParamSchema(
        [
            *(ParamSpec(name, kind, None) for name, kind in PARAMS.items()),
            *(ParamSpec(name, kind, dict(nothing)) for name, (kind, nothing) in OBJECTS.items()),
        ]
    )


def _forget_this_machine(path: Path, size: int) -> None:
    """Remove this machine's paths from `MLmodel`, and add the weights to its size."""
    model = Model.load(str(path))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    flavor["artifacts"][ARTIFACT]["uri"] = flavor["artifacts"][ARTIFACT]["path"]
    model.model_size_bytes += size
    model.save(str(path / "MLmodel"))
    for leftover in path.rglob("__pycache__"):
        shutil.rmtree(leftover)


def _entry() -> Path:
    """Return the models-from-code file: beside the package in a checkout, inside it in a wheel."""
    beside, inside = PACKAGE.parent / "mlflow_model.py", PACKAGE / "entries" / "mlflow_model.py"
    return inside if inside.is_file() else beside


def _request(model_input: Any, params: Mapping[str, Any] | None) -> Request:
    given = _given(params)
    try:
        data = _body(model_input)
    except RecursionError:
        raise too_deep() from None
    if openai.speaks(data) and not protocol_mlflow.speaks(data):
        data = {**data, **given}
    elif given:
        data = {**data, "params": given}
    check_value(data)
    return protocol.parse(data) if "input_data" in data or openai.speaks(data) else protocol_mlflow.parse(data)


def _body(model_input: Any) -> dict[str, Any]:
    """Restore the JSON body that MLflow's parser has taken apart."""
    if isinstance(model_input, pd.DataFrame):
        return _frame(model_input)
    data = _plain(model_input)
    if not isinstance(data, dict):
        return {"inputs": data}
    named, data = data, dict(present(data))
    if _BODIES & (data or named).keys():  # (if all values are null, the names still identify the body)
        return data
    if set(data) == {"prefix", "suffix"} and isinstance(data["prefix"], list):
        rows = zip(data["prefix"], data["suffix"], strict=True)  # MLflow transposes `instances` into columns
        return {"inputs": {"columns": ["prefix", "suffix"], "data": [list(row) for row in rows]}}
    return {"inputs": data}


def _frame(frame: pd.DataFrame) -> dict[str, Any]:
    records = [
        {str(name): _plain(cell) for name, cell in record.items() if not _is_missing(cell)}
        for record in frame.to_dict(orient="records")
    ]
    if list(frame.columns) == ["input_string"] and all(records):
        rows = [[record["input_string"]] for record in records]
        return {"dataframe_split": {"columns": ["input_string"], "data": rows}}
    return {"dataframe_records": records}


def _is_table(model_input: Any) -> bool:
    """Return whether this is a table of batch rows; never on a server, where each body is one request."""
    return isinstance(model_input, pd.DataFrame) and "row" in model_input.columns and SERVER not in sys.modules


def _cells(frame: pd.DataFrame) -> list[table.Cell]:
    """Return the rows of a table. Column `row` has lines of JSONL, as text or bytes; `file` and `line` may give locations.

    Raises:
        BadRequest: there is another column, or a cell has another type.
    """
    unknown = [str(name) for name in frame.columns if name not in ("row", "file", "line")]
    if unknown:
        raise BadRequest(f"Beside `row` a table may have `file` and `line`, and not `{unknown[0]}`. Put what belongs to a row "
                         "into it, with Spark's to_json(struct(...)).", code="unknown_field")  # fmt: skip
    nothing = [None] * len(frame)
    columns = [frame[name] if name in frame.columns else nothing for name in ("file", "line", "row")]
    return [
        (
            RowLocation(None if _is_missing(file) else str(file), None if _is_missing(line) else int(line)),
            None if _is_missing(row) else _bytes(row),
        )
        for file, line, row in zip(*columns, strict=True)
    ]


def _bytes(row: Any) -> bytes:
    if isinstance(row, str):
        return row.encode(errors="surrogatepass")  # (not UTF-8, so it is refused later)
    if isinstance(row, (bytes, bytearray)):
        return bytes(row)
    raise BadRequest("The column `row` must have text or bytes: JSON, one row each.", code="invalid_type")


def _defaults(params: Mapping[str, Any] | None) -> Parameters:
    given = _given(params)
    return rows.defaults(given, "params")


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters that the client gave."""
    plain = {name: _plain(value) for name, value in (params or {}).items() if value is not None}
    return {name: value for name, value in plain.items() if name not in OBJECTS or value != OBJECTS[name][1]}


def _is_missing(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell))


def _plain(value: Any) -> Any:
    """Restore plain JSON: MLflow's parser makes numpy arrays of lists, and 0-d object arrays of objects."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _is_openai(model_input: Any) -> bool:
    return isinstance(model_input, dict) and openai.speaks(model_input)


def _exception(error: Exception, *, openai: bool) -> ServingException:
    exception = ServingException(as_serving_error(error))
    exception.openai = openai
    return exception


def _deadline(settings: Settings) -> float | None:
    """Return our deadline, which is before MLflow's timeout, since its thread would run on after that."""
    if settings.deadline_s is not None:
        return time.monotonic() + settings.deadline_s
    if os.environ.get(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name) != "true":
        return None
    return time.monotonic() + max(1.0, float(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()) - MARGIN_S)
