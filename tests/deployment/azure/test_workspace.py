"""Which workspace is meant where a name does not say."""

import json
from pathlib import Path

import pytest

from llama_endpoints.azure.workspace import Workspace, default
from llama_serving.errors import SetupError

JOB = {
    "AZUREML_ARM_SUBSCRIPTION": "job-sub",
    "AZUREML_ARM_RESOURCEGROUP": "job-group",
    "AZUREML_ARM_WORKSPACE_NAME": "job-ws",
}
CONFIG = {"subscription_id": "config-sub", "resource_group": "config-group", "workspace_name": "config-ws"}


@pytest.fixture
def az(tmp_path: Path) -> Path:
    """What `az login` and `az configure --defaults` leave; the second file begins with a byte order mark."""
    folder = tmp_path / "az"
    folder.mkdir()
    (folder / "config").write_text(
        "[cloud]\nname = AzureCloud\n[defaults]\ngroup = az-group\nworkspace = az-ws%\n"
    )
    accounts = [{"id": "other-sub", "isDefault": False}, {"id": "az-sub", "isDefault": True}]
    (folder / "azureProfile.json").write_text(json.dumps({"subscriptions": accounts}), encoding="utf-8-sig")
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "project" / "inner"
    folder.mkdir(parents=True)
    return folder


def test_a_job_has_its_own(az: Path, here: Path) -> None:
    (here / "config.json").write_text(json.dumps(CONFIG))
    assert default({**JOB, "AZURE_CONFIG_DIR": str(az)}, here) == Workspace("job-sub", "job-group", "job-ws")


@pytest.mark.parametrize("place", ["inner/config.json", "config.json", ".azureml/config.json"])
def test_a_config_here_or_above(az: Path, here: Path, place: str) -> None:
    path = here.parent / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(CONFIG))
    found = default({"AZURE_CONFIG_DIR": str(az)}, here)
    assert found == Workspace("config-sub", "config-group", "config-ws")


@pytest.mark.parametrize("text", ['{"model_type": "llama"}', "[]", "{", '{"workspace_name": "half"}'])
def test_a_checkpoints_config_is_none(az: Path, here: Path, text: str) -> None:
    (here / "config.json").write_text(text)
    assert default({"AZURE_CONFIG_DIR": str(az)}, here) == Workspace("az-sub", "az-group", "az-ws%")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config", "[defaults]\ngroup = g\n"),
        ("config", "no section"),
        ("config", ""),
        ("azureProfile.json", "{}"),
        ("azureProfile.json", '{"subscriptions": []}'),
    ],
)
def test_half_of_one_is_none(az: Path, here: Path, file: str, text: str) -> None:
    (az / file).write_text(text)
    with pytest.raises(
        SetupError, match=r"^No workspace given\. Set AZUREML_ARM_SUBSCRIPTION, .*workspaces/WORKSPACE/\.$"
    ):
        default({"AZURE_CONFIG_DIR": str(az)}, here)
