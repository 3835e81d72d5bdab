"""Azure ML's names of a model: every form, Azure's own parsers as the oracle, and who takes them."""

import re
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli.main import main
from llama_endpoints.download.azureml_cache import resolve
from llama_endpoints.download.azureml_uri import ModelUri
from llama_endpoints.spark import job
from llama_serving.errors import SetupError

LONG = "azureml://subscriptions/11-22/resourcegroups/my.group/workspaces/Ws/"
ARM = "azureml:/subscriptions/11-22/resourceGroups/my.group/providers/Microsoft.MachineLearningServices/workspaces/Ws/"
WHERE = {"subscription": "11-22", "group": "my.group", "workspace": "Ws"}
IN_WS = "subscriptions/11-22/resourcegroups/my.group/workspaces/ws/"
OF_MODELS = "az ml model list --name code-llama"
AT_WS = "--workspace-name Ws --resource-group my.group --subscription 11-22"

# Each with its kind, its parts, its place in a folder of models, and the command that lists what is beside it.
FORMS = [
    ("azureml:code-llama:3", "model", {"name": "code-llama", "version": "3"}, "models/code-llama/versions/3", OF_MODELS),
    ("azureml:code-llama@latest", "model", {"name": "code-llama", "label": "latest"}, "models/code-llama/labels/latest", OF_MODELS),
    (
        "azureml://registries/Company/models/code-llama/versions/12",
        "registry",
        {"registry": "Company", "name": "code-llama", "version": "12"},
        "registries/company/models/code-llama/versions/12",
        f"{OF_MODELS} --registry-name Company",
    ),
    (
        "azureml://registries/azureml-meta/models/code-llama/labels/latest",
        "registry",
        {"registry": "azureml-meta", "name": "code-llama", "label": "latest"},
        "registries/azureml-meta/models/code-llama/labels/latest",
        f"{OF_MODELS} --registry-name azureml-meta",
    ),
    (
        "azureml://models/code-llama/versions/3",
        "model",
        {"name": "code-llama", "version": "3"},
        "models/code-llama/versions/3",
        OF_MODELS,
    ),
    (
        f"{LONG}models/code-llama/versions/3",
        "model",
        {**WHERE, "name": "code-llama", "version": "3"},
        f"{IN_WS}models/code-llama/versions/3",
        f"{OF_MODELS} {AT_WS}",
    ),
    (
        f"{ARM}models/code-llama/versions/3",
        "model",
        {**WHERE, "name": "code-llama", "version": "3"},
        f"{IN_WS}models/code-llama/versions/3",
        f"{OF_MODELS} {AT_WS}",
    ),
    (
        "azureml://datastores/store_1/paths/models/7b-hf/",
        "datastore",
        {"datastore": "store_1", "path": "models/7b-hf/"},
        "datastores/store_1/941417879b7fd913",
        "az ml datastore list",
    ),
    (
        f"{LONG}datastores/store_1/paths/7b",
        "datastore",
        {**WHERE, "datastore": "store_1", "path": "7b"},
        f"{IN_WS}datastores/store_1/925a7bf1cc6e3b9a",
        f"az ml datastore list {AT_WS}",
    ),
]  # fmt: skip
JOBS = [
    (
        "azureml://jobs/calm_pear_1/outputs/model",
        {"job": "calm_pear_1", "output": "model"},
        "az ml job download --name calm_pear_1 --output-name model --download-path build",
    ),
    (
        f"{LONG}jobs/calm_pear_1/outputs/model/paths/sub/folder",
        {**WHERE, "job": "calm_pear_1", "output": "model", "path": "sub/folder"},
        f"az ml job download --name calm_pear_1 --output-name model --download-path build {AT_WS}",
    ),
]
BAD = [
    "azureml:", "azureml:code-llama", "azureml::3", "azureml:a/b:3", "azureml:a:3:4", "azureml:a:b c", "azureml:a@",
    "azureml://", "azureml://registries/r/models/m", "azureml://registries/r/models/m/versions/", "azureml://models/m",
    "azureml://registries/r/models/m/version/1", "azureml://registries/r/environments/m/versions/1",
    "azureml://datastores/d", "azureml://datastores/d/paths/", "azureml://datastores/d/path/x",
    "azureml://subscriptions/s/workspaces/w/models/m/versions/1", "azureml:a:1\n",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "parts", "place", "listing"), FORMS)
def test_every_form(text: str, kind: str, parts: dict[str, str], place: str, listing: str) -> None:
    uri = ModelUri.parse(text)
    assert (uri.kind, dict(uri.parts)) == (kind, parts)
    assert (str(uri.place), uri.listing()) == (place, listing)
    assert ModelUri.parse(str(uri)) == uri


@pytest.mark.parametrize(("text", "parts", "command"), JOBS)
def test_outputs_of_jobs(text: str, parts: dict[str, str], command: str) -> None:
    uri = ModelUri.parse(text)
    assert (uri.kind, dict(uri.parts), uri.job_download("build")) == ("job", parts, command)


