"""What Azure takes is no error: other people's legal files, and files that are not ours to know."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from llama_endpoints.cli.main import main
from llama_endpoints.validate.findings import INFORMATION, WARNINGS, Level, Rule
from llama_endpoints.validate.report import check

TAKEN: Final = Path(__file__).parent / "azure_takes"
WANTED: Final[Mapping[str, list[tuple[Rule, str]]]] = {
    "batch-deployment-documented-schema.yml": [
        (Rule.NOT_FOUND, "compute"), (Rule.NOT_FOUND, "endpoint_name"), (Rule.NOT_FOUND, "environment"),
        (Rule.IGNORED_FAILURES, "settings.error_threshold"),
    ],
    "custom-container.yml": [(Rule.NOT_CHECKED, "environment"), (Rule.NOT_FOUND, "endpoint_name")],
    "endpoint-given-later.yml": [(Rule.GIVEN_LATER, "endpoint_name"), (Rule.NOT_CHECKED, "model"), (Rule.NUMBER_TYPE, "instance_count"), (Rule.UNPINNED, "model")],
    "integer-version.yml": [],
    "job-without-type.yml": [(Rule.UNPINNED, "environment.image")],
    "no-code-mlflow.yml": [(Rule.NOT_CHECKED, "model"), (Rule.NOT_FOUND, "endpoint_name"), (Rule.NOT_FOUND, "model")],
    "pipeline-component.yml": [(Rule.NOT_CHECKED, "$schema")],
}  # fmt: skip


def found(path: Path) -> list[tuple[Rule, str]]:
    return sorted((one.rule, one.field) for one in check([path]).findings)


def write(folder: Path, text: str, name: str = "file.yml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["validate", *map(str, arguments)])


@pytest.mark.parametrize("name", WANTED)
def test_a_file_that_azure_takes_has_no_error(name: str) -> None:
    assert found(TAKEN / name) == sorted(WANTED[name])
    assert check([TAKEN / name]).count(Level.ERROR) == 0


def test_every_such_file_is_tested() -> None:
    assert {path.name for path in TAKEN.glob("*.yml")} == set(WANTED)


def test_no_rule_has_two_levels() -> None:
    assert not WARNINGS & INFORMATION


# --- not checked ----------------------------------------------------------------------------------

ELSES: Final = {
    "conda.yml": "name: x\nchannels: [conda-forge]\ndependencies:\n  - python=3.12\n  - pip: [numpy]\n",
    "ci.yml": "on: [push]\njobs:\n  on:\n    runs-on: x\n    runs-on: y\n",
    "compose.yaml": "services: {a: {image: b}}\n",
    "manifests.yaml": "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\nkind: Service\n",
    "playbook.yml": "- hosts: all\n  tasks: []\n",
    "chart.yaml": "name: {{ .Values.name }}-x\n",
    "tagged.yml": "a: !Ref b\n",
    "empty.yml": "",
    "pipeline.YAML": "$schema: https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json\ntype: pipeline\njobs: {}\n",
    "component.yml": "$schema: https://azuremlschemas.azureedge.net/latest/parallelComponent.schema.json\nname: a\n",
    "sweep.yml": "$schema: https://azuremlschemas.azureedge.net/latest/sweepJob.schema.json\ntype: sweep\n",
    "old.yml": "$schema: http://azureml/sdk-2-0/Schedule.json\nname: a\n",
    "nightly.yml": "$schema: https://azuremlschemas.azureedge.net/latest/batchDeployment.schema.json\nname: nightly\ntype: pipeline\n",
    "autoscale-of-machines.json": '{"$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#", "resources": []}',
}


@pytest.mark.parametrize("name", ELSES)
def test_a_file_of_somebody_else_s_in_a_folder_is_not_checked(name: str, tmp_path: Path) -> None:
    write(tmp_path, ELSES[name], name)
    report = check([tmp_path])
    assert [(one.rule, one.level) for one in report.findings] == [(Rule.NOT_CHECKED, Level.INFORMATION)]


def test_they_are_counted_and_change_no_exit_code(tmp_path: Path) -> None:
    for name, text in ELSES.items():
        write(tmp_path, text, name)
    for options in ((), ("--strict",)):
        done = run(*options, tmp_path)
        assert done.exit_code == 0
        assert done.output.endswith(f"{len(ELSES)} files: 0 errors, 0 warnings, {len(ELSES)} not checked.\n")
        assert ": not checked: " in done.output


def test_what_can_t_be_read_and_names_azure_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "$schema: https://azuremlschemas.azureedge.net/latest/model.schema.json\nname: [\n")
    assert [one.rule for one in check([tmp_path]).findings] == [Rule.YAML]


@pytest.mark.parametrize("name", sorted(set(ELSES) - {"empty.yml", "chart.yaml"}))
def test_a_file_of_somebody_else_s_that_is_named_is_not_checked_either(name: str, tmp_path: Path) -> None:
    assert [one.rule for one in check([write(tmp_path, ELSES[name], name)]).findings] == [Rule.NOT_CHECKED]


@pytest.mark.parametrize("name", ["empty.yml", "chart.yaml"])
def test_a_named_file_that_is_nothing_is_an_error(name: str, tmp_path: Path) -> None:
    assert [one.rule for one in check([write(tmp_path, ELSES[name], name)]).findings] == [Rule.YAML]


def test_a_secret_in_somebody_else_s_file_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "env: {TOKEN: hf_" + "a1B2" * 6 + "}\n", "ci.yml")
    assert [one.rule for one in check([path]).findings] == [Rule.SECRET]


def test_json_is_one_line_to_everybody(tmp_path: Path) -> None:
    schema = "$schema: https://azuremlschemas.azureedge.net/latest/model.schema.json"
    path = write(
        tmp_path, f'{schema}\nname: a\nversion: "1"\npath: https://x/y\n"a\\u2028b\\u2029c\\x85d": 1\n'
    )
    done = run("--json", path)
    line = done.stdout.removesuffix("\n")
    assert line.splitlines() == [line]
    found = json.loads(line)
    assert (found["rule"], found["field"]) == ("unknown-field", "a\u2028b\u2029c\x85d")


def test_json_says_what_is_not_checked(tmp_path: Path) -> None:
    done = run("--json", write(tmp_path, "a: b\n"))
    assert done.exit_code == 0
    (one,) = map(json.loads, done.stdout.splitlines())
    assert (one["level"], one["rule"], one["field"]) == ("information", "not-checked", "$schema")


@pytest.mark.parametrize(
    "host",
    [
        "azuremlschemas.azureedge.net/latest",
        "azuremlsdk2.blob.core.windows.net/latest",
        "azuremlschemas.azureedge.net/2024.1",
    ],
)
def test_a_schema_is_known_by_its_name_at_each_of_azures_hosts(host: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"$schema: https://{host}/batchEndpoint.schema.json\nname: a_b\n")
    assert found(path) == [(Rule.NAME, "name")]


# --- what a scoring script needs --------------------------------------------------------------------

KIND: Final = {"online": "managedOnlineDeployment", "batch": "modelBatchDeployment"}
SCRIPTS: Final = {
    "online": "def init():\n    pass\n\ndef run(data):\n    return data\n",
    "batch": "def init():\n    pass\n\ndef run(mini_batch):\n    return mini_batch\n",
}
RUNTIME: Final = {"online": "azureml-inference-server-http==1.5.1", "batch": "azureml-core"}


def deployment(folder: Path, way: str, script: str | None = None, conda: str | None = None) -> Path:
    """A deployment of somebody else's, in which nothing is wrong but what the script or the conda file brings."""
    write(folder, SCRIPTS[way] if script is None else script, "code/score.py")
    if conda != "":
        write(
            folder, conda or f"dependencies:\n  - python=3.12\n  - pip:\n      - {RUNTIME[way]}\n", "conda.yml"
        )
    of_way = {
        "online": "instance_type: Standard_DS3_v2\n",
        "batch": "type: model\ncompute: azureml:cpus\nsettings: {mini_batch_size: 1, error_threshold: 0, retry_settings: {timeout: 600}}\n",
    }
    return write(
        folder,
        f"$schema: https://azuremlschemas.azureedge.net/latest/{KIND[way]}.schema.json\nname: blue\nendpoint_name: churn\nmodel: azureml:churn:1\n"
        f"environment: {{image: 'ubuntu:24.04', conda_file: conda.yml}}\ncode_configuration: {{code: code, scoring_script: score.py}}\n{of_way[way]}",
        "deployment.yml",
    )  # fmt: skip


