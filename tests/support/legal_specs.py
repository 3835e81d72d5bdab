"""Files that Azure's documents allow, of every kind, as hypothesis strategies. Paths in them lead into `FILES`."""

from collections.abc import Mapping
from typing import Any, Final

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]

FILES: Final[Mapping[str, str]] = {
    "code/score.py": "def init():\n    pass\n\n\ndef run(data):\n    return data\n",
    "code/raw.py": "from elsewhere import rawhttp\n\n\ndef init():\n    pass\n\n\n@rawhttp\ndef run(request, request_headers):\n    return request\n",
    "code/driver.py": "def init():\n    global model\n    model = len\n\n\ndef run(mini_batch):\n    return [model(path) for path in mini_batch]\n",
    "conda.yml": "name: serving\nchannels: [conda-forge]\ndependencies:\n  - python=3.12\n  - pip:\n      - azureml-inference-server-http\n",
    "job-conda.yml": "dependencies:\n  - python=3.12\n  - pip\n  - pip: [azureml-core, 'azureml-dataset-runtime[fuse]']\n",
    "image/Dockerfile": "FROM ubuntu:24.04\nUSER nobody\nEXPOSE 8000\n",
    "model/MLmodel": "flavors: {}\n",
    "model.pkl": "not really\n",
    "data/rows.csv": "a,b\n",
    "table/MLTable": "paths: []\n",
}
_ARM: Final = "/subscriptions/s/{}/g/providers/Microsoft.MachineLearningServices/workspaces/w"
HOSTS: Final = (
    "https://azuremlschemas.azureedge.net/latest",
    "https://azuremlschemas.azureedge.net/development",
    "https://azuremlsdk2.blob.core.windows.net/latest",
)


def one_of(*values: Any) -> Strategy:
    return st.sampled_from(values)


def _number(low: int, high: int) -> Strategy:
    """As YAML has it, or in quotes."""
    return st.integers(low, high).flatmap(lambda number: one_of(number, str(number)))


def _some(**optional: Strategy) -> Strategy:
    return st.fixed_dictionaries({}, optional=optional)


def _file(kind: str, required: Mapping[str, Strategy], optional: Mapping[str, Strategy]) -> Strategy:
    schema = one_of(*(f"{host}/{kind}.schema.json" for host in HOSTS))
    return st.fixed_dictionaries({"$schema": schema, **required}, optional=dict(optional))


NAMES: Final = st.from_regex(r"[A-Za-z](?:-?[A-Za-z0-9]){2,15}", fullmatch=True)
ASSET_NAMES: Final = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)
_VERSIONS: Final = st.one_of(st.integers(0, 99), one_of("1", "2024.1-rc_1", "1.0.0"))
_TAGS: Final = st.dictionaries(ASSET_NAMES, one_of("a", "", "yes", 1, True), max_size=2)
TEXTS: Final = one_of("", "What it is.", "Größe\nin lines")
_STRINGS: Final = st.dictionaries(ASSET_NAMES, one_of("a", "", "yes"), max_size=2)
_COMMON: Final = {"description": TEXTS, "tags": _TAGS, "properties": _TAGS}

