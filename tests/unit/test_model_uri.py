"""Azure ML's names of a model: every form, Azure's own parsers as the oracle, and the command that downloads it."""

import re
import shlex

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deployment.cli import main
from deployment.model_uri import ModelUri, refuse
from llama_serving.errors import SetupError

LONG = "azureml://subscriptions/11-22/resourcegroups/my.group/workspaces/ws/"
ARM = "azureml:/subscriptions/11-22/resourceGroups/my.group/providers/Microsoft.MachineLearningServices/workspaces/ws/"
WHERE = {"subscription": "11-22", "group": "my.group", "workspace": "ws"}
IN_WS = ["--workspace-name", "ws", "--resource-group", "my.group", "--subscription", "11-22"]
BLOB = "https://ACCOUNT.blob.core.windows.net/CONTAINER"

MODEL = ["az", "ml", "model", "download", "--name", "code-llama", "--version"]
FORMS = [
    ("azureml:code-llama:3", "model", {"name": "code-llama", "version": "3"}, [*MODEL, "3"], []),
    ("azureml:code-llama@latest", "model", {"name": "code-llama", "label": "latest"}, [*MODEL, "VERSION"], []),
    (
        "azureml://registries/azureml-meta/models/code-llama/versions/12",
        "registry",
        {"registry": "azureml-meta", "name": "code-llama", "version": "12"},
        [*MODEL, "12"],
        ["--registry-name", "azureml-meta"],
    ),
    (
        "azureml://registries/azureml-meta/models/code-llama/labels/latest",
        "registry",
        {"registry": "azureml-meta", "name": "code-llama", "label": "latest"},
        [*MODEL, "VERSION"],
        ["--registry-name", "azureml-meta"],
    ),
    ("azureml://models/code-llama/versions/3", "model", {"name": "code-llama", "version": "3"}, [*MODEL, "3"], []),
    (
        f"{LONG}models/code-llama/versions/3",
        "model",
        {**WHERE, "name": "code-llama", "version": "3"},
        [*MODEL, "3"],
        IN_WS,
    ),
    (
        f"{ARM}models/code-llama/versions/3",
        "model",
        {**WHERE, "name": "code-llama", "version": "3"},
        [*MODEL, "3"],
        IN_WS,
    ),
    (
        "azureml://datastores/store_1/paths/models/7b-hf/",
        "datastore",
        {"datastore": "store_1", "path": "models/7b-hf/"},
        ["azcopy", "copy", "--recursive", f"{BLOB}/models/7b-hf/", "build"],
        None,
    ),
    (
        f"{LONG}datastores/store_1/paths/7b",
        "datastore",
        {**WHERE, "datastore": "store_1", "path": "7b"},
        ["azcopy", "copy", "--recursive", f"{BLOB}/7b", "build"],
        None,
    ),
    (
        "azureml://jobs/calm_pear_1/outputs/model",
        "job",
        {"job": "calm_pear_1", "output": "model"},
        ["az", "ml", "job", "download", "--name", "calm_pear_1", "--output-name", "model"],
        [],
    ),
    (
        f"{LONG}jobs/calm_pear_1/outputs/model/paths/sub/folder",
        "job",
        {**WHERE, "job": "calm_pear_1", "output": "model", "path": "sub/folder"},
        ["az", "ml", "job", "download", "--name", "calm_pear_1", "--output-name", "model"],
        IN_WS,
    ),
]  # fmt: skip
BAD = [
    "azureml:", "azureml:code-llama", "azureml::3", "azureml:a/b:3", "azureml:a:3:4", "azureml:a:b c", "azureml:a@",
    "azureml://", "azureml://registries/r/models/m", "azureml://registries/r/models/m/versions/", "azureml://models/m",
    "azureml://registries/r/models/m/version/1", "azureml://registries/r/environments/m/versions/1",
    "azureml://datastores/d", "azureml://datastores/d/paths/", "azureml://datastores/d/path/x",
    "azureml://subscriptions/s/workspaces/w/models/m/versions/1", "azureml:a:1\n",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "parts", "command", "where"), FORMS)
def test_every_form(
    text: str, kind: str, parts: dict[str, str], command: list[str], where: list[str] | None
) -> None:
    uri = ModelUri.parse(text)
    assert (uri.kind, dict(uri.parts)) == (kind, parts)
    expected = command if where is None else [*command, "--download-path", "build", *where]
    assert shlex.split(uri.download("build")) == expected


@pytest.mark.parametrize("text", BAD)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(
        SetupError, match=r"names no model in Azure\. Allowed are azureml:NAME:VERSION, azureml:NAME@LABEL,"
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
    refuse(text)


@pytest.mark.parametrize(
    "command",
    [
        ["package", "--checkpoint", "{}", "--output", "out"],
        ["prompt", "--checkpoint", "{}", "--request", "-"],
        ["serve", "--model", "{}"],
        ["score", "--model", "{}", "--request", "-"],
        ["batch", "--model", "{}", "--input", "in", "--output", "out"],
        ["batch", "--model", "{}", "--input", "in", "--output", "out", "--as-azure", "x.yml"],
    ],
    ids=lambda command: " ".join(command[:1] + command[7:]),
)
def test_every_command_says_how_to_get_it(command: list[str]) -> None:
    text = "azureml://registries/r/models/m/labels/latest"
    done = CliRunner().invoke(main, [text if word == "{}" else word for word in command], input="{}")
    assert done.exit_code == 2
    assert done.output == (
        f"Error: {text} lies in Azure, and the folder of a model here is needed. Run `az ml model download --name m "
        "--version VERSION --download-path build/from-azure --registry-name r` (`az ml model show --name m --label latest "
        "--registry-name r` says what stands for the words in capitals), and name the folder that it makes.\n"
    )
