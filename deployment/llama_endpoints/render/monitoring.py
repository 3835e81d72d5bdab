"""What a deployment that collects prompts and answers has beside the others: its data collector, and a schedule that monitors it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.azure.limits import schema
from llama_endpoints.render.spec import Notes, RenderedFile, Site, slug
from llama_serving.catalog import ModelVariant

FOLDER: Final = "yaml/monitoring"
INPUTS: Final = "model_inputs"
OUTPUTS: Final = "model_outputs"
_LEAVES: Final = "A model of Azure OpenAI judges prompts and answers: they leave the workspace for it."
_WINDOW: Final = {"lookback_window_size": "P1D", "lookback_window_offset": "P0D"}
_BEFORE: Final = {"lookback_window_size": "P7D", "lookback_window_offset": "P1D"}


@dataclass(frozen=True, slots=True)
class Collection:
    """What is collected and monitored.

    Attributes:
        share: of the requests.
        connection: resource id of the workspace's connection to Azure OpenAI, whose model judges texts; None judges none.
        judge: name of that model's deployment.
    """

    share: float
    connection: str | None = None
    judge: str | None = None


def fields(collection: Collection | None) -> dict[str, Any]:
    """Return the deployment's fields; none if it collects nothing."""
    if collection is None:
        return {}
    enabled = {"enabled": "true"}
    return {"data_collector": {"collections": {INPUTS: enabled, OUTPUTS: dict(enabled)}, "sampling_rate": 1.0}}


def variables(collection: Collection | None) -> dict[str, str]:
    """Return the deployment's variables; none if it collects nothing."""
    if collection is None:
        return {}
    return {"LLAMA_COLLECT": "azureml", "LLAMA_COLLECT_RATE": f"{collection.share:.9f}".rstrip("0").rstrip(".")}


def notes(collection: Collection | None) -> Notes:
    """Return the notes to these."""
    if collection is None:
        return {}
    return {
        "environment_variables.LLAMA_COLLECT": "Prompts and answers are stored, without keys and e-mail addresses. Tell your users.",
        "data_collector.sampling_rate": "LLAMA_COLLECT_RATE samples. Azure's own sampling would take other requests of the inputs "
        "than of the outputs.",
        "app_insights_enabled": "It would store requests as they are.",
    }  # fmt: skip


def schedule(variant: ModelVariant, site: Site, collection: Collection) -> RenderedFile:
    """Return the schedule that monitors what a deployment collects."""
    name = slug(variant)
    assets = {side: f"azureml:{site.online}-{name}-{side}:1" for side in (INPUTS, OUTPUTS)}
    judged = {} if collection.connection is None else {"texts": _texts(assets, collection)}
    return RenderedFile(
        {
            "$schema": schema("monitorSchedule"),
            "name": f"{site.online}-{name}-monitor",
            "description": f"What {variant.name} is asked and answers.",
            "trigger": {
                "type": "recurrence",
                "frequency": "day",
                "interval": 1,
                "schedule": {"hours": 3, "minutes": 15},
            },
            "create_monitor": {
                "compute": {"instance_type": "standard_e4s_v3", "runtime_version": "3.4"},
                "monitoring_target": {
                    "ml_task": "QuestionAnswering",
                    "endpoint_deployment_id": f"azureml:{site.online}:{name}",
                },
                "monitoring_signals": {"lengths": _lengths(assets[OUTPUTS]), **judged},
            },
        },
        {
            "name": f"az ml schedule create --file {FOLDER}/{name}.yml, once the deployment has collected something.",
            "create_monitor.monitoring_signals.lengths": "Compares a day with the week before it.",
            **({"create_monitor.monitoring_signals.texts": _LEAVES} if judged else {}),
        },
    )  # fmt: skip


def _lengths(outputs: str) -> dict[str, Any]:
    def data(window: Mapping[str, str]) -> dict[str, Any]:
        return {
            "input_data": {"type": "uri_folder", "path": outputs},
            "data_context": OUTPUTS,
            "data_window": dict(window),
        }

    return {
        "type": "data_drift",
        "production_data": data(_WINDOW),
        "reference_data": data(_BEFORE),
        "features": ["prompt_tokens", "completion_tokens", "finish_reason"],
        "metric_thresholds": {
            "numerical": {"normalized_wasserstein_distance": 0.1},
            "categorical": {"jensen_shannon_distance": 0.1},
        },
    }


def _texts(assets: Mapping[str, str], collection: Collection) -> dict[str, Any]:
    def data(side: str, **columns: str) -> dict[str, Any]:
        return {
            "input_data": {"type": "uri_folder", "path": assets[side]},
            "data_column_names": columns,
            "data_window": dict(_WINDOW),
        }

    named = ("coherence", "fluency", "relevance", "groundedness")
    return {
        "type": "generation_safety_quality",
        "connection_id": collection.connection,
        "production_data": [
            data(INPUTS, prompt_column="prompt", context_column="context"),
            data(OUTPUTS, completion_column="completion"),
        ],
        "metric_thresholds": {
            name: {f"aggregated_{name}_pass_rate": 0.7, f"acceptable_{name}_score_per_instance": 3}
            for name in named
        },
        "properties": {"aoai_deployment_name": collection.judge},
        "sampling_rate": 1.0,
    }