def wrong(path: Path) -> list[tuple[Rule, str, str]]:
    return [
        (one.rule, one.field, one.message) for one in check([path]).findings if one.rule is not Rule.NOT_FOUND
    ]


@pytest.mark.parametrize("way", KIND)
def test_a_script_with_its_runtime_is_fine(way: str, tmp_path: Path) -> None:
    assert wrong(deployment(tmp_path, way)) == []


@pytest.mark.parametrize(
    ("way", "conda", "says"),
    [
        ("online", "dependencies: [python=3.12, {pip: [numpy]}]\n", "does not install azureml-inference-server-http"),
        ("batch", "dependencies: [python=3.12, {pip: [azureml-inference-server-http]}]\n", "does not install azureml-core"),
        ("online", "dependancies: [python=3.12]\n", "did you mean dependancies?"),
        ("online", "dependencies: python=3.12\n", "no list of dependencies"),
        ("online", "dependencies: [python\n", "not YAML in its line 2"),
        ("batch", "- python\n", "a mapping with dependencies"),
        ("online", "", "must be a file"),
    ],
)  # fmt: skip
def test_a_conda_file_that_brings_no_runtime_is_the_one_finding(
    way: str, conda: str, says: str, tmp_path: Path
) -> None:
    ((rule, field, message),) = wrong(deployment(tmp_path, way, conda=conda))
    assert field == "environment.conda_file"
    assert rule is (Rule.PATH if conda == "" else Rule.CONDA)
    assert says in message


