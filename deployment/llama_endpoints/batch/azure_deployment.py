"""Read a batch deployment's file as Azure ML does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from llama_endpoints.azure.credentials import NOT_INSTALLED
from llama_endpoints.azure.limits import LOGGING_LEVELS, OUTPUT_ACTIONS
from llama_endpoints.azure.sdk import quiet
from llama_serving.errors import SetupError

_LARGEST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class BatchDeployment:
    """A batch deployment of type `model`, with Azure's defaults for missing fields.

    Attributes:
        name: name of the deployment.
        script: the scoring script.
        environment: environment variables of each process.
        mini_batch_size: files per call of `run`.
        processes: processes per instance.
        instances: instances that the job requests.
        output_action: `append_row` or `summary_only`.
        output_file_name: output file for `append_row`.
        timeout_s: time limit of a call of `run`.
        max_retries: retries of a mini-batch.
        error_threshold: files that may fail; -1 is no limit.
        logging_level: level of the log.
    """

    name: str
    script: Path
    environment: Mapping[str, str] = field(repr=False)  # may contain a key
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
        """Whether the scoring script is ours, which needs a model packaged by us."""
        return (self.script.parent / "llama_serving" / "hosts" / "azureml_batch.py").is_file()

    @classmethod
    def read(cls, path: Path) -> "BatchDeployment":
        """Read a deployment's file.

        Raises:
            SetupError: azure-ai-ml is not installed or refuses the file, or a value is out of range.
        """
        given = _load(path)
        settings, retry = given.settings, given.settings.retry_settings
        code = given.code_configuration
        if code is None or not code.scoring_script:
            _refuse(path, "it has no code_configuration with code and scoring_script")
        script = (path.parent / code.code / code.scoring_script).resolve()
        if not script.is_file():
            _refuse(path, f"its scoring script {script} does not exist")
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
            f"{path} is not a file. Pass a batch deployment's file, such as yaml/batch/codellama-7b-hf.yml."
        )
    try:
        with quiet():
            given = load_model_batch_deployment(path)
    except ValidationError as error:
        _refuse(path, f"azure-ai-ml says: {'; '.join(_messages(error))}")
    except (ValidationException, AttributeError, TypeError) as error:  # the last two on unexpected shapes
        _refuse(path, f"azure-ai-ml does not accept it: {error}")
    if given.settings is None:
        _refuse(path, "it has no settings")
    return given


def _messages(error: Exception) -> Iterator[str]:
    """Yield lines such as `settings.mini_batch_size: Not a valid integer.`, without the text azure-ai-ml wraps around them."""
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
    raise SetupError(f"{path} cannot be used as a batch deployment of type model: {why}.")


def _variables(path: Path, given: Any) -> dict[str, str]:
    if given.environment_variables:
        _refuse(path, "its environment_variables are beside settings, where azure-ai-ml ignores them. Move "
               "them into settings")  # fmt: skip
    found = given.settings.environment_variables or {}
    empty = [name for name, value in found.items() if value is None]
    if empty:
        _refuse(path, f"its variable {empty[0]} has no value")
    return {str(name): str(value) for name, value in found.items()}  # also YAML numbers


def _number(path: Path, given: Any, name: str, default: int, *, least: int) -> int:
    # azure-ai-ml returns resources as an object that is also a dict, and missing retry settings as None.
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
        _refuse(path, f"output_file_name must be a file name, not {name}")
    return name
