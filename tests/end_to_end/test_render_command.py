"""`llama-endpoints render` as people run it; what is committed is what it writes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_endpoints.devtools.servers import console_script
from tests.support.paths import ROOT

COMMAND = console_script("llama-endpoints")
MODEL = "codellama/CodeLlama-7b-Instruct-hf"
NAME = "codellama-7b-instruct-hf.yml"
IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/llama"


def render(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, "render", *options], capture_output=True, text=True, timeout=60, check=False
    )


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_what_is_committed_is_what_would_be_written() -> None:
    ran = render("--check", "--output", str(ROOT))
    assert ran.returncode == 0, ran.stderr


def test_check_names_what_differs_and_writes_nothing(tmp_path: Path) -> None:
    options = ("--model", MODEL, "--output", str(tmp_path))
    assert render(*options).returncode == 0
    assert render(*options, "--check").returncode == 0
    changed, gone = tmp_path / "yaml" / "online" / NAME, tmp_path / "yaml" / "batch" / "endpoint.yml"
    changed.write_text(changed.read_text().replace("instance_count: 1", "instance_count: 2"))
    gone.unlink()
    ran = render(*options, "--check")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[:2] == [f"{changed} differs", f"{gone} does not exist"]
    assert "instance_count: 2" in changed.read_text()
    assert not gone.exists()
    ran = render(*options)
    assert ran.stdout.splitlines() == [str(changed), str(gone)]
    assert "instance_count: 1" in changed.read_text()


def test_options_go_into_the_files(tmp_path: Path) -> None:
    ran = render("--model", MODEL, "--output", str(tmp_path), "--context", "4096", "--sku", "NC40ads_H100_v5", "--instances", "3",
                 "--dtype", "fp16", "--endpoint", "my-code", "--batch-endpoint", "my-rows", "--cluster", "mine", "--identity", IDENTITY,
                 "--public-network-access", "disabled", "--registry", "our-models")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    deployment, endpoint = read(tmp_path / "yaml/online" / NAME), read(tmp_path / "yaml/online/endpoint.yml")
    assert (deployment["instance_type"], deployment["instance_count"]) == ("Standard_NC40ads_H100_v5", 3)
    in_registry = f"azureml://registries/our-models/models/{NAME.removesuffix('.yml')}/versions/1"
    assert (deployment["model"], read(tmp_path / "yaml/batch" / NAME)["model"]) == (in_registry, in_registry)
    assert read(tmp_path / "yaml/batch/compute/llama-nc40ads-h100-v5.yml")["max_instances"] == 3
    variables = deployment["environment_variables"]
    assert (variables["LLAMA_CONTEXT"], variables["LLAMA_DTYPE"]) == ("4096", "float16")
    assert (deployment["endpoint_name"], endpoint["name"], endpoint["public_network_access"]) == (
        "my-code",
        "my-code",
        "disabled",
    )
    assert endpoint["identity"] == {
        "type": "user_assigned",
        "user_assigned_identities": [{"resource_id": IDENTITY}],
    }
    assert read(tmp_path / "yaml/batch" / NAME)["endpoint_name"] == "my-rows"
    assert read(tmp_path / "yaml/kubernetes/endpoint.yml")["compute"] == "azureml:mine"
    assert read(tmp_path / "yaml/batch/compute/llama-nc40ads-h100-v5.yml")["size"] == "Standard_NC40ads_H100_v5"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "gpt"), "is not in the catalog"),
        (
            ("--model", "codellama/CodeLlama-70b-hf", "--sku", "NC24ads_A100_v4"),
            "usable on 1 x A100 80 GB PCIe",
        ),
        (("--model", MODEL, "--sku", "NC6s_v3"), "does not compute in bf16"),
        (("--endpoint", "code_llama"), "3 to 32 letters, digits and single hyphens"),
        (("--identity", "me"), "userAssignedIdentities"),
    ],
)
def test_refusals_write_nothing(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    ran = render("--output", str(tmp_path), *options)
    assert ran.returncode == 2
    assert says in ran.stderr
    assert not any(tmp_path.iterdir())


def test_autoscale_is_a_template_of_azure_monitor() -> None:
    template = json.loads((ROOT / "yaml/online/autoscale.json").read_text())
    (resource,) = template["resources"]
    assert resource["type"] == "Microsoft.Insights/autoscaleSettings"
    (profile,) = resource["properties"]["profiles"]
    assert {rule["scaleAction"]["direction"] for rule in profile["rules"]} == {"Increase", "Decrease"}
    assert [rule["metricTrigger"]["metricName"] for rule in profile["rules"]] == [
        "RequestLatency_P90",
        "GpuUtilizationPercentage",
    ]
    for rule in profile["rules"]:
        assert rule["metricTrigger"]["metricResourceUri"] == resource["properties"]["targetResourceUri"]
        assert rule["scaleAction"]["cooldown"] == "PT20M"  # a GPU instance takes up to 18 minutes
        assert {"GreaterThan": "Increase", "LessThan": "Decrease"}[rule["metricTrigger"]["operator"]] == rule[
            "scaleAction"
        ]["direction"]


def test_a_local_deployment_is_one_that_azure_s_client_takes_with_the_files_there(tmp_path: Path) -> None:
    """Its loader looks into the model's folder, so the file is not among those that are committed."""
    import warnings

    shutil.copytree(ROOT / "score", tmp_path / "score", ignore=shutil.ignore_patterns("__pycache__"))
    assert render("--model", MODEL, "--output", str(tmp_path), "--local").returncode == 0
    model = tmp_path / "build" / "local" / "model"
    model.mkdir(parents=True)
    (model / "MLmodel").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # azure-ai-ml is written for marshmallow 3
        from azure.ai.ml import load_online_deployment

        deployment = load_online_deployment(tmp_path / "yaml/online/local.yml")
    assert (deployment.name, Path(deployment.model.path).resolve()) == ("local", model)
    assert deployment.environment.inference_config is not None