@pytest.mark.parametrize(
    "line",
    [
        "azureml-defaults",
        "'azureml_inference_server_http>=1.4'",
        "conda-forge::azureml-defaults=1.60",
        "-r requirements.txt",
    ],
)
def test_a_runtime_may_come_in_other_ways(line: str, tmp_path: Path) -> None:
    assert wrong(deployment(tmp_path, "online", conda=f"dependencies:\n  - pip:\n      - {line}\n")) == []


@pytest.mark.parametrize(
    ("imports", "packages", "missing"),
    [
        ("import torch", "numpy", "torch"), ("from sklearn.svm import SVC", "numpy", "sklearn"),
        ("import torch", "torchvision", ""), ("from sklearn import svm", "scikit-learn==1.5", ""), ("import numpy, json, os", "pandas", ""),
        ("import pandas", "mlflow", ""),
        ("import pandas", "", "pandas"),
        ("import helper", "pandas", ""), ("import cv2", "opencv-python-headless", ""),
    ],
)  # fmt: skip
def test_an_import_that_no_package_looks_like(
    imports: str, packages: str, missing: str, tmp_path: Path
) -> None:
    write(tmp_path, "", "code/helper.py")
    conda = f"dependencies: [pip, {{pip: [azureml-defaults{packages and ', '}{packages}]}}]\n"
    found = wrong(deployment(tmp_path, "online", script=f"{imports}\n{SCRIPTS['online']}", conda=conda))
    assert [(rule, f"has no package for {missing}," in message) for rule, _, message in found] == (
        [(Rule.IMPORT, True)] if missing else []
    )


@pytest.mark.parametrize(
    ("way", "script", "says"),
    [
        ("online", "def init(): pass\ndef run(data, context): return data\n", "requires context besides data"),
        ("online", "def init(model_dir): pass\ndef run(data): return data\n", "requires model_dir"),
        ("online", "def init(): pass\ndef run(): return 1\n", "takes no argument"),
        ("online", "def init(): pass\ndef run(*data): return 1\n", "*args or **kwargs"),
        ("online", "def init(): pass\nasync def run(data): return data\n", "is async"),
        ("online", "def init(): pass\n@rawhttp\ndef run(request, more): return 1\n", "requires more besides request"),
        ("online", "def run(data): return data\n", "defines no init()"),
        ("batch", "def init(): pass\ndef run(files): print(files)\n", "returns nothing"),
        ("batch", "def init(): pass\ndef run(files):\n    def inner(): return files\n    return None\n", "returns nothing"),
        ("batch", "def init(): pass\ndef run(files, model): return files\n", "also requires model"),
        ("batch", "async def init(): pass\ndef run(files): return files\n", "is async"),
    ],
)  # fmt: skip
def test_a_script_that_azure_can_t_call(way: str, script: str, says: str, tmp_path: Path) -> None:
    ((rule, field, message),) = wrong(deployment(tmp_path, way, script=script))
    assert (rule, field) == (Rule.SCRIPT, "code_configuration.scoring_script")
    assert says in message


@pytest.mark.parametrize(
    ("way", "script"),
    [
        ("online", "def init(): pass\ndef run(data, request_headers): return data\n"),
        ("online", "def init(folder='x'): pass\ndef run(data, more=1): return data\n"),
        ("online", "def init(): pass\n@input_schema('a', x)\n@input_schema('b', x)\ndef run(a, b): return a\n"),
        ("online", "from entry import *\n"),
        ("online", "try:\n    from fast import init, run\nexcept ImportError:\n    def init(): pass\n    def run(data): return data\n"),
        ("online", "init, run = print, print\n"),
        ("online", "init: object = print\nrun: object = print\n"),
        ("batch", "def init(): pass\ndef run(files, context): return files\n"),
        ("batch", "def init(): pass\ndef run(files):\n    if files:\n        return files\n"),
    ],
)  # fmt: skip
def test_a_script_that_azure_can_call(way: str, script: str, tmp_path: Path) -> None:
    conda = "dependencies: [{pip: [azureml-defaults, entry, fast]}]\n"
    assert wrong(deployment(tmp_path, way, script=script, conda=conda)) == []


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("code: code", "code: cod", "code_configuration.code"),
        ("score.py", "scores.py", "code_configuration.scoring_script"),
    ],
)
def test_a_wrong_path_gives_one_finding(old: str, new: str, field: str, tmp_path: Path) -> None:
    path = deployment(tmp_path, "online")
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert [(rule, one) for rule, one, _ in wrong(path)] == [(Rule.CODE, field)]
