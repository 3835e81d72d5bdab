"""`llama-endpoints deploy online` and what follows it: azure-ai-ml's real client against an Azure on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from llama_endpoints.cli.main import main
from llama_serving.errors import ServingError
from llama_serving.service.service import Service
from tests.support.fake_azure.desk import BLUE, ENDPOINT, GREEN, Desk, a_desk
from tests.support.fake_azure.network import Answer
from tests.support.hubs import Status

REQUEST = "yaml/online/samples/completion.json"
DEPLOYMENT = f"onlineEndpoints/{ENDPOINT}/deployments/{BLUE}"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with a_desk(tmp_path, monkeypatch) as made:
        yield made


class TestDeploy:
    def test_a_dry_run_says_all_and_does_nothing(self, desk: Desk) -> None:
        said = desk.deploy(BLUE, "--dry-run")
        assert said.exit_code == 0
        assert said.output.splitlines() == [
            "= model codellama-7b-hf:1: exists",
            "+ environment llama-gpu:1: create from environments/gpu/environment.yml",
            "+ endpoint code-llama: create",
            "+ deployment code-llama/codellama-7b-hf: create",
            "? deployment code-llama/codellama-7b-hf: send a test request to this deployment alone",
            "> traffic code-llama: send all of it to codellama-7b-hf",
            "4 changes. Nothing was applied.",
        ]
        assert all(method == "GET" for method, _, _ in desk.azure.asked)

    def test_it_is_up_and_given_again_nothing_is_changed(self, desk: Desk) -> None:
        done = desk.deploy(BLUE)
        assert done.exit_code == 0, done.output
        changes = desk.azure.resources.changes
        assert changes == [
            f"PUT onlineEndpoints/{ENDPOINT}",
            f"PUT {DEPLOYMENT}",
            f"PUT onlineEndpoints/{ENDPOINT}",
        ]
        assert desk.traffic == {BLUE: 100}
        assert desk.azure.serving.asked[BLUE] == 1, "it was asked before it got traffic"
        there = desk.azure.resources.of("onlineEndpoints", ENDPOINT, BLUE)
        assert there is not None
        assert there["properties"]["environmentVariables"]["LLAMA_DEADLINE_S"] == "178"
        again = desk.deploy(BLUE)
        assert again.exit_code == 0
        assert all(line.startswith("= ") for line in again.output.splitlines()[:-1])
        assert len(changes) == 3

    def test_only_what_differs_is_changed(self, desk: Desk) -> None:
        desk.up(BLUE)
        desk.edit(f"yaml/online/{BLUE}.yml", "instance_count: 1", "instance_count: 2")
        desk.edit(f"yaml/online/{BLUE}.yml", "  LLAMA_DTYPE: bfloat16\n", "")
        said = desk.deploy(BLUE, "--dry-run").output
        change = "environment_variables.LLAMA_DTYPE bfloat16 -> not set, instance_count 1 -> 2"
        assert f"~ deployment {ENDPOINT}/{BLUE}: {change}\n" in said
        desk.bring_up(BLUE)
        assert "0 changes" in desk.deploy(BLUE, "--dry-run").output
        (desk.folder / "score" / "score.py").write_text("def init(): ...\n\n\ndef run(raw): return 1\n")
        assert f"~ deployment {ENDPOINT}/{BLUE}: code changed\n" in desk.deploy(BLUE, "--dry-run").output

    def test_the_endpoint_keeps_its_traffic_and_its_tags(self, desk: Desk) -> None:
        desk.up(BLUE)
        endpoint = desk.azure.resources.of("onlineEndpoints", ENDPOINT)
        assert endpoint is not None
        endpoint["tags"] = {"team": "search"}
        desk.edit("yaml/online/endpoint.yml", "Code Llama behind /score.", "Another one.")
        done = desk.deploy(GREEN)
        assert "~ endpoint code-llama: description Code Llama behind /score. -> Another one." in done.output
        now = desk.azure.resources.of("onlineEndpoints", ENDPOINT)
        assert now is not None
        assert now["tags"] == {"team": "search"}
        assert now["properties"]["description"] == "Another one."
        assert desk.traffic == {BLUE: 100}, "the second one gets none by itself"
        assert desk.deploy(GREEN, "--all-traffic").exit_code == 0
        assert desk.traffic == {GREEN: 100}

    def test_a_model_that_is_nowhere_is_said_before_anything_is_made(self, desk: Desk) -> None:
        models = desk.azure.management.models
        models.update({where: {} for where in models})
        refused = desk.deploy(BLUE)
        assert refused.exit_code == 2
        assert "no model codellama-7b-hf:1 (Package it" in refused.output
        assert desk.azure.resources.changes == []

    def test_a_model_that_is_here_is_uploaded(self, desk: Desk) -> None:
        models = desk.azure.management.models
        models.update({where: {} for where in models})
        packaged = desk.folder / "build" / BLUE
        packaged.mkdir(parents=True)
        (packaged / "MLmodel").write_text("flavors: {}\n")
        done = desk.deploy(BLUE)
        assert done.exit_code == 0, done.output
        assert f"+ model {BLUE}:1: create from build/{BLUE}\n" in done.output
        assert any(BLUE in known for known in models.values())

    def test_what_validate_finds_is_refused(self, desk: Desk) -> None:
        desk.edit(f"yaml/online/{BLUE}.yml", "request_timeout_ms: 180000", "request_timeout_ms: 999000")
        refused = desk.deploy(BLUE)
        assert refused.exit_code == 2
        assert "request_timeout_ms" in refused.output
        assert desk.azure.asked == []

    def test_no_workspace_is_said(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        from click.testing import CliRunner

        from llama_endpoints.cli.main import main

        monkeypatch.setenv("HOME", str(desk.folder))
        refused = CliRunner().invoke(main, ["status", "--endpoint", ENDPOINT])
        assert refused.exit_code == 2
        assert "No workspace given." in refused.output


class TestFaults:
    def test_a_new_deployment_that_fails_is_taken_away(self, desk: Desk) -> None:
        desk.azure.resources.failing[BLUE] = [("ImageBuildFailure", "The image could not be built.")]
        desk.azure.resources.logs[BLUE] = "loading\nno such file"
        failed = desk.deploy(BLUE)
        assert failed.exit_code == 1
        assert "(ImageBuildFailure) The image could not be built" in failed.output
        assert "  no such file\n" in failed.output
        assert "The new deployment was deleted" in failed.output
        assert desk.azure.resources.of("onlineEndpoints", ENDPOINT, BLUE) is None
        assert desk.deploy(BLUE).exit_code == 0, "and the same command goes on"

    def test_a_changed_one_that_fails_becomes_what_it_was(self, desk: Desk) -> None:
        desk.up(BLUE)
        desk.edit(f"yaml/online/{BLUE}.yml", "instance_count: 1", "instance_count: 2")
        before = desk.azure.resources.of("onlineEndpoints", ENDPOINT, BLUE)
        desk.azure.resources.failing[BLUE] = [("BadContainer", "It ends at once."), None]
        failed = desk.deploy(BLUE)
        assert failed.exit_code == 1
        assert "The previous version was restored." in failed.output
        after = desk.azure.resources.of("onlineEndpoints", ENDPOINT, BLUE)
        assert before is not None
        assert after is not None
        assert after["properties"] == before["properties"]
        assert after["tags"] == before["tags"]
        assert desk.traffic == {BLUE: 100}

    def test_one_that_is_up_and_does_not_answer_gets_no_traffic(self, desk: Desk) -> None:
        desk.azure.serving.containers[BLUE] = lambda _: (500, {"error": {"message": "out of memory"}})
        failed = desk.deploy(BLUE)
        assert failed.exit_code == 1
        assert "started, but answered 500" in failed.output
        assert desk.traffic == {}
        assert desk.azure.resources.of("onlineEndpoints", ENDPOINT, BLUE) is None

    def test_it_can_be_kept_to_be_looked_at(self, desk: Desk) -> None:
        desk.azure.resources.failing[BLUE] = [("BadContainer", "It ends at once.")]
        failed = desk.deploy(BLUE, "--keep-failed")
        assert failed.exit_code == 1
        assert f"llama-endpoints logs --endpoint {ENDPOINT} --deployment {BLUE}" in failed.output
        assert f"~ deployment {ENDPOINT}/{BLUE}: state Failed\n" in desk.deploy(BLUE, "--dry-run").output

    def test_quota(self, desk: Desk) -> None:
        desk.azure.resources.quota = 0
        refused = desk.deploy(BLUE)
        assert refused.exit_code == 2
        assert "(OutOfQuota) Not enough quota" in refused.output
        assert "`llama-endpoints plan` shows how many cores" in refused.output

    def test_what_is_under_way_is_waited_for(self, desk: Desk) -> None:
        desk.up(BLUE)
        desk.edit(f"yaml/online/{BLUE}.yml", "instance_count: 1", "instance_count: 2")
        path, strict_json = next(
            (path, strict_json)
            for path, strict_json in desk.azure.resources.there.items()
            if path.endswith(DEPLOYMENT)
        )
        strict_json["properties"]["provisioningState"] = "Updating"
        desk.azure.resources.begin(path)
        done = desk.deploy(BLUE)
        assert done.exit_code == 0, done.output
        assert done.output.startswith(f". deployment {ENDPOINT}/{BLUE}: an operation is in progress (Updating)")
        assert "instance_count 1 -> 2" in done.output

    def test_somebody_elses_change_is_waited_for(self, desk: Desk) -> None:
        desk.up(BLUE)
        path = next(path for path in desk.azure.resources.there if path.endswith(f"/{ENDPOINT}"))
        desk.azure.resources.polls = 8
        desk.azure.resources.begin(path)
        desk.edit("yaml/online/endpoint.yml", "Code Llama behind /score.", "Another one.")
        done = desk.deploy(BLUE)
        assert done.exit_code == 0, done.output
        puts = [
            path for method, _, path in desk.azure.asked if method == "PUT" and path.endswith(f"/{ENDPOINT}")
        ]
        assert len(puts) > len(desk.azure.resources.changes) + 2, "some met the conflict"

    def test_too_many_requests_and_a_broken_moment(self, desk: Desk) -> None:
        later = Status(429, {"Retry-After": "1"})
        desk.azure.faults[f"/{ENDPOINT}"] = [None, Status(503), later]
        desk.azure.faults["operations/op1"] = [None, Status(500)]
        done = desk.deploy(BLUE)
        assert done.exit_code == 0, done.output
        assert desk.traffic == {BLUE: 100}

    def test_a_login_that_has_expired(self, desk: Desk) -> None:
        desk.azure.faults["operations/op1"] = [None, Status(401)]
        refused = desk.deploy(BLUE)
        assert refused.exit_code == 2
        assert "Run `az login`" in refused.output
        assert desk.azure.resources.of("onlineEndpoints", ENDPOINT, BLUE) is not None, "Azure goes on with it"
        assert desk.deploy(BLUE).exit_code == 0

    @pytest.mark.parametrize(
        ("status", "said"),
        [(403, "AzureML Data Scientist"), (400, "Azure refused the request")],
        ids=["forbidden", "bad"],
    )
    def test_a_refusal_is_one_sentence(self, desk: Desk, status: int, said: str) -> None:
        desk.azure.faults[f"/{ENDPOINT}"] = [Status(status)]
        refused = desk.deploy(BLUE)
        assert refused.exit_code == 2
        assert said in refused.output
        assert len(refused.output.splitlines()) == 1

    def test_our_own_server_is_deployed_without_a_script(self, desk: Desk) -> None:
        made = CliRunner().invoke(
            main, ["render", "--model", "codellama/CodeLlama-7b-hf", "--front", "server", "--output", "."]
        )
        assert made.exit_code == 0, made.output
        done = desk.deploy(BLUE)
        assert done.exit_code == 0, done.output
        there = desk.azure.resources.of("onlineEndpoints", ENDPOINT, BLUE)
        assert there is not None
        assert there["properties"].get("codeConfiguration") is None
        assert "llama-gpu-server" in there["properties"]["environmentId"]
        again = desk.deploy(BLUE)
        assert again.exit_code == 0, again.output
        assert all(line.startswith("= ") for line in again.output.splitlines()[:-1]), again.output


class TestUse:
    def test_status(self, desk: Desk) -> None:
        desk.up(BLUE, GREEN)
        assert desk.run("status", "--endpoint", ENDPOINT).output.splitlines() == [
            "code-llama: Succeeded, https://code-llama.eastus.inference.ml.azure.com/score",
            "  codellama-7b-hf: Succeeded, 100 %, codellama-7b-hf:1 on 1 x Standard_NC24ads_A100_v4",
            "  green: Succeeded, 0 %, codellama-7b-hf:1 on 1 x Standard_NC24ads_A100_v4",
        ]
        shown = json.loads(desk.run("status", "--endpoint", ENDPOINT, "--json").output)
        assert [row["traffic"] for row in shown["deployments"]] == [100, 0]

    def test_the_sample_files_get_the_real_codes_answers(self, desk: Desk, service: Service) -> None:
        from llama_serving.contract import protocol, strict_json

        def container(raw: bytes) -> "tuple[int, object]":
            try:
                decoded = strict_json.decode(raw)
                decoded["input_data"]["parameters"].setdefault("max_new_tokens", 4)
                parsed = protocol.parse(decoded)
                return 200, protocol.answer(parsed, service.generate(parsed, deadline=None), "nano")
            except ServingError as error:
                return error.status, error.body()

        desk.up(BLUE)
        desk.azure.serving.containers[BLUE] = container
        said = desk.run("invoke", "--endpoint", ENDPOINT, "--request", REQUEST)
        assert said.exit_code == 0, said.output
        assert [list(row) for row in json.loads(said.output)] == [["0"]]
        wrong = desk.folder / "wrong.json"
        wrong.write_text('{"input_data": {"input_string": ["a"], "parameters": {"temprature": 1}}}')
        refused = desk.run("invoke", "--endpoint", ENDPOINT, "--deployment", BLUE, "--request", str(wrong))
        assert refused.exit_code == 1
        assert refused.output.startswith("400: ")
        assert "temperature" in refused.output, "Azure's 424 is the container's 400 again, with its own words"

    def test_one_deployment_is_asked_and_then_whoever_has_the_traffic(self, desk: Desk) -> None:
        desk.up(BLUE, GREEN)
        asked = desk.azure.serving.asked
        asked.clear()
        desk.run("invoke", "--endpoint", ENDPOINT, "--deployment", GREEN, "--request", REQUEST)
        desk.run("invoke", "--endpoint", ENDPOINT, "--request", REQUEST)
        assert asked == {GREEN: 1, BLUE: 1}

    def test_a_key_that_was_made_anew_meanwhile(self, desk: Desk) -> None:
        desk.up(BLUE)
        desk.azure.serving.fronts[ENDPOINT] = [Answer(401, b"{}")]
        assert desk.run("invoke", "--endpoint", ENDPOINT, "--request", REQUEST).exit_code == 0
        assert sum(path.endswith("listKeys") for _, _, path in desk.azure.asked) == 2, "it was fetched again"

    def test_keys(self, desk: Desk) -> None:
        desk.up(BLUE)
        before = json.loads(desk.run("keys", "--endpoint", ENDPOINT).output)
        assert before == {"primaryKey": "primary-of-code-llama", "secondaryKey": "secondary-of-code-llama"}
        after = json.loads(desk.run("keys", "--endpoint", ENDPOINT, "--regenerate", "secondary").output)
        assert after == {**before, "secondaryKey": "secondary-of-code-llama-again"}

    def test_logs(self, desk: Desk) -> None:
        desk.up(BLUE)
        desk.azure.resources.logs[BLUE] = "one\ntwo\nthree"
        words = ("logs", "--endpoint", ENDPOINT, "--deployment")
        assert desk.run(*words, BLUE, "--lines", "2").output == "two\nthree\n"
        refused = desk.run(*words, GREEN)
        assert refused.exit_code == 2
        assert f"Its deployments: {BLUE}." in refused.output

    def test_delete(self, desk: Desk) -> None:
        desk.up(BLUE, GREEN)
        words = ("delete", "--endpoint", ENDPOINT)
        refused = desk.run(*words, "--deployment", BLUE, "--yes")
        assert refused.exit_code == 2
        assert "has 100 % of the traffic" in refused.output
        assert desk.run(*words, "--deployment", GREEN).exit_code == 1, "nobody said yes"
        assert desk.run(*words, "--deployment", GREEN, "--yes").exit_code == 0
        assert desk.azure.resources.of("onlineEndpoints", ENDPOINT, GREEN) is None
        assert desk.run(*words, "--yes").output == f"Deleted the endpoint {ENDPOINT} with {BLUE}.\n"
        assert desk.azure.resources.there == {}
        again = desk.run(*words, "--yes")
        assert (again.exit_code, again.output) == (0, f"{ENDPOINT} does not exist.\n")