_ROUTE: Final = {"port": one_of(8000), "path": one_of("/", "/health", "/v1/models/x:predict", "/invocations")}
_ROUTES: Final = st.fixed_dictionaries(
    {name: st.fixed_dictionaries(_ROUTE) for name in ("liveness_route", "readiness_route", "scoring_route")}
)
_IMAGES: Final = one_of(
    "vllm/vllm-openai:v0.10.1",
    "mcr.microsoft.com/azureml/minimal-py312-inference:latest",
    "ubuntu",
    "a.azurecr.io:443/b/c@sha256:" + "0" * 64,
)
_INLINE: Final = st.one_of(
    st.fixed_dictionaries({"image": _IMAGES, "inference_config": _ROUTES}),
    st.fixed_dictionaries({"image": _IMAGES, "conda_file": one_of("conda.yml", "./conda.yml")}),
    st.fixed_dictionaries(
        {"name": ASSET_NAMES, "image": _IMAGES}, optional={"version": _VERSIONS, "os_type": one_of("linux")}
    ),
    st.fixed_dictionaries(
        {
            "build": st.fixed_dictionaries(
                {"path": one_of("image", "./image")}, optional={"dockerfile_path": one_of("Dockerfile")}
            ),
            "inference_config": _ROUTES,
        }
    ),
)
_ENVIRONMENTS: Final = one_of(
    "azureml:env:1", "azureml:env@latest", "azureml:env", "azureml://registries/azureml/environments/sklearn-1.5/labels/latest",
    "azureml://registries/azureml/environments/sklearn-1.5/versions/3", f"azureml:{_ARM.format('resourceGroups')}/environments/e/versions/1",
)  # fmt: skip
_MLFLOW: Final = st.one_of(
    st.fixed_dictionaries({"type": one_of("mlflow_model"), "path": one_of("model", "./model")}),
    st.fixed_dictionaries(
        {"type": one_of("mlflow_model"), "path": one_of("model"), "name": ASSET_NAMES, "version": _VERSIONS}
    ),
)
_MODELS: Final = st.one_of(
    one_of(
        "azureml:churn:2", "azureml:churn@latest", "azureml:churn", "azureml://registries/azureml/models/bert/versions/3",
        "azureml://registries/azureml/models/bert/labels/latest", f"azureml:{_ARM.format('resourceGroups')}/models/m/versions/1",
    ),
    _MLFLOW,
)  # fmt: skip
_CUSTOM: Final = st.one_of(_MODELS, st.fixed_dictionaries({"path": one_of("model.pkl", "code")}))

# --- deployments ----------------------------------------------------------------------------------

_PROBE: Final = _some(
    initial_delay=_number(0, 9000),
    period=_number(10, 60),
    timeout=_number(1, 10),
    success_threshold=one_of(1),
    failure_threshold=_number(1, 90),
)
_READY: Final = _some(
    initial_delay=_number(0, 9000),
    period=_number(10, 60),
    timeout=_number(1, 10),
    success_threshold=_number(1, 3),
    failure_threshold=_number(1, 90),
)
_VARIABLES: Final = st.dictionaries(
    one_of("OMP_NUM_THREADS", "MODEL_BASE_PATH", "AZUREML_MODEL_PATH", "LLAMA_ARG_HOST", "WORKER_COUNT"),
    one_of(
        "4",
        "/var/azureml-app/azureml-models/x/1",
        1,
        "${{azureml://connections/openai/credentials/key}}",
        "true",
    ),
)
_COLLECTION: Final = st.fixed_dictionaries(
    {"enabled": one_of("true", "false", "True")},
    optional={
        "data": st.fixed_dictionaries(
            {
                "name": ASSET_NAMES,
                "path": one_of("azureml://datastores/workspaceblobstore/paths/c"),
                "version": one_of("1"),
            }
        )
    },
)
_ONLINE: Final = {
    **_COMMON,
    "endpoint_name": NAMES,
    "instance_count": _number(1, 20),
    "app_insights_enabled": st.booleans(),
    "model_mount_path": one_of("/var/model"),
    "environment_variables": _VARIABLES,
    "liveness_probe": _PROBE,
    "readiness_probe": _READY,
    "data_collector": st.fixed_dictionaries(
        {
            "collections": st.dictionaries(
                one_of("model_inputs", "request", "response"), _COLLECTION, min_size=1
            )
        },
        optional={"sampling_rate": one_of(0.5, 1.0), "rolling_rate": one_of("hour", "day")},
    ),
}
_SIZES: Final = one_of(
    "Standard_DS3_v2",
    "Standard_F4s_v2",
    "Standard_E8s_v3",
    "STANDARD_DS2_V2",
    "Standard_D4as_v4",
    "Standard_NC24ads_A100_v4",
    "Standard_NC4as_T4_v3",
)
_CODE: Final = one_of(
    {"code": "code", "scoring_script": "score.py"},
    {"code": "./code/", "scoring_script": "raw.py"},
    {"code": "azureml:code:1", "scoring_script": "x.py"},
)
_LOCAL_RUNS: Final = st.one_of(
    st.fixed_dictionaries({"model": one_of("azureml:churn:2", "azureml:churn@latest")}),
    st.fixed_dictionaries(
        {
            "model": one_of("azureml:churn:2", {"path": "model.pkl"}),
            "environment": st.one_of(one_of("azureml:env:1", "azureml:env@latest"), _INLINE),
        },
        optional={"code_configuration": _CODE},
    ),
)
"""Azure's client takes nothing of a registry behind Kubernetes."""
_RUNS: Final = st.one_of(
    st.fixed_dictionaries({"model": _MODELS}),
    st.fixed_dictionaries({"model": _CUSTOM, "environment": st.one_of(_ENVIRONMENTS, _INLINE)}),
    st.fixed_dictionaries(
        {"environment": st.one_of(_ENVIRONMENTS, _INLINE), "code_configuration": _CODE},
        optional={"model": _CUSTOM},
    ),
)


