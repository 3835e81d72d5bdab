"""A model that Azure names becomes a folder here: azure-ai-ml's and azure-storage's real clients against an Azure on loopback."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from llama_endpoints.download.azureml_cache import CACHE, resolve
from llama_endpoints.download.resolve import folder_of
from llama_endpoints.download.transfer import alone
from llama_serving.errors import SetupError
from tests.support.fake_azure.management import GROUP, IN_REGISTRY, REGISTRY, SUBSCRIPTION, WORKSPACE
from tests.support.fake_azure.world import ACCOUNT, CONTAINER, KEY, SECRET, FakeAzure, fake_azure
from tests.support.hubs import BreakOff, Status

FOLDER = "models/tiny"
FILES = {
    "MLmodel": b"flavors:",
    "artifacts/llama/config.json": b"{}",
    "artifacts/llama/empty.txt": b"",
    "artifacts/llama/tokenizer.json": b"{...}",
    "artifacts/llama/model.safetensors": bytes(range(256)) * 40,
}
SIZE = sum(map(len, FILES.values()))
UNWANTED = {"pytorch_model.bin": b"a pickle", "artifacts/python_model.pkl": b"another"}
IN_WORKSPACE = f"azureml://subscriptions/{SUBSCRIPTION}/resourcegroups/{GROUP}/workspaces/{WORKSPACE}"
OF_REGISTRY = f"azureml://registries/{REGISTRY}/models/tiny"
MODEL = f"{IN_WORKSPACE}/models/tiny/versions/3"
STORE = f"{IN_WORKSPACE}/datastores/store/paths/{FOLDER}"
NOWHERE = f"https://{ACCOUNT}.blob.core.windows.net/{CONTAINER}"


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAzure]:
    with fake_azure(tmp_path) as started:
        started.put(FOLDER, {**FILES, **UNWANTED})
        started.add_datastore()
        started.register("tiny", "2", "models/older")
        started.register("tiny", "3", FOLDER)
        started.register("tiny", "7", FOLDER, where=IN_REGISTRY)
        given = started.environment()
        for name in os.environ.keys() - given.keys():
            monkeypatch.delenv(name)
        for name, value in {**given, CACHE: str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield started


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def refused(name: str) -> str:
    with pytest.raises(SetupError) as error:
        resolve(name)
    assert "\n" not in str(error.value)
    assert not any(secret in str(error.value) for secret in ("sig=", KEY, SECRET))
    return str(error.value)


class TestForms:
    @pytest.mark.parametrize(
        "name",
        [
            f"{OF_REGISTRY}/versions/7",
            f"{OF_REGISTRY}/labels/latest",
            MODEL,
            MODEL.replace("versions/3", "labels/latest"),
            f"azureml:/{MODEL.removeprefix('azureml://').replace('workspaces', 'providers/Microsoft.MachineLearningServices/workspaces')}",
            STORE,
            f"{STORE}/",
        ],
    )
    def test_each_becomes_a_folder(self, azure: FakeAzure, name: str) -> None:
        folder = resolve(name)
        assert content(folder) == FILES
        assert folder.name == "tiny"
        assert sum(azure.sent.values()) == SIZE

    @pytest.mark.parametrize(
        "name", ["azureml:tiny:3", "azureml:tiny@latest", f"azureml://datastores/store/paths/{FOLDER}"]
    )
    def test_the_workspace_may_be_said_elsewhere(
        self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        assert refused(name).startswith("No workspace given. Set AZUREML_ARM_SUBSCRIPTION, ")
        monkeypatch.setenv("AZUREML_ARM_SUBSCRIPTION", SUBSCRIPTION)
        monkeypatch.setenv("AZUREML_ARM_RESOURCEGROUP", GROUP)
        monkeypatch.setenv("AZUREML_ARM_WORKSPACE_NAME", WORKSPACE)
        assert content(resolve(name)) == FILES

    def test_a_jobs_output_is_refused(self) -> None:
        assert refused("azureml://jobs/pear/outputs/model") == (
            "azureml://jobs/pear/outputs/model is a job's output, which cannot be downloaded here. Run `az ml job download "
            "--name pear --output-name model --download-path build/from-azure`, and pass the resulting folder; or "
            "register the output as a model."
        )

    def test_a_checkpoint_may_lie_deeper(self, azure: FakeAzure) -> None:
        assert folder_of(STORE).parts[-2:] == ("artifacts", "llama")
        azure.put(FOLDER, {"config.json": b"{}"})
        assert folder_of(STORE).name == "tiny"


@pytest.mark.parametrize(
    ("credentials", "kind"),
    [
        ("AccountKey", "AzureBlob"),
        ("Sas", "AzureBlob"),
        ("ServicePrincipal", "AzureBlob"),
        ("None", "AzureBlob"),
        ("AccountKey", "AzureDataLakeGen2"),
    ],
)
def test_whatever_a_datastore_keeps_is_used(azure: FakeAzure, credentials: str, kind: str) -> None:
    azure.add_datastore("store", credentials, kind)
    assert content(resolve(STORE)) == FILES
    if credentials != "None":  # (who may not read the storage but by what the datastore keeps)
        assert any(path.endswith("/listSecrets") for _, _, path in azure.asked)


class TestCache:
    @pytest.mark.parametrize("name", [f"{OF_REGISTRY}/versions/7", MODEL])
    def test_a_version_is_asked_for_once(self, azure: FakeAzure, name: str) -> None:
        folder = resolve(name)
        azure.asked.clear()
        assert resolve(name) == folder
        assert azure.asked == []

    def test_a_label_costs_a_question(self, azure: FakeAzure) -> None:
        folder = resolve(MODEL)
        azure.sent.clear()
        assert resolve(MODEL.replace("versions/3", "labels/latest")) == folder
        azure.register("tiny", "4", FOLDER)
        assert resolve(MODEL.replace("versions/3", "labels/latest")) != folder

    def test_a_datastore_is_listed_each_time(self, azure: FakeAzure) -> None:
        folder = resolve(STORE)
        azure.sent.clear()
        assert resolve(STORE) == folder
        assert azure.sent == {}
        azure.put(FOLDER, {"MLmodel": b"changed:"})
        other = resolve(STORE)
        assert content(other) == {**FILES, "MLmodel": b"changed:"}
        assert content(folder) == FILES, "whoever serves from it goes on"

    def test_a_prompt_needs_no_weights(self, azure: FakeAzure) -> None:
        folder = resolve(MODEL, weights=False)
        assert content(folder).keys() == {name for name in FILES if not name.endswith(".safetensors")}
        assert resolve(MODEL, weights=False) == folder
        whole = resolve(MODEL)
        assert content(whole) == FILES
        assert resolve(MODEL, weights=False) == whole

    def test_two_processes(self, azure: FakeAzure, tmp_path: Path) -> None:
        azure.faults["model.safetensors"] = [Status(404)]
        refused(MODEL)
        (stage,) = (path for path in (tmp_path / "cache").rglob(".*") if path.is_dir())
        with alone(stage, ""):
            assert refused(MODEL) == f"Another process is downloading to {stage}. Wait for it."
        assert content(resolve(MODEL)) == FILES
        assert not stage.exists()

    def test_another_process_was_faster(self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = resolve(STORE)
        monkeypatch.setattr(Path, "is_dir", Late(folder.parent))
        assert resolve(STORE) == folder
        assert not folder.parent.with_name(f".{folder.parent.name}").exists()

    def test_what_was_changed_meanwhile_leaves_nothing(self, azure: FakeAzure, tmp_path: Path) -> None:
        azure.faults["model.safetensors"] = [Status(404)]
        refused(MODEL)
        azure.put(FOLDER, {"artifacts/llama/config.json": b"[]"})
        assert content(resolve(MODEL)) == {**FILES, "artifacts/llama/config.json": b"[]"}
        assert not list((tmp_path / "cache").rglob(".*"))

    def test_by_default_it_is_the_users(
        self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv(CACHE)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        assert resolve(MODEL).is_relative_to(tmp_path / "home" / "llama-endpoints" / "azure")

    def test_a_disk_without_room(self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        assert (
            f"has 1,000 bytes free, but {SIZE:,} are needed. Free some space, or set {CACHE} to a"
            in refused(MODEL)
        )
        assert azure.sent == {}

    def test_a_place_that_can_not_be_written(self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CACHE, "/proc/none")
        assert "Cannot write " in refused(MODEL)


class Late:
    """`Path.is_dir` that sees a folder only when it looks twice."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.looked, self.real = folder, False, Path.is_dir

    def __get__(self, path: Path, _: type) -> "object":
        return lambda: self.look(path)

    def look(self, path: Path) -> bool:
        if path == self.folder and not self.looked:
            self.looked = True
            return False
        return self.real(path)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            (MODEL.replace("/3", "/9"), f"{MODEL.replace('/3', '/9')} not found. Of tiny there is version 3, 2."),
            (MODEL.replace("versions/3", "labels/best"), f"{MODEL.replace('versions/3', 'labels/best')} not found. Of tiny there"),
            (MODEL.replace("tiny", "huge"), "List what exists with"),
            (f"{OF_REGISTRY}/versions/1", f"{OF_REGISTRY}/versions/1 not found. Of tiny there is version 7."),
            (OF_REGISTRY.replace(REGISTRY, "other") + "/versions/1", "List what exists with `az ml model list --name tiny --registry-name other`"),
            (STORE.replace("store/", "shop/"), "`az ml datastore list --workspace-name ws --resource-group my.group "),
            (f"{IN_WORKSPACE}x/models/tiny/versions/3", " not found"),
            (STORE.replace("tiny", "none"), f"Folder models/none/ not found in {NOWHERE}. A folder with files is needed: "),
            (f"{STORE}/MLmodel", f"Folder {FOLDER}/MLmodel/ not found in {NOWHERE}. A folder with files is needed: "),
            ("azureml:tiny", "azureml:tiny is not a model in Azure. Allowed are "),
        ],
    )  # fmt: skip
    def test_what_is_not_there(self, azure: FakeAzure, name: str, sentence: str) -> None:
        assert sentence in refused(name)

    @pytest.mark.parametrize(
        ("end", "status", "sentence"),
        [
            ("versions/3", 401, f"Azure authentication failed for {MODEL}: (Because) It said Because. Run `az login`"),
            ("versions/3", 403, f"Permission denied for {MODEL}: (Because) It said Because. Ask for the role AzureML Data Scientist"),
            ("listSecrets", 403, f"Permission denied for {MODEL}: (Because) It said Because. Ask for the role AzureML Data Scientist"),
            ("versions/3", 409, f"Azure answered 409 for {MODEL}: (Because) It said Because. Try again later."),
            ("list", 403, f"Permission denied for {NOWHERE} (403 Because). Ask for the role Storage Blob Data Reader on the storage"),
            ("list", 400, f"{NOWHERE} refused the folder (400 Because)."),
            ("MLmodel", 404, f"MLmodel no longer exists in {NOWHERE} (Because). Run the same command again."),
            ("MLmodel", 412, "MLmodel was changed in Azure while it was being downloaded. Run the same command again."),
        ],
    )  # fmt: skip
    def test_what_azure_refuses(self, azure: FakeAzure, end: str, status: int, sentence: str) -> None:
        azure.faults[end] = [Status(status)]
        assert sentence in refused(MODEL)
        assert content(resolve(MODEL)) == FILES

    def test_nobody_is_logged_in(self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "AzureCliCredential")
        monkeypatch.setenv("PATH", "/nowhere")
        assert refused(MODEL).startswith(f"Azure authentication failed for {MODEL}: ")
        assert "Run `az login`" in refused(MODEL)

    def test_nobody_is_logged_in_at_the_storage(
        self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        azure.add_datastore("store", "ServicePrincipal")
        monkeypatch.setattr("tests.support.fake_azure.world.SECRET", "another")
        assert refused(MODEL).startswith("Azure Storage authentication failed: ")

    def test_azure_can_not_be_reached(self, azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llama_endpoints.download.azureml_assets._RETRIES", 0)
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        assert refused(MODEL).startswith(f"Cannot reach Azure for {MODEL}: ")
        assert refused(MODEL).endswith("Check the network and its proxy (HTTPS_PROXY).")

    @pytest.mark.parametrize("kind", ["AzureFile", "AzureDataLakeGen1"])
    def test_another_sort_of_datastore(self, azure: FakeAzure, kind: str) -> None:
        place = {"fileShareName": "share"} if kind == "AzureFile" else {"storeName": "lake"}
        azure.add_datastore("store", "None", kind, **place)
        assert f"Datastore store has the type {kind}. Allowed are AzureBlob and AzureDataLakeGen2" in refused(
            MODEL
        )

    def test_nothing_goes_in_the_clear(self, azure: FakeAzure) -> None:
        azure.add_datastore("store", protocol="http")
        assert refused(MODEL) == (
            f"http://{ACCOUNT}.blob.core.windows.net must use https: nothing is sent unencrypted."
        )

    @pytest.mark.parametrize("name", ["../up", "a//b", "./a", "a\\b", "a\x7fb"])
    def test_a_name_that_can_not_be_a_files(self, azure: FakeAzure, name: str) -> None:
        azure.put(FOLDER, {name: b"-"})
        assert "is impossible on this machine. Rename the file in Azure." in refused(MODEL)

    def test_a_model_that_is_no_folder_of_a_datastore(self, azure: FakeAzure) -> None:
        azure.management.models[next(iter(azure.management.models))]["tiny"]["3"] = (
            "azureml://jobs/pear/outputs/model"
        )
        assert refused(MODEL).endswith("which is not a datastore folder. Register a folder as the model.")


def test_folders_of_a_data_lake_are_no_files(azure: FakeAzure) -> None:
    azure.put(FOLDER, {"artifacts": b""}, metadata={"hdi_isfolder": "true"})
    assert content(resolve(MODEL)) == FILES


class TestPatience:
    @pytest.mark.parametrize(("end", "status"), [("versions/3", 429), ("listSecrets", 503)])
    def test_azures_own_client_asks_again(self, azure: FakeAzure, end: str, status: int) -> None:
        azure.faults[end] = [Status(status, {"Retry-After": "1"})]
        assert content(resolve(MODEL)) == FILES
        assert sum(path.endswith(end) for _, _, path in azure.asked) == 2

    def test_the_storage_is_waited_for(self, azure: FakeAzure, capsys: pytest.CaptureFixture[str]) -> None:
        azure.faults["list"] = [Status(429, {"Retry-After": "2"})]
        assert content(resolve(MODEL)) == FILES
        assert f"{MODEL}: Azure answered 429; retrying in 2 s." in capsys.readouterr().err

    def test_no_signature_is_told(self, azure: FakeAzure, capsys: pytest.CaptureFixture[str]) -> None:
        azure.faults["list"] = [BreakOff(5)]
        assert content(resolve(f"{OF_REGISTRY}/versions/7")) == FILES
        told = capsys.readouterr().err
        assert "retrying in 1 s." in told
        assert "sig=" not in told
