"""The scripts of docs/ as they stand, with our real command; for `az`, which needs Azure, somebody who writes down what he is told."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import console_script
from tests.support.paths import ROOT

AZ = f"""#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
with open(os.environ["TOLD"], "a") as told:
    told.write(json.dumps(words) + "\\n")
if "show" in words and words[1] not in os.environ["THERE"].split():
    sys.exit(1)
if words[:3] == ["ml", "batch-endpoint", "invoke"]:
    print("job-1")
"""
ALL = "model environment compute online-endpoint online-deployment batch-endpoint"
NAME = "codellama-13b-instruct-hf"
IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/llama"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("docs", "yaml", "environments", "score"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    az = tmp_path / "bin" / "az"
    az.parent.mkdir()
    az.write_text(AZ)
    az.chmod(0o755)
    return tmp_path


def run(
    checkout: Path, script: str, there: str, **variables: str
) -> "tuple[subprocess.CompletedProcess[str], list[list[str]]]":
    told = checkout / "told"
    told.write_text("")
    mine = {
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "HOME": str(checkout), "TOLD": str(told), "THERE": there,
        "LLAMA": str(console_script("llama-endpoints")), "RESOURCE_GROUP": "g", "WORKSPACE": "w",
        "MODEL": "codellama/CodeLlama-13b-Instruct-hf", "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **variables,
    }  # fmt: skip
    ran = subprocess.run(
        ["bash", checkout / "docs" / script], env=mine, capture_output=True, text=True, timeout=120, check=False
    )
    return ran, [json.loads(line) for line in told.read_text().splitlines()]


def files_of(told: list[list[str]]) -> set[str]:
    pairs = [pair for words in told for pair in itertools.pairwise(words)]
    return {value for flag, value in pairs if flag in {"--file", "--request-file", "--input"}}


def did(told: list[list[str]]) -> list[str]:
    """What was asked for beside looks: `online-endpoint create`."""
    return [" ".join(words[1:3]) for words in told if words[0] == "ml" and "show" not in words]


def test_online_from_a_name_to_an_answer(checkout: Path) -> None:
    ran, told = run(checkout, "text-generation-online-endpoint.sh", "model", ENDPOINT="my-code")
    assert ran.returncode == 0, ran.stderr
    assert "Standard_NC24ads_A100_v4 runs it" in ran.stdout
    assert did(told) == ["environment create", "online-endpoint create", "online-deployment create", "online-deployment get-logs",
                         "online-endpoint invoke", "online-endpoint update", "online-endpoint invoke"]  # fmt: skip
    assert f"{NAME}=100" in told[-2]
    assert "build/deploy/environments/gpu/environment.yml" in files_of(told)
    assert all((checkout / file).is_file() for file in files_of(told))
    assert f"build/deploy/yaml/online/{NAME}.yml" in files_of(told)
    assert "endpoint_name: my-code" in (checkout / f"build/deploy/yaml/online/{NAME}.yml").read_text()


@pytest.mark.parametrize(
    ("options", "image"),
    [("--front server", "gpu-server"), ("--engine pipeline", "online")],
)
def test_the_image_that_the_deployment_names_is_built(checkout: Path, options: str, image: str) -> None:
    ran, told = run(checkout, "text-generation-online-endpoint.sh", "model", RENDER_OPTIONS=options)
    assert ran.returncode == 0, ran.stderr
    assert ["ml", "environment", "show", "--name", f"llama-{image}", "--version", "1"] in told
    assert f"build/deploy/environments/{image}/environment.yml" in files_of(told)
    assert all((checkout / file).is_file() for file in files_of(told))


def test_what_render_is_told_holds_and_the_checkout_stays_as_it_is(checkout: Path) -> None:
    before = {path: path.read_bytes() for path in (checkout / "yaml").rglob("*.*")}
    ran, _ = run(
        checkout,
        "text-generation-online-endpoint.sh",
        ALL,
        RENDER_OPTIONS=f"--public-network-access disabled --identity {IDENTITY}",
    )
    assert ran.returncode == 0, ran.stderr
    endpoint = (checkout / "build/deploy/yaml/online/endpoint.yml").read_text()
    assert "public_network_access: disabled" in endpoint
    assert IDENTITY in endpoint
    assert {path: path.read_bytes() for path in (checkout / "yaml").rglob("*.*")} == before


def test_given_again_it_creates_nothing(checkout: Path) -> None:
    ran, told = run(checkout, "text-generation-online-endpoint.sh", ALL)
    assert ran.returncode == 0, ran.stderr
    assert did(told) == ["online-deployment update", "online-deployment get-logs", "online-endpoint invoke",
                         "online-endpoint update", "online-endpoint invoke"]  # fmt: skip


def test_batch_from_a_name_to_records(checkout: Path) -> None:
    ran, told = run(checkout, "text-generation-batch-endpoint.sh", "model")
    assert ran.returncode == 0, ran.stderr
    assert did(told) == ["environment create", "compute create", "batch-endpoint create", "batch-deployment create",
                         "batch-endpoint invoke", "job stream", "job download"]  # fmt: skip
    assert all((checkout / file).exists() for file in files_of(told))
    assert "build/deploy/yaml/batch/compute/llama-nc24ads-a100-v4.yml" in files_of(told)
    assert told[-1][3:5] == ["--name", "job-1"]


@pytest.mark.parametrize("script", ["text-generation-online-endpoint.sh", "text-generation-batch-endpoint.sh"])
def test_what_is_missing_is_said_before_anything_is_created(checkout: Path, script: str) -> None:
    ran, told = run(checkout, script, "", WORKSPACE="")
    assert (ran.returncode, told) == (1, [])
    assert "the workspace of Azure ML" in ran.stderr
    ran, told = run(checkout, script, "")
    assert ran.returncode == 1
    assert "the folder with the checkpoint" in ran.stderr
    assert did(told) == []
    ran, told = run(checkout, script, ALL, MODEL="codellama/CodeLlama-8b")
    assert (ran.returncode, did(told)) == (2, [])
    assert "is not in the catalog" in ran.stderr
