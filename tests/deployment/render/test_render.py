"""`llama-endpoints render`: whatever its options, `validate --strict` finds nothing in what it writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from llama_endpoints.cli.main import main
from llama_endpoints.cli.render import render as command
from llama_endpoints.planning import skus
from llama_endpoints.render import files as rendering
from llama_endpoints.render import spec
from llama_endpoints.validate.report import check
from llama_serving.service.collection.record import CollectedInput, CollectedRequest, CollectedText
from llama_serving.settings import Settings
from tests.support.paths import ROOT

MODEL = "codellama/CodeLlama-7b-hf"
NAME = "codellama-7b-hf"
IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/llama"
CONNECTION = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/connections/judge"
OPTIONS = (
    (),
    ("--context", "100000"),
    ("--context", "16"),
    ("--dtype", "fp16", "--context", "2048", "--sku", "NV36ads_A10_v5"),
    ("--precision", "int4", "--context", "2048", "--sku", "NC4as_T4_v3"),
    ("--dtype", "fp8", "--kv-dtype", "fp8", "--sku", "NC40ads_H100_v5"),
    ("--engine", "pipeline"),
    ("--usual-tokens", "16384"),
    ("--pipeline-parallel", "2", "--prefill-tokens", "1024", "--speculative-tokens", "4"),
    ("--front", "server"),
    ("--sku", "NC80adis_H100_v5"),
    ("--sku", "NC96ads_A100_v4", "--instances", "50"),
    ("--sku", "NC64as_T4_v3", "--dtype", "fp16"),
    ("--instances", "3"),
    ("--endpoint", "my-code", "--kubernetes-endpoint", "my-k8s", "--batch-endpoint", "my-rows"),
    ("--cluster", "mine"),
    ("--instance-type", "gpu-large"),
    ("--identity", IDENTITY),
    ("--public-network-access", "disabled"),
    ("--registry", "our_models"),
    ("--model", "meta-llama/Llama-2-70b-hf"),
    ("--collect", "0.1"),
    ("--collect", "1", "--front", "server", "--monitor-connection", CONNECTION, "--monitor-model", "gpt-4o"),
)
NOT_IN_THE_FILES = {"--check", "--output", "--local"}
"""The last one's file names a model that must be there: see tests/end_to_end/test_render_command.py."""


def render(*options: str) -> Result:
    return CliRunner().invoke(main, ["render", *options])


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_all_options_are_tried() -> None:
    tried = {word for options in OPTIONS for word in options if word.startswith("--")}
    assert tried | NOT_IN_THE_FILES == {name for one in command.params for name in one.opts}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_nothing_is_wrong_with_what_is_written(tmp_path: Path, options: tuple[str, ...]) -> None:
    ran = render("--model", MODEL, "--output", str(tmp_path), *options)
    assert ran.exit_code == 0, ran.output
    report = check([tmp_path])
    assert report.files > 10
    assert [finding.shown() for finding in report.findings] == []
    again = render("--model", MODEL, "--output", str(tmp_path), *options, "--check")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("model", [MODEL, "codellama/CodeLlama-34b-hf", "codellama/CodeLlama-70b-hf"])
def test_plan_without_options_says_what_is_written(tmp_path: Path, model: str) -> None:
    assert render("--model", model, "--output", str(tmp_path)).exit_code == 0
    file = f"{model.partition('/')[2].lower()}.yml"
    for folder, offer in (("online", "managed_online"), ("kubernetes", "kubernetes"), ("batch", "batch")):
        ran = CliRunner().invoke(main, ["plan", "--model", model, "--for", offer, "--json"])
        planned, written = json.loads(ran.output), read(tmp_path / "yaml" / folder / file)
        own = (written.get("settings") or written)["environment_variables"]
        machine = planned["sku"] if folder == "online" else spec.compute_name(skus.SKUS[planned["sku"]])
        assert written.get("instance_type", written.get("compute")).removeprefix("azureml:") == machine
        assert own["LLAMA_ENGINE"] == planned["engine"] == "vllm"
        assert own["LLAMA_MAX_NUM_SEQS"] == str(planned["concurrency"])
        assert own["LLAMA_VLLM_TENSOR_PARALLEL"] == str(planned["gpus"])


