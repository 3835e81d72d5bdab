"""`llama-endpoints deploy batch` and jobs: azure-ai-ml's real client against an Azure on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from tests.support.fake_azure.desk import BLUE, Desk, a_desk
from tests.support.fake_azure.world import ACCOUNT, CONTAINER

ENDPOINT = "code-llama-batch"
FILE = f"yaml/batch/{BLUE}.yml"
DEPLOY = ("deploy", "batch", FILE)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with a_desk(tmp_path, monkeypatch) as made:
        yield made


def default(desk: Desk) -> object:
    endpoint = desk.azure.resources.of("batchEndpoints", ENDPOINT)
    assert endpoint is not None
    return (endpoint["properties"].get("defaults") or {}).get("deploymentName")


def test_it_is_up_and_given_again_nothing_is_changed(desk: Desk) -> None:
    said = desk.run(*DEPLOY, "--dry-run").output.splitlines()
    assert [line.split(" ")[:2] for line in said[:-1]] == [
        ["=", "model"], ["+", "environment"], ["+", "compute"], ["+", "endpoint"], ["+", "deployment"], [">", "default"],
    ]  # fmt: skip
    done = desk.run(*DEPLOY)
    assert done.exit_code == 0, done.output
    assert default(desk) == BLUE
    changes = len(desk.azure.resources.changes)
    again = desk.run(*DEPLOY)
    assert all(line.startswith("= ") for line in again.output.splitlines()[:-1])
    assert len(desk.azure.resources.changes) == changes


def test_a_change_keeps_the_default_and_a_second_one_is_not_it(desk: Desk) -> None:
    assert desk.run(*DEPLOY).exit_code == 0
    desk.edit(FILE, "timeout: 86400", "timeout: 43200")
    desk.edit("yaml/batch/endpoint.yml", "Code Llama over files of rows.", "Another one.")
    said = desk.run(*DEPLOY).output
    assert "description Code Llama over files of rows. -> Another one." in said
    assert "retry_settings.timeout 86400 -> 43200" in said
    assert default(desk) == BLUE
    desk.edit(FILE, f"name: {BLUE}\n", "name: second\n")
    assert desk.run(*DEPLOY).exit_code == 0
    assert default(desk) == BLUE
    assert desk.run(*DEPLOY, "--set-default").exit_code == 0
    assert default(desk) == "second"


def test_one_that_fails_is_taken_away(desk: Desk) -> None:
    desk.azure.resources.failing[BLUE] = [("ComputeNotFound", "There is no such cluster.")]
    failed = desk.run(*DEPLOY)
    assert failed.exit_code == 1
    assert "(ComputeNotFound) There is no such cluster" in failed.output
    assert desk.azure.resources.of("batchEndpoints", ENDPOINT, BLUE) is None
    assert default(desk) is None


def test_a_job_of_our_sample_rows(desk: Desk) -> None:
    assert desk.run(*DEPLOY).exit_code == 0
    started = desk.run("invoke", "--endpoint", ENDPOINT, "--input", "yaml/batch/samples")
    assert (started.exit_code, started.output) == (0, "batchjob-1\n")
    job = desk.azure.serving.jobs["batchjob-1"]
    assert job["deployment"] == BLUE
    folder = job["inputData"]["UriFolder"]["uri"].partition("/paths/")[2]
    uploaded = desk.azure.storage.containers[ACCOUNT, CONTAINER][f"{folder}rows.jsonl"]
    assert uploaded.content == (desk.folder / "yaml/batch/samples/rows.jsonl").read_bytes()
    missing = desk.run("invoke", "--endpoint", ENDPOINT, "--input", "nowhere")
    assert missing.exit_code == 2
    assert "nowhere is not a file, a folder" in missing.output


def test_status_and_delete(desk: Desk) -> None:
    assert desk.run(*DEPLOY).exit_code == 0
    shown = desk.run("status", "--endpoint", ENDPOINT, "--batch").output
    assert f"  {BLUE}: Succeeded, 100 %, {BLUE}:1 on 1 x llama-nc24ads-a100-v4\n" in shown
    assert desk.run("status", "--endpoint", ENDPOINT).exit_code == 2, "it is no online endpoint"
    assert desk.run("delete", "--endpoint", ENDPOINT, "--batch", "--yes").exit_code == 0
    assert desk.azure.resources.there == {}
