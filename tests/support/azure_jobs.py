"""Batch deployments and the command that runs them as Azure would."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from llama_endpoints.devtools.servers import console_script, environment
from tests.support.command import run
from tests.support.paths import ROOT

BATCH_DEPLOYMENT = ROOT / "yaml" / "batch" / "codellama-7b-hf.yml"
PATIENCE_S = 240


def written(folder: Path, script: Path, **settings: Any) -> Path:
    """A deployment's file, as people write it."""
    path = folder / "deployment.yml"
    content = {
        "$schema": "https://azuremlschemas.azureedge.net/latest/modelBatchDeployment.schema.json",
        "name": "one", "endpoint_name": "ours", "type": "model", "model": "azureml:m:1",
        "code_configuration": {"code": str(script.parent), "scoring_script": script.name},
        "environment": "azureml:e:1", "compute": "azureml:c", "resources": {"instance_count": 2}, "settings": settings,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def batch(model: Path | str, given: Path, output: Path, *more: str) -> tuple[int, str]:
    """The command in this process; the jobs' own processes are real."""
    finished = run("batch", "--model", model, "--input", given, "--output", output, *more)
    return finished.returncode, finished.stderr


def begun(model: Path | str, given: Path, output: Path, *more: str) -> "subprocess.Popen[str]":
    arguments = ["batch", "--model", str(model), "--input", str(given), "--output", str(output), *more]
    return subprocess.Popen(
        [console_script("llama-endpoints"), *arguments], stderr=subprocess.PIPE, text=True, env=environment({})
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    stderr = process.communicate(timeout=PATIENCE_S)[1]
    return process.returncode, stderr