def test_each_has_a_place_of_its_own() -> None:
    paths = ["a", "a/b", "a-b", "b/a", "A"]
    places = {ModelUri.parse(f"azureml://datastores/d/paths/{path}").place for path in paths}
    assert len(places) == len(paths)
    assert ModelUri.parse("azureml://datastores/d/paths/a/").place in places


@pytest.mark.parametrize(
    ("path", "title"),
    [("7b", "7b"), ("m/7b-hf/", "7b-hf"), ("m/ü b".replace(" ", "%"), "ü-b"), ("..", "model"), (".x", "x")],
)
def test_a_title_is_a_files_name(path: str, title: str) -> None:
    assert ModelUri.parse(f"azureml://datastores/d/paths/{path}").title == title


def test_what_is_not_said_is_filled_in() -> None:
    short = ModelUri.parse("azureml:code-llama@latest")
    assert short.needs_workspace
    full = short.in_workspace("11-22", "my.group", "Ws").of_version("3")
    assert full == ModelUri.parse(f"{LONG}models/code-llama/versions/3")
    assert not full.needs_workspace
    assert not ModelUri.parse("azureml://registries/r/models/m/versions/1").needs_workspace


@pytest.mark.parametrize("text", BAD)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(
        SetupError, match=r"is not a model in Azure\. Allowed are azureml:NAME:VERSION, azureml:NAME@LABEL,"
    ):
        ModelUri.parse(text)


@pytest.mark.filterwarnings("ignore::marshmallow.warnings.Marshmallow4Warning")
class TestAzuresOwn:
    """The client's own parsers say the same."""

    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def loaded() -> None:
        import azure.ai.ml  # noqa: F401

    @pytest.mark.parametrize("text", [text for text, kind, *_ in FORMS if kind == "datastore"])
    def test_datastores(self, text: str) -> None:
        from azure.ai.ml._utils._storage_utils import AzureMLDatastorePathUri

        theirs, ours = AzureMLDatastorePathUri(text), ModelUri.parse(text).parts
        assert (theirs.datastore, theirs.path) == (ours["datastore"], ours["path"])
        assert (theirs.workspace_name, theirs.resource_group) == (ours.get("workspace"), ours.get("group"))

    @pytest.mark.parametrize("text", [text for text, _, parts, *_ in FORMS if "version" in parts])
    def test_models(self, text: str) -> None:
        from azure.ai.ml._utils import _arm_id_utils as azures
        from azure.ai.ml.constants import _common as forms

        if text.startswith("azureml:code-llama"):
            theirs = azures.parse_prefixed_name_version(text.removeprefix("azureml:"))
        elif found := re.match(forms.ASSET_ID_REGEX_FORMAT, text) or re.match(
            forms.MODEL_ID_REGEX_FORMAT, text
        ):
            theirs = found.groups()[-2:]
        else:
            versioned = azures.AMLVersionedArmId(text.removeprefix("azureml:" if "providers" in text else ""))
            theirs = (versioned.asset_name, versioned.asset_version)
        ours = ModelUri.parse(text).parts
        assert theirs == (ours["name"], ours["version"])


@given(st.text(max_size=60).map("azureml:".__add__) | st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        uri = ModelUri.parse(text)
    except SetupError:
        return
    assert all(part and part in text for part in uri.parts.values())


@pytest.mark.parametrize("text", ["nano", "build/model", "./azureml:x:1", "/azureml:/x", ""])
def test_a_folder_is_none(text: str) -> None:
    assert resolve(text) == Path(text)


URI = "azureml://registries/r/models/m/labels/latest"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure is asked, and says no."""

    def no(uri: ModelUri) -> NoReturn:
        raise SetupError(f"Azure was asked for {uri}.")

    monkeypatch.setattr("llama_endpoints.download.azureml_assets.locate", no)


@pytest.mark.parametrize(
    "command",
    [
        ["package", "--checkpoint", URI, "--output", "out"],
        ["prompt", "--checkpoint", URI, "--request", "-"],
        ["serve", "--model", URI],
        ["score", "--model", URI, "--request", "-"],
        ["batch", "--model", URI, "--input", "in", "--output", "out"],
        ["batch", "--model", URI, "--input", "in", "--output", "out", "--as-azure", "x.yml"],
    ],
    ids=lambda command: " ".join(command[:1] + command[7:]),
)
@pytest.mark.usefixtures("asked")
def test_every_command_takes_one(command: list[str]) -> None:
    done = CliRunner().invoke(main, command, input="{}")
    assert (done.exit_code, done.output) == (2, f"Error: Azure was asked for {URI}.\n")


@pytest.mark.usefixtures("asked")
def test_the_job_for_spark_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["job.py", "--model", URI, "--input", "in", "--output", "out"])
    with pytest.raises(SystemExit, match=f"^--model: Azure was asked for {URI}.$"):
        job.main()
