"""The Azure ML files under `yaml/` and `environments/`: Azure's own loaders, and what those let pass. (Images: test_images.)

azure-ai-ml checks names and types. It accepts a timeout that Azure refuses, a script that does not exist and
an environment that nobody has made; those are checked here.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment.render import MODELS, files
from deployment.sizing import Precision, Runner, Workload, fit
from deployment.skus import SKUS, Offer, Sku
from llama_serving.catalog import CATALOG, ModelVariant
from llama_serving.settings import Settings

# azure-ai-ml is written for marshmallow 3, which warns at every schema that 4 is near.
pytestmark = pytest.mark.filterwarnings("ignore::marshmallow.warnings.Marshmallow4Warning")

ROOT = Path(__file__).resolve().parents[2]
SCORE = ROOT / "score"
SCHEMAS = "https://azuremlschemas.azureedge.net/latest/"

MADE = {name: text for name, text in files().items() if name.endswith(".yml")}
EXPECTED = {
    name: Path(yaml.safe_load(text)["$schema"]).name.removesuffix(".schema.json") for name, text in MADE.items()
} | {
    "environments/package/environment.yml": "environment",
    "environments/vllm/environment.yml": "environment",
    "yaml/package/compute.yml": "amlCompute",
}
JOB = "yaml/package/job.yml"
"""Each of its runs has a name of its own; test_package_job.py has its tests."""
SLOWEST_READ = 25e6
"""Bytes a second: what the probes have to sit out at the worst."""


def found() -> Iterator[Path]:
    yield from (ROOT / "yaml").rglob("*.y*ml")
    yield from (ROOT / "environments").rglob("environment.y*ml")


def of_schema(schema: str) -> list[str]:
    return [path for path, name in EXPECTED.items() if name == schema]


def spec(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return loaded


@cache
def loaders() -> dict[str, Callable[..., Any]]:
    """Imported late: a module-level import would run before the filter above."""
    from azure.ai import ml
    from azure.ai.ml.entities._load_functions import load_model_batch_deployment

    return {
        "amlCompute": ml.load_compute,
        "batchEndpoint": ml.load_batch_endpoint,
        "data": ml.load_data,
        "kubernetesOnlineDeployment": ml.load_online_deployment,
        "kubernetesOnlineEndpoint": ml.load_online_endpoint,
        "environment": ml.load_environment,
        "managedOnlineDeployment": ml.load_online_deployment,
        "managedOnlineEndpoint": ml.load_online_endpoint,
        "model": ml.load_model,
        "modelBatchDeployment": load_model_batch_deployment,
    }


def test_every_file_is_known() -> None:
    assert sorted(path.relative_to(ROOT).as_posix() for path in found()) == sorted([*EXPECTED, JOB])


@pytest.mark.parametrize(("path", "schema"), EXPECTED.items())
def test_azure_loads_it(path: str, schema: str) -> None:
    assert spec(path)["$schema"] == f"{SCHEMAS}{schema}.schema.json"
    entity = loaders()[schema](source=ROOT / path)
    assert entity.name == spec(path)["name"]


@pytest.mark.parametrize("path", EXPECTED)
def test_names_and_versions(path: str) -> None:
    name = spec(path)["name"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", name), "3 to 32 letters, digits and hyphens"
    assert isinstance(spec(path).get("version", ""), str), "a version without quotes is a number"
    assert ":latest" not in (ROOT / path).read_text(encoding="utf-8")


# --- what deployments refer to --------------------------------------------------------------------

MANAGED = of_schema("managedOnlineDeployment")
ONLINE = MANAGED + of_schema("kubernetesOnlineDeployment")
BATCH = of_schema("modelBatchDeployment")


@pytest.mark.parametrize("path", ONLINE + BATCH)
def test_scoring_script(path: str) -> None:
    code = spec(path)["code_configuration"]
    script = (ROOT / path).parent / code["code"] / code["scoring_script"]
    assert script.resolve().parent == SCORE
    assert {"init", "run"} <= names_in(script)


def names_in(script: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    names = set()
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", ONLINE + BATCH)
@pytest.mark.parametrize(("key", "schema"), [("environment", "environment"), ("model", "model")])
def test_assets_resolve(path: str, key: str, schema: str) -> None:
    made = {f"azureml:{asset['name']}:{asset['version']}" for asset in map(spec, of_schema(schema))}
    assert spec(path)[key] in made


def kind(path: str) -> str:
    """`online`, `kubernetes` or `batch`."""
    return Path(path).parent.name


@pytest.mark.parametrize("path", ONLINE + BATCH)
def test_environment_and_endpoint_are_of_its_kind(path: str) -> None:
    image = "batch" if kind(path) == "batch" else "online"
    assert spec(path)["environment"].split(":")[1] == spec(f"environments/{image}/environment.yml")["name"]
    assert spec(path)["endpoint_name"] == spec(f"yaml/{kind(path)}/endpoint.yml")["name"]


def variant(path: str) -> ModelVariant:
    """The model of a deployment."""
    name = spec(path)["model"].split(":")[1]
    return CATALOG[spec(f"yaml/models/{name}.yml")["properties"]["variant"]]


def machine(path: str) -> Sku:
    if kind(path) == "batch":
        cluster = spec(path)["compute"].removeprefix("azureml:")
        return SKUS[spec(f"yaml/batch/compute/{cluster}.yml")["size"]]
    return SKUS[spec(path)["instance_type"]]


def context(path: str) -> int:
    given = spec(path)
    variables = given.get("environment_variables") or given["settings"]["environment_variables"]
    return int(variables["LLAMA_CONTEXT"])


def test_every_model_is_deployed_in_each_way() -> None:
    assert len(MODELS) == 18
    for paths in (MANAGED, BATCH, of_schema("kubernetesOnlineDeployment")):
        assert {variant(path).name for path in paths} == {row.name for row in MODELS}


@pytest.mark.parametrize("path", MANAGED + BATCH)
def test_the_machine_holds_the_model_and_can_be_had(path: str) -> None:
    sku = machine(path)
    assert fit(variant(path), Workload(context(path)), Precision.BF16, sku, Runner.PIPELINE).fits
    assert sku.retired is None
    assert sku.is_offered(Offer.BATCH if kind(path) == "batch" else Offer.MANAGED_ONLINE)


@pytest.mark.parametrize("path", of_schema("kubernetesOnlineDeployment"))
def test_the_cluster_gives_as_many_gpus_as_the_model_needs(path: str) -> None:
    resources = spec(path)["resources"]
    gpus = int(resources["limits"]["nvidia.com/gpu"])
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"]
    assert gpus == (2 if "70b" in path else 1)
    assert int(resources["limits"]["memory"].removesuffix("Gi")) * 2**30 > variant(path).shape.weight_bytes()


# --- online: times and numbers that have to agree -------------------------------------------------


@pytest.mark.parametrize("path", ONLINE)
def test_our_deadline_comes_before_the_fronts(path: str) -> None:
    timeout_ms = spec(path)["request_settings"]["request_timeout_ms"]
    assert 0 < timeout_ms <= (180_000 if path in MANAGED else 150_000)
    assert float(spec(path)["environment_variables"]["LLAMA_DEADLINE_S"]) == timeout_ms / 1000 - 2
    assert gunicorn(path)["--graceful-timeout"] >= timeout_ms / 1000


@pytest.mark.parametrize("path", ONLINE)
def test_front_queue_and_threads_agree(path: str) -> None:
    variables = spec(path)["environment_variables"]
    inside = int(variables["LLAMA_MAX_NUM_SEQS"]) + int(variables["LLAMA_QUEUE"])
    assert 2 * spec(path)["request_settings"]["max_concurrent_requests_per_instance"] == inside
    assert gunicorn(path)["--threads"] == inside + 4


def gunicorn(path: str) -> dict[str, int]:
    words = spec(path)["environment_variables"]["GUNICORN_CMD_ARGS"].split()
    return {flag: int(value) for flag, value in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize("probe", ["liveness_probe", "readiness_probe"])
@pytest.mark.parametrize("path", ONLINE)
def test_probes_sit_out_the_loading(path: str, probe: str) -> None:
    numbers = spec(path)[probe]
    assert numbers.keys() == {"initial_delay", "period", "timeout", "success_threshold", "failure_threshold"}
    assert all(type(number) is int and number > 0 for number in numbers.values())
    patience = numbers["initial_delay"] + numbers["period"] * numbers["failure_threshold"]
    assert patience >= variant(path).shape.weight_bytes() / SLOWEST_READ
    assert (
        int(spec(path)["environment_variables"]["WORKER_TIMEOUT"])
        >= variant(path).shape.weight_bytes() / SLOWEST_READ
    )


@pytest.mark.parametrize("path", ONLINE)
def test_one_copy_of_the_weights_and_nothing_kept(path: str) -> None:
    variables = spec(path)["environment_variables"]
    assert (variables["WORKER_COUNT"], variables["WORKER_PRELOAD"]) == ("1", "false")
    assert variables["APP_INSIGHTS_LOG_RESPONSE_ENABLED"] == "false"
    assert spec(path)["app_insights_enabled"] is False
    assert "data_collector" not in spec(path)


@pytest.mark.parametrize("path", ONLINE + BATCH)
def test_our_settings_are_ones_we_read(path: str) -> None:
    variables = spec(path).get("environment_variables") or spec(path)["settings"]["environment_variables"]
    assert all(isinstance(value, str) for value in variables.values()), "Azure's variables are strings"
    read = Settings.from_environment(variables)
    assert (read.engine, read.dtype, read.context) == ("pipeline", "bfloat16", context(path))
    assert read.log_prompts is False


def test_online_endpoint_takes_keys() -> None:
    endpoint = spec("yaml/online/endpoint.yml")
    assert endpoint["auth_mode"] == "key"
    assert endpoint["public_network_access"] in {"enabled", "disabled"}
    assert "traffic" not in endpoint, "can't be set at creation"


# --- batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BATCH)
def test_batch_loses_nothing_silently(path: str) -> None:
    settings = spec(path)["settings"]
    assert settings["error_threshold"] == 0
    assert settings["mini_batch_size"] == 1
    assert settings["max_concurrency_per_instance"] == 1
    assert settings["retry_settings"]["timeout"] >= 3600
    assert settings["retry_settings"]["max_retries"] >= 1
    assert (settings["output_action"], settings["logging_level"]) == ("append_row", "info")
    assert settings["output_file_name"].endswith(".jsonl")


@pytest.mark.parametrize("path", BATCH)
def test_compute_is_ours_and_costs_nothing_at_rest(path: str) -> None:
    compute = spec(f"yaml/batch/compute/{spec(path)['compute'].removeprefix('azureml:')}.yml")
    assert spec(path)["compute"] == f"azureml:{compute['name']}"
    assert compute["min_instances"] == 0
    assert 1 <= spec(path)["resources"]["instance_count"] <= compute["max_instances"]


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completion", "dialog", "infill"])
def test_sample_request_is_a_body_of_score(name: str) -> None:
    from llama_serving.contract import azure, body

    raw = (ROOT / f"yaml/online/samples/{name}.json").read_bytes()
    assert azure.parse(body.decode(raw)).inputs


def test_sample_rows_are_all_good() -> None:
    from llama_serving.contract import rows
    from llama_serving.contract.request import Parameters

    folder = (ROOT / "yaml/data" / spec("yaml/data/rows.yml")["path"]).resolve()
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["rows.jsonl"]
    lines = files[0].read_bytes().splitlines()
    assert len(lines) == 8
    assert all(rows.request(rows.read(line), Parameters()).inputs for line in lines)
    assert len({frozenset(json.loads(line)) for line in lines}) == 8, "eight kinds of row"
