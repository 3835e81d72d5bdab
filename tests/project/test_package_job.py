"""The job that fetches and packages a model in Azure: its file, its image, and what of this folder is uploaded for it."""

import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_serving.catalog import CATALOG
from llama_serving.hosts import mlflow_pyfunc
from llama_serving.hosts.mlflow_pyfunc import REQUIREMENTS, WHERE_INSTALLED
from tests.deployment.render.test_azure_specs import spec
from tests.project.test_architecture import imported
from tests.project.test_images import normal, requirements
from tests.support.paths import ROOT

# azure-ai-ml is written for marshmallow 3, which warns at every schema that 4 is near.
pytestmark = pytest.mark.filterwarnings("ignore::marshmallow.warnings.Marshmallow4Warning")

NAME = "yaml/package/job.yml"
JOB = ROOT / NAME
DISKS = {"Standard_D8ds_v5": 300 * 2**30}
"""Bytes of the local disk of a size (Azure's page of the Ddsv5 series)."""


@pytest.fixture(scope="module")
def job() -> Any:
    from azure.ai import ml

    return ml.load_job(JOB)


def test_azure_loads_it(job: Any) -> None:
    assert job.type == "command"
    assert Path(job.base_path, job.code).resolve() == ROOT
    assert job.outputs["model"].type == "mlflow_model"
    assert (job.outputs["model"].mode, job.outputs["model"].name) == ("upload", "codellama-7b-hf")
    assert job.identity.type == "managed_identity"
    assert spec(NAME)["inputs"]["variant"] in CATALOG


def test_every_placeholder_is_there(job: Any) -> None:
    used = set(re.findall(r"\$\{\{(\w+\.\w+)\}\}", job.command))
    assert used == {f"inputs.{name}" for name in job.inputs} | {f"outputs.{name}" for name in job.outputs}


def test_environment_and_compute_are_ours(job: Any) -> None:
    made = spec("environments/package/environment.yml")
    assert job.environment == f"{made['name']}:{made['version']}"
    assert job.compute == spec("yaml/package/compute.yml")["name"]


def test_the_models_name_is_the_one_that_deployments_name(job: Any) -> None:
    assert job.outputs["model"].name == spec("yaml/models/codellama-7b-hf.yml")["name"]


def test_the_disk_holds_the_largest_model_twice() -> None:
    largest = max(row.shape.weight_bytes() for row in CATALOG.values())
    assert DISKS[spec("yaml/package/compute.yml")["size"]] > 2 * largest


def test_no_token_is_in_the_file() -> None:
    text = JOB.read_text("utf-8")
    assert yaml.safe_load(text)["environment_variables"] == {
        "PYTHONPATH": "score:deployment",
        "HUB_TOKEN_SECRET": "",
    }
    assert not re.search(r"\bhf_[A-Za-z0-9]", text)


def test_the_two_packages_are_uploaded_and_nothing_else() -> None:
    from azure.ai.ml._utils import _asset_utils

    ignore = _asset_utils.get_ignore_file(ROOT)
    assert Path(ignore.path).name == ".amlignore"
    uploaded = {name for _, name in _asset_utils.get_upload_files_from_folder(ROOT, ignore_file=ignore)}
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in ("deployment", "score")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert uploaded == expected
    assert "deployment/llama_endpoints/nano/model.safetensors" in uploaded


def test_the_image_has_what_the_commands_import() -> None:
    modules = set()
    for room in ("checkpoints", "download"):
        for path in sorted((ROOT / "deployment/llama_endpoints" / room).glob("*.py")):
            if not path.name.startswith(
                ("azure", "gguf")
            ):  # (models of a workspace, and GGUF files: not this job's)
                modules |= set(imported(path.read_text("utf-8")))
    for part in ("main", "batch", "fetch"):
        modules |= set(imported((ROOT / f"deployment/llama_endpoints/cli/{part}.py").read_text("utf-8")))
    outside = {name.partition(".")[0] for name in modules} - {"llama_endpoints", "llama_serving"}
    known = requirements("package")
    providers = packages_distributions()
    assert {"click", "tqdm", "huggingface_hub", "httpx2", "safetensors"} <= outside
    assert not {
        name
        for name in outside - sys.stdlib_module_names
        if not {normal(one) for one in providers[name]} & known.keys()
    }


def test_the_image_has_what_a_packaged_model_records() -> None:
    """`package` writes down the versions that are installed where it runs."""
    assert {normal(name) for name in (*REQUIREMENTS, *WHERE_INSTALLED)} <= requirements("package").keys()


def test_a_packaged_model_records_what_is_optional_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = mlflow_pyfunc._requirements()
    assert f"detect-secrets=={version('detect-secrets')}" in recorded

    def without(name: str) -> str:
        if name in WHERE_INSTALLED:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(mlflow_pyfunc, "version", without)
    assert set(recorded) - set(mlflow_pyfunc._requirements()) == {
        f"detect-secrets=={version('detect-secrets')}"
    }


def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    tested = {normal(name): version for name, _, version in (line.partition("==") for line in lines)}
    unfrozen = {"setuptools"}  # torch's; pip freeze leaves it out
    assert {name: tested.get(name) for name in requirements("package") if name not in unfrozen} == {
        name: version for name, version in requirements("package").items() if name not in unfrozen
    }
