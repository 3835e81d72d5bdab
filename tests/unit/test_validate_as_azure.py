"""What Azure takes is no error: other people's legal files, and files that are not ours to know."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from deployment.cli import main
from deployment.validate.check import check
from deployment.validate.findings import INFORMATION, WARNINGS, Level, Rule

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
    "component.yml": "$schema: https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json\nname: a\n",
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


@pytest.mark.parametrize("name", ["empty.yml", "playbook.yml", "manifests.yaml", "chart.yaml"])
def test_a_named_file_that_azure_can_t_read_is_an_error(name: str, tmp_path: Path) -> None:
    assert [one.rule for one in check([write(tmp_path, ELSES[name], name)]).findings] == [Rule.YAML]


def test_a_secret_in_somebody_else_s_file_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "env: {TOKEN: hf_" + "a1B2" * 6 + "}\n", "ci.yml")
    assert [one.rule for one in check([path]).findings] == [Rule.SECRET]


def test_json_is_one_line_to_everybody(tmp_path: Path) -> None:
    schema = "$schema: https://azuremlschemas.azureedge.net/latest/model.schema.json"
    path = write(tmp_path, f'{schema}\nname: "a\\u2028b\\u2029c\\x85d"\nversion: "1"\npath: https://x/y\n')
    done = run("--json", path)
    line = done.stdout.removesuffix("\n")
    assert line.splitlines() == [line]
    assert json.loads(line)["rule"] == "name"


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