def test_what_vllm_is_asked_for_is_written(tmp_path: Path) -> None:
    options = ("--pipeline-parallel", "2", "--prefill-tokens", "1024", "--speculative-tokens", "4", "--kv-dtype", "fp8",
               "--sku", "NC80adis_H100_v5", "--precision", "int4")  # fmt: skip
    assert render("--model", MODEL, "--output", str(tmp_path), *options).exit_code == 0
    for file in ("online", "kubernetes", "batch"):
        written = read(tmp_path / "yaml" / file / f"{NAME}.yml")
        own = (written.get("settings") or written)["environment_variables"]
        assert {name: value for name, value in own.items() if name.startswith("LLAMA_VLLM_") and "START" not in name} == {
            "LLAMA_VLLM_TENSOR_PARALLEL": "1",
            "LLAMA_VLLM_GPU_SHARE": "0.92",
            "LLAMA_VLLM_PIPELINE_PARALLEL": "2",
            "LLAMA_VLLM_KV_DTYPE": "fp8",
            "LLAMA_VLLM_PREFILL_TOKENS": "1024",
            "LLAMA_VLLM_SPECULATIVE_TOKENS": "4",
        }  # fmt: skip
    assert read(tmp_path / f"yaml/models/{NAME}.yml")["properties"]["weights"] == "int4"


def test_the_pipeline_stays_possible(tmp_path: Path) -> None:
    assert render("--model", MODEL, "--output", str(tmp_path), "--engine", "pipeline").exit_code == 0
    for file, image in (("online", "online"), ("kubernetes", "online"), ("batch", "batch")):
        written = read(tmp_path / "yaml" / file / f"{NAME}.yml")
        own = (written.get("settings") or written)["environment_variables"]
        assert (own["LLAMA_ENGINE"], written["environment"]) == ("pipeline", f"azureml:llama-{image}:1")
        assert not [name for name in own if name.startswith("LLAMA_VLLM")]


def test_our_own_server_is_a_container_without_a_script(tmp_path: Path) -> None:
    assert render("--model", MODEL, "--output", str(tmp_path), "--front", "server").exit_code == 0
    made = read(tmp_path / f"yaml/online/{NAME}.yml")
    assert "code_configuration" not in made
    assert made["environment"] == "azureml:llama-gpu-server:1"
    assert not made["environment_variables"].keys() & {"WORKER_COUNT", "GUNICORN_CMD_ARGS", "WORKER_TIMEOUT"}
    routes = read(tmp_path / "environments/gpu-server/environment.yml")["inference_config"]
    assert routes["readiness_route"] == {"path": "/health/ready", "port": 5001}
    probe = made["readiness_probe"]
    patience = probe["initial_delay"] + probe["period"] * probe["failure_threshold"]
    assert patience == int(made["environment_variables"]["LLAMA_VLLM_START_S"])
    others = [read(tmp_path / "yaml" / kind / f"{NAME}.yml") for kind in ("kubernetes", "batch")]
    assert all("code_configuration" in one for one in others), "only a managed endpoint passes other paths on"


def test_on_kubernetes_a_model_is_the_workspaces(tmp_path: Path) -> None:
    """Azure's client refuses one of a registry there."""
    assert render("--model", MODEL, "--output", str(tmp_path), "--registry", "ours").exit_code == 0
    models = {
        kind: read(tmp_path / "yaml" / kind / f"{NAME}.yml")["model"]
        for kind in ("online", "kubernetes", "batch")
    }
    assert models["kubernetes"] == f"azureml:{NAME}:1"
    assert models["online"] == models["batch"] == f"azureml://registries/ours/models/{NAME}/versions/1"


