"""Log an evaluation to MLflow: a run with parameters, metrics and the folder's files."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.report.document import HTML, MARKDOWN, PLOTS
from llama_endpoints.evaluation.report.results import Result
from llama_serving.errors import SetupError

TRACKING_URI: Final = "MLFLOW_TRACKING_URI"
_LONGEST_PARAMETER: Final = 500
"""Characters; Azure ML's limit. MLflow's own is 6,000."""


def tracking_uri() -> str | None:
    """Return where runs are logged; None if nowhere."""
    return os.environ.get(TRACKING_URI) or None


def log(folder: EvaluationFolder, found: Sequence[Result]) -> str:
    """Log an evaluation to the server of `MLFLOW_TRACKING_URI`, and return the run's id. In a job of Azure ML, the job's run is used.

    Raises:
        SetupError: the server cannot be reached, or refuses.
    """
    import mlflow

    evaluation = folder.read_evaluation()
    model = evaluation.get("model") or {}
    name = f"{evaluation.get('task')} {model.get('variant') or model.get('name') or ''}".strip()
    try:
        with mlflow.start_run(run_name=name) as run:
            mlflow.log_params(dict(_parameters(evaluation)))
            mlflow.log_metrics(dict(_metrics(found)))
            for path in (folder.evaluation, folder.metrics, folder.samples, folder.scores):
                mlflow.log_artifact(str(path))
            for path in (folder.path / HTML, folder.path / MARKDOWN):
                mlflow.log_artifact(str(path))
            mlflow.log_artifacts(str(folder.path / PLOTS), PLOTS)
            return str(run.info.run_id)
    except Exception as error:
        said = (
            str(error).partition("\n")[0].replace(tracking_uri() or TRACKING_URI, TRACKING_URI)
        )  # (it may hold a password)
        raise SetupError(
            f"MLflow at {TRACKING_URI} does not take the evaluation: {said} The report is in {folder.path}."
        ) from error


def metric_name(name: str) -> str:
    """Return a metric's name in MLflow's characters: `pass@1 (cpp)` is `pass_at_1/cpp`."""
    grouped = re.sub(r" \((.*)\)$", r"/\1", name).replace("@", "_at_")
    return re.sub(r"[^\w\-./: ]", "_", grouped, flags=re.ASCII)


def _metrics(found: Sequence[Result]) -> Iterator[tuple[str, float]]:
    for one in found:
        if one.measured.problems:
            name = metric_name(one.name)
            yield name, one.measured.value
            yield f"{name}.low", one.measured.low
            yield f"{name}.high", one.measured.high


def _parameters(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in evaluation.items():
        inside = value.items() if isinstance(value, Mapping) else ()
        for inner, one in inside:
            yield f"{key}.{inner}", str(one)[:_LONGEST_PARAMETER]
        if not isinstance(value, Mapping):
            yield key, str(value)[:_LONGEST_PARAMETER]
