"""The command of yaml/package/job.yml, run here as Azure would: in a copy of what is uploaded, its placeholders filled in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_serving.model_files import ModelFiles
from tests.conftest import ROOT
from tests.support.hubs import COMMIT, Status, fake_hub
from tests.support.tiny import tiny_files

JOB: dict[str, Any] = yaml.safe_load((ROOT / "yaml/package/job.yml").read_text("utf-8"))
NAME: str = JOB["inputs"]["variant"]

# Python runs a module of this name at its start: the catalog has no model that is small enough for a test.
SMALL_CATALOG = f"""
import os, sys
from dataclasses import replace
sys.path[:] = [os.getcwd(), *sys.path, {str(ROOT)!r}]
from llama_serving import catalog
from tests.support.tiny import TINY
del sys.path[0], sys.path[-1]
catalog.CATALOG["{NAME}"] = replace(TINY, name="{NAME}")
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The job's working folder."""
    folder = tmp_path / "wd"
    for name in ("deployment", "score"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(code: Path, url: str, output: Path) -> subprocess.CompletedProcess[str]:
    command = JOB["command"].replace("${{outputs.model}}", str(output))
    for name, value in JOB["inputs"].items():
        command = command.replace("${{inputs." + name + "}}", value)
    start = code.parent / "start"
    start.mkdir(exist_ok=True)
    (start / "sitecustomize.py").write_text(SMALL_CATALOG)
    given = JOB["environment_variables"]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        **given,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join((given["PYTHONPATH"], str(start))),
        "HF_HOME": str(code.parent / "hf"),
        "HF_ENDPOINT": url,
        "NO_PROXY": "*",
        # What Azure sets in a job; its plugin for MLflow is not in the image, and nothing here should ask for it.
        "MLFLOW_TRACKING_URI": "azureml://region.api.azureml.ms/mlflow/v1.0/subscriptions/s/resourceGroups/g",
    }
    return subprocess.run(
        ("bash", "-c", command),
        cwd=code,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_the_output_is_the_model(code: Path, tmp_path: Path) -> None:
    output = tmp_path / "outputs" / "model"
    output.mkdir(parents=True)  # as Azure mounts it
    with fake_hub() as hub:
        hub.publish(NAME, tiny_files(shards=2))
        done = run(code, hub.url, output)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint holds {NAME} at {COMMIT}" in done.stdout
    assert (output / "MLmodel").is_file(), "registered as an mlflow_model, the output is the model itself"
    found = ModelFiles.find(output)
    assert found.variant.name == NAME
    assert sorted(path.name for path in found.checkpoint.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_failure_fails_the_job(code: Path, tmp_path: Path) -> None:
    with fake_hub() as hub:
        hub.publish(NAME, tiny_files())
        hub.faults["config.json"] = [Status(403, {"X-Error-Code": "GatedRepo"})]
        done = run(code, hub.url, tmp_path / "outputs")
    assert done.returncode == 2
    assert f"{NAME} is gated." in done.stderr
    assert not (tmp_path / "outputs").exists()