def test_a_part_of_a_node_is_a_type_of_its_own(tmp_path: Path) -> None:
    assert render("--model", MODEL, "--output", str(tmp_path), "--sku", "NC96ads_A100_v4").exit_code == 0
    (made,) = (tmp_path / "yaml/kubernetes/instance-types").iterdir()
    assert made.name == "llama-nc96ads-a100-v4-1gpu.yml"
    limits = read(made)["spec"]["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["cpu"]) == (1, "21")  # of 4 and 96


def test_files_name_the_checkout_that_they_were_rendered_in(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    assert render("--model", MODEL, "--output", str(output)).exit_code == 0
    for kind in ("online", "kubernetes", "batch"):
        code = read(output / "yaml" / kind / f"{NAME}.yml")["code_configuration"]["code"]
        assert (output / "yaml" / kind / code).resolve() == ROOT / "score"
    assert (
        output / "yaml/data" / read(output / "yaml/data/rows.yml")["path"]
    ).resolve() == ROOT / "yaml/batch/samples"
    build = read(output / "environments/online/environment.yml")["build"]["path"]
    assert (output / "environments/online" / build).resolve() == ROOT / "environments/online"
    model = read(output / f"yaml/models/{NAME}.yml")["path"]
    assert (output / "yaml/models" / model).resolve() == ROOT / "build" / NAME


def test_without_a_checkout_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = render("--output", str(tmp_path / "out"))
    assert ran.exit_code == 2
    assert "in a checkout of the project" in ran.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--sku", "p3.2xlarge"), "p3.2xlarge is a machine of aws"),
        (("--sku", "NC24s_v3", "--dtype", "fp16"), "Azure retires Standard_NC24s_v3 (since 2025-09-30)"),
        (("--front", "server", "--engine", "pipeline"), "--front server needs the image with vLLM"),
        (("--engine", "pipeline", "--precision", "int4"), "has no int4 weights"),
        (("--kv-dtype", "fp8", "--sku", "NC24ads_A100_v4"), "fp8 cache needs Ada or Hopper"),
        (("--sku", "ND96isr_H200_v5"), "Standard_ND96isr_H200_v5 is not offered for managed_online"),
        (("--endpoint", "code--llama"), "Invalid --endpoint 'code--llama': 3 to 32 letters"),
        (("--batch-endpoint", "a-" * 31 + "b"), "--batch-endpoint"),
        (("--registry", "our.models"), "underscores"),
        (("--instance-type", "Standard_NC24ads_A100_v4"), "lower-case letters"),
    ],
)
def test_what_azure_would_refuse_is_refused(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    ran = render("--model", MODEL, "--output", str(tmp_path), *options)
    assert (ran.exit_code, says in ran.output) == (2, True), ran.output
    assert not any(tmp_path.iterdir())


# --- what is left over -----------------------------------------------------------------------------


def test_what_other_options_wrote_is_named(tmp_path: Path) -> None:
    options = ("--model", MODEL, "--output", str(tmp_path))
    assert render(*options).exit_code == 0
    others = [tmp_path / "yaml/batch/compute/llama-nc24ads-a100-v4.yml",
              tmp_path / "yaml/kubernetes/instance-types/llama-nc24ads-a100-v4.yml"]  # fmt: skip
    mine = tmp_path / "yaml/online/mine.yml"
    shutil.copy(tmp_path / "yaml/online/endpoint.yml", mine)
    moved = (*options, "--sku", "NC40ads_H100_v5")
    ran = render(*moved)
    assert ran.exit_code == 0
    assert all(
        f"{path} does not belong to these options: remove it\n" in ran.stderr for path in (*others, mine)
    )
    ran = render(*moved, "--check")
    assert ran.exit_code == 1
    assert ran.stderr.splitlines()[:-1] == [
        f"{path} does not belong to these options: remove it" for path in (others[0], others[1], mine)
    ]


def test_what_another_model_needs_is_not_left_over(tmp_path: Path) -> None:
    other = ("--model", "codellama/CodeLlama-70b-hf", "--output", str(tmp_path))
    assert render(*other).exit_code == 0
    assert "remove it" not in render("--model", MODEL, "--output", str(tmp_path)).output
    (tmp_path / "yaml/batch/samples").mkdir()
    (tmp_path / "yaml/batch/samples/rows.jsonl").write_text("")
    (tmp_path / "yaml/online/local.yml").write_text("")
    assert render("--model", MODEL, "--output", str(tmp_path), "--check").exit_code == 0
    assert render(*other, "--check").exit_code == 1, "autoscale.json is the other model's"


# --- folders of any kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("check_only", [False, True])
@pytest.mark.parametrize("broken", ["no-utf8", "folder", "file-above", "proc"])
def test_what_can_t_be_written_is_said(tmp_path: Path, broken: str, check_only: bool) -> None:
    output = Path("/proc/x") if broken == "proc" else tmp_path
    endpoint = tmp_path / "yaml" / "online" / "endpoint.yml"
    if broken == "no-utf8":
        endpoint.parent.mkdir(parents=True)
        endpoint.write_bytes(b"\xff")
    elif broken == "folder":
        (endpoint / "x").mkdir(parents=True)
    elif broken == "file-above":
        (tmp_path / "yaml").write_text("")
    ran = render("--model", MODEL, "--output", str(output), *(["--check"] if check_only else []))
    assert isinstance(ran.exception, SystemExit | None), ran.exception
    if check_only:
        assert (ran.exit_code, f"{output}/yaml/online/endpoint.yml" in ran.stderr) == (1, True)
    elif broken == "no-utf8":
        assert (ran.exit_code, read(endpoint)["name"]) == (0, "code-llama")
    else:
        assert (ran.exit_code, "--output must be a writable folder" in ran.stderr) == (2, True), ran.stderr


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yml"
    path.write_text("before")

    def full(_path: Path, _text: str, **_how: str) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(rendering.SetupError, match="No space left"):
        rendering.write({"a.yml": "after"}, tmp_path)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"before", [path])