def _merged(*parts: Strategy) -> Strategy:
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


_MANAGED: Final = _merged(
    _file("managedOnlineDeployment", {"name": NAMES, "instance_type": _SIZES}, {
        **_ONLINE, "type": one_of("managed", "Managed"), "egress_public_network_access": one_of("enabled", "disabled", "Disabled"),
        "scale_settings": one_of({"type": "default"}),
        "request_settings": _some(request_timeout_ms=_number(1000, 180_000), max_concurrent_requests_per_instance=_number(1, 500), max_queue_wait_ms=_number(0, 60_000)),
    }),
    _RUNS,
)  # fmt: skip
_SIDE: Final = one_of({"cpu": "0.1", "memory": "0.2Gi"}, {"cpu": "500m", "memory": "512Mi"})
_KUBERNETES: Final = _merged(
    _file("kubernetesOnlineDeployment", {"name": NAMES, "type": one_of("kubernetes")}, {
        **_ONLINE, "instance_type": one_of("defaultinstancetype", "gpu.large", "cpu-small"),
        "resources": st.fixed_dictionaries({"requests": _SIDE}, optional={"limits": one_of({"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}, {"cpu": "1", "memory": "1Gi"})}),
        "scale_settings": st.one_of(one_of({"type": "default"}), st.fixed_dictionaries({"type": one_of("target_utilization"), "min_instances": _number(1, 3), "max_instances": _number(3, 90)}, optional={"polling_interval": _number(1, 60), "target_utilization_percentage": _number(1, 100)})),
        "request_settings": _some(request_timeout_ms=_number(1000, 300_000), max_concurrent_requests_per_instance=_number(1, 500)),
    }),
    _LOCAL_RUNS,
)  # fmt: skip
_BATCH_CODE: Final = one_of(
    {"code": "code", "scoring_script": "driver.py"}, {"code": "code/", "scoring_script": "./driver.py"}
)
_BATCH_INLINE: Final = st.fixed_dictionaries(
    {"image": _IMAGES, "conda_file": one_of("job-conda.yml")}, optional={"name": ASSET_NAMES}
)
_BATCH_RUNS: Final = st.one_of(
    st.fixed_dictionaries({"model": _MODELS}),
    st.fixed_dictionaries(
        {
            "model": _CUSTOM,
            "environment": st.one_of(_ENVIRONMENTS, _BATCH_INLINE),
            "code_configuration": _BATCH_CODE,
        }
    ),
)
_COMPUTES: Final = one_of(
    "azureml:cpus",
    "cpus",
    f"azureml:{_ARM.format('resourceGroups')}/computes/c",
    f"{_ARM.format('resourcegroups')}/computes/c",
)
_SETTINGS: Final = {
    "mini_batch_size": _number(1, 100), "max_concurrency_per_instance": _number(1, 8), "output_action": one_of("append_row", "Append_Row"),
    "output_file_name": one_of("predictions.csv"), "retry_settings": _some(max_retries=_number(0, 3), timeout=_number(60, 3000)),
    "error_threshold": one_of(-1, 0, 5), "logging_level": one_of("info", "warning", "debug"),
}  # fmt: skip
_BATCH: Final = {
    **_COMMON,
    "endpoint_name": NAMES,
    "resources": st.fixed_dictionaries({"instance_count": _number(1, 4)}),
}
_IN_SETTINGS: Final = st.fixed_dictionaries(
    {"mini_batch_size": _number(1, 100)},
    optional={
        **{name: one for name, one in _SETTINGS.items() if name != "mini_batch_size"},
        "environment_variables": _VARIABLES,
    },
)
_BATCH_MODEL: Final = _merged(
    st.one_of(
        *(
            _file(
                kind,
                {"name": NAMES, "type": one_of("model"), "compute": _COMPUTES},
                {**_BATCH, "settings": _IN_SETTINGS},
            )
            for kind in ("modelBatchDeployment", "batchDeployment")
        )
    ),
    _BATCH_RUNS,
)
_BATCH_OLDER: Final = _merged(
    _file(
        "batchDeployment",
        {"name": NAMES, "compute": _COMPUTES},
        {**_BATCH, **_SETTINGS, "environment_variables": _VARIABLES},
    ),
    _BATCH_RUNS,
)

# --- endpoints ------------------------------------------------------------------------------------

_USER: Final = [
    {
        "resource_id": "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
    }
]
_IDENTITY: Final = one_of(
    {"type": "system_assigned"}, {"type": "user_assigned", "user_assigned_identities": _USER}
)
_TRAFFIC: Final = one_of({"blue": 100}, {"blue": 90, "green": 10}, {"blue": "100"}, {"blue": 0}, {})
_KEYS: Final = one_of("key", "aml_token", "aad_token", "Key")
_ENDPOINTS: Final = {
    "managedOnlineEndpoint": _file("managedOnlineEndpoint", {"name": NAMES}, {**_COMMON, "auth_mode": _KEYS, "identity": _IDENTITY, "traffic": _TRAFFIC, "mirror_traffic": one_of({"violet": 10}, {"violet": "50"}), "public_network_access": one_of("enabled", "disabled")}),
    "kubernetesOnlineEndpoint": _file("kubernetesOnlineEndpoint", {"name": NAMES, "compute": one_of("azureml:cluster")}, {**_COMMON, "auth_mode": one_of("key", "aml_token"), "identity": _IDENTITY, "traffic": _TRAFFIC}),
    "batchEndpoint": _file("batchEndpoint", {"name": NAMES}, {**_COMMON, "auth_mode": one_of("aad_token"), "defaults": one_of({"deployment_name": "blue"})}),
}  # fmt: skip

# --- assets, compute, jobs --------------------------------------------------------------------------

_STORES: Final = one_of(
    "azureml://datastores/models/paths/sorting",
    "https://a.blob.core.windows.net/c/x.csv",
    "wasbs://c@a.blob.core.windows.net/x",
    "abfss://f@a.dfs.core.windows.net/x",
)
_OF_RUNS: Final = one_of(
    "azureml://jobs/j/outputs/artifacts/paths/model/",
    "runs:/0123/model",
    "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/d/paths/p",
)
_ASSET: Final = {**_COMMON, "version": _VERSIONS}
_COLLECTED: Final = one_of(
    {
        "input_data": {"type": "uri_folder", "path": "azureml:e-d-model_outputs:1"},
        "data_window": {"lookback_window_size": "P7D"},
    }
)
_SIGNALS: Final = st.one_of(
    st.fixed_dictionaries({"type": one_of("data_drift"), "production_data": _COLLECTED, "reference_data": _COLLECTED, "features": one_of(["x"], "all_features"), "metric_thresholds": one_of({"numerical": {"jensen_shannon_distance": 0.1}})}),
    st.fixed_dictionaries({"type": one_of("generation_safety_quality"), "production_data": st.lists(_COLLECTED, min_size=1, max_size=2), "connection_id": one_of("/c"), "metric_thresholds": one_of({"fluency": {"aggregated_fluency_pass_rate": 0.5}})}),
)  # fmt: skip
_ASSETS_OF_AZURE: Final = {
    "environment": _merged(_file("environment", {"name": ASSET_NAMES}, {"description": TEXTS, "tags": _TAGS, "version": _VERSIONS}), st.one_of(
        st.fixed_dictionaries({"image": _IMAGES}, optional={"conda_file": one_of("conda.yml", "job-conda.yml"), "inference_config": _ROUTES}),
        st.fixed_dictionaries({"build": st.fixed_dictionaries({"path": one_of("image", "https://github.com/a/b.git")})}),
    )),
    "model": st.one_of(
        _file("model", {"name": ASSET_NAMES, "path": st.one_of(_STORES, _OF_RUNS, one_of("model.pkl", "model"))}, {**_ASSET, "type": one_of("custom_model"), "flavors": one_of({"python_function": {"loader_module": "x"}})}),
        _file("model", {"name": ASSET_NAMES, "path": st.one_of(_OF_RUNS, one_of("model")), "type": one_of("mlflow_model", "MLflow_Model")}, _ASSET),
        _file("model", {"name": ASSET_NAMES, "path": one_of("code"), "type": one_of("triton_model")}, _ASSET),
    ),
    "data": st.one_of(
        _file("data", {"name": ASSET_NAMES, "path": st.one_of(_STORES, one_of("data"))}, {**_ASSET, "type": one_of("uri_folder")}),
        _file("data", {"name": ASSET_NAMES, "path": st.one_of(_STORES, one_of("data/rows.csv")), "type": one_of("uri_file")}, _ASSET),
        _file("data", {"name": ASSET_NAMES, "path": one_of("table"), "type": one_of("mltable")}, _ASSET),
    ),
    "amlCompute": _file("amlCompute", {"name": st.from_regex(r"[A-Za-z](?:-?[A-Za-z]){2,10}", fullmatch=True), "type": one_of("amlcompute", "AmlCompute")}, {
        "description": TEXTS, "tags": _STRINGS, "size": _SIZES, "tier": one_of("dedicated", "low_priority"), "min_instances": _number(0, 1), "max_instances": _number(1, 9),
        "idle_time_before_scale_down": _number(60, 900), "location": one_of("westeurope"), "identity": _IDENTITY, "ssh_public_access_enabled": st.booleans(),
        "ssh_settings": one_of({"admin_username": "me", "admin_password": "correct-horse"}), "network_settings": one_of({"vnet_name": "v", "subnet": "s"}),
    }),
    "monitorSchedule": _file("monitorSchedule", {"name": ASSET_NAMES, "trigger": one_of({"type": "cron", "expression": "0 3 * * *"}, {"type": "recurrence", "frequency": "week", "interval": 1}), "create_monitor": st.fixed_dictionaries(
        {"compute": one_of({"instance_type": "standard_e4s_v3", "runtime_version": "3.4"}), "monitoring_signals": st.dictionaries(one_of("a", "b"), _SIGNALS, min_size=1)},
        optional={
            "monitoring_target": one_of({"ml_task": "Classification", "endpoint_deployment_id": "azureml:e:d"}),
            "alert_notification": one_of("azmonitoring", {"emails": ["a@example.org"]}),
        },
    )}, {"description": TEXTS, "tags": _STRINGS}),
    "commandJob": _file("commandJob", {"command": one_of("python train.py", "python x.py --a ${{inputs.a}} --out ${{outputs.out}}").map(str)}, {}).flatmap(lambda job: _merged(st.just(job), _JOB)),
    "commandComponent": _file("commandComponent", {"name": st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True), "environment": _ENVIRONMENTS}, {"type": one_of("command"), "version": _VERSIONS, "code": one_of("code", "./code"), "display_name": TEXTS, "description": TEXTS, "tags": _STRINGS}).flatmap(lambda step: _merged(st.just(step), _STEP)),
}  # fmt: skip
_STEP: Final = one_of(
    {"command": "python train.py"},
    {"command": "python x.py --a ${{inputs.a}} --out ${{outputs.out}}", "inputs": {"a": {"type": "number", "default": 1}}, "outputs": {"out": {"type": "uri_folder"}}},
    {"command": "python x.py $[[--a ${{inputs.a}}]]", "inputs": {"a": {"type": "uri_file", "optional": True}}},
)  # fmt: skip
_JOB: Final = st.fixed_dictionaries(
    {"environment": st.one_of(_ENVIRONMENTS, one_of({"image": "python:latest"})), "inputs": one_of({"a": 1}, {"a": {"type": "uri_file", "path": "https://a.b/c.csv"}}, {"a": {"path": "data"}}), "outputs": one_of({"out": {"type": "uri_folder"}}, {"out": {}})},
    optional={"type": one_of("command"), "compute": _COMPUTES, "code": one_of("code", "./code"), "display_name": TEXTS, "experiment_name": ASSET_NAMES, "tags": _STRINGS, "resources": one_of({"instance_count": 2}, {"instance_count": 100, "shm_size": "2g"}), "limits": one_of({"timeout": 600}), "environment_variables": _VARIABLES, "distribution": one_of({"type": "pytorch", "process_count_per_instance": 2}), "identity": one_of({"type": "user_identity"})},
)  # fmt: skip

LEGAL: Final[Mapping[str, Strategy]] = {
    "managedOnlineDeployment": _MANAGED,
    "kubernetesOnlineDeployment": _KUBERNETES,
    "modelBatchDeployment": _BATCH_MODEL,
    "batchDeployment": _BATCH_OLDER,
    **_ENDPOINTS,
    **_ASSETS_OF_AZURE,
}
"""By the name under which Azure's client is asked (`llama_endpoints.azure.schemas.complaints`)."""