@pytest.mark.parametrize(("given", "share"), [("1", "1"), ("0.05", "0.05"), ("0.000001", "0.000001")])
def test_a_deployment_that_collects_has_a_collector_its_variables_and_a_monitor(
    tmp_path: Path, given: str, share: str
) -> None:
    judge = ("--monitor-connection", CONNECTION, "--monitor-model", "gpt-4o")
    assert render("--model", MODEL, "--output", str(tmp_path), "--collect", given, *judge).exit_code == 0
    deployment = read(tmp_path / f"yaml/online/{NAME}.yml")
    collector = deployment["data_collector"]
    assert collector["collections"] == {name: {"enabled": "true"} for name in ("model_inputs", "model_outputs")}
    assert collector["sampling_rate"] == 1.0
    variables = deployment["environment_variables"]
    assert Settings.from_environment(variables).collect == "azureml"
    assert variables["LLAMA_COLLECT_RATE"] == share
    monitor = read(tmp_path / f"yaml/monitoring/{NAME}.yml")
    signals = monitor["create_monitor"]["monitoring_signals"]
    assert (
        monitor["create_monitor"]["monitoring_target"]["endpoint_deployment_id"] == f"azureml:code-llama:{NAME}"
    )
    columns = [one["data_column_names"] for one in signals["texts"]["production_data"]]
    request = CollectedRequest("r", 0.0, MODEL, {}, (CollectedInput("x"),), ((CollectedText("y"),),))
    rows = (request.model_inputs()[0], request.model_outputs()[0])
    for side, row in zip(columns, rows, strict=True):
        assert set(side.values()) <= row.keys()
    assert set(signals["lengths"]["features"]) <= rows[1].keys()
    others = [
        path for path in (tmp_path / "yaml").rglob("*.yml") if path.parent.name not in ("online", "monitoring")
    ]
    assert not [path for path in others if "LLAMA_COLLECT" in path.read_text(encoding="utf-8")]


def test_nothing_is_collected_by_default(tmp_path: Path) -> None:
    assert render("--model", MODEL, "--output", str(tmp_path)).exit_code == 0
    deployment = read(tmp_path / f"yaml/online/{NAME}.yml")
    assert "data_collector" not in deployment
    assert Settings.from_environment(deployment["environment_variables"]).collect == "off"
    assert not (tmp_path / "yaml/monitoring").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--collect", "0"), "--collect"),
        (("--collect", "1.5"), "--collect"),
        (("--collect", "0.5", "--monitor-connection", CONNECTION), "belong together"),
        (("--collect", "0.5", "--monitor-model", "gpt-4o"), "belong together"),
        (("--monitor-connection", CONNECTION, "--monitor-model", "gpt-4o"), "needs --collect"),
        (
            ("--collect", "0.5", "--monitor-connection", "judge", "--monitor-model", "x"),
            "Invalid --monitor-connection",
        ),
    ],
)
def test_what_cannot_be_monitored_is_refused(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    ran = render("--model", MODEL, "--output", str(tmp_path), *options)
    assert ran.exit_code == 2
    assert says in ran.output + str(ran.exception)
