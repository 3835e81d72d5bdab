"""The Azure ML files under `yaml/` and `environments/`: all of what `llama-endpoints validate` knows, and our own choices."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from llama_endpoints.planning.planner import Plan, PlanRequest, plan_with_max_concurrency
from llama_endpoints.planning.sizing import Runner, Workload, spreads
from llama_endpoints.planning.skus import SKUS, Offer
from llama_endpoints.render.files import MODELS
from llama_endpoints.validate.kinds import SpecKind, kind_of
from llama_endpoints.validate.report import check
from llama_serving.catalog import CATALOG, ModelVariant
from tests.support.paths import ROOT

SCORE = ROOT / "score"


def spec(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return loaded


def files() -> Iterator[str]:
    for folder, pattern in (("yaml", "*.y*ml"), ("environments", "environment.y*ml")):
        yield from (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).rglob(pattern)))


KINDS = {path: kind_of(spec(path)) for path in files()}


def of_kind(kind: SpecKind) -> list[str]:
    return [path for path, one in KINDS.items() if one is kind]


ONLINE, BATCH = of_kind(SpecKind.MANAGED_DEPLOYMENT), of_kind(SpecKind.BATCH_DEPLOYMENT)
KUBERNETES = of_kind(SpecKind.KUBERNETES_DEPLOYMENT)


def test_validate_finds_nothing() -> None:
    """Azure's own loaders, and the rules that go beyond them; warnings count, too."""
    report = check([ROOT / "yaml", ROOT / "environments"])
    assert report.files >= len(KINDS)
    assert [finding.shown() for finding in report.findings] == []


def test_there_is_a_file_of_each_kind() -> None:
    # (Autoscale is JSON; a monitor is rendered for deployments that collect, and these do not.)
    assert set(SpecKind) - set(KINDS.values()) == {SpecKind.AUTOSCALE, SpecKind.MONITOR}
    assert (ROOT / "yaml/online/autoscale.json").is_file()


def variant(path: str) -> ModelVariant:
    """The model of a deployment."""
    name = spec(path)["model"].split(":")[1]
    return CATALOG[spec(f"yaml/models/{name}.yml")["properties"]["variant"]]


def test_every_model_is_deployed_in_each_way() -> None:
    assert len(MODELS) == 18
    for paths in (ONLINE, KUBERNETES, BATCH):
        assert {variant(path).name for path in paths} == {row.name for row in MODELS}


@pytest.mark.parametrize("path", KUBERNETES)
def test_the_cluster_gives_as_many_gpus_as_the_model_needs(path: str) -> None:
    deployment = spec(path)
    made = spec(f"yaml/kubernetes/instance-types/{deployment['instance_type']}.yml")
    resources = made["spec"]["resources"]
    assert made["metadata"]["name"] == deployment["instance_type"]
    assert resources["limits"]["nvidia.com/gpu"] == (2 if "70b" in path else 1)
    assert "nvidia.com/gpu" not in resources["requests"]
    assert "resources" not in deployment  # Azure takes the type's
    sku = SKUS[made["spec"]["nodeSelector"]["node.kubernetes.io/instance-type"]]
    assert sku.gpus == resources["limits"]["nvidia.com/gpu"]
    assert int(resources["requests"]["cpu"]) < sku.cores
    assert int(resources["requests"]["memory"].removesuffix("Gi")) < 0.9 * sku.ram_gib


def planned(path: str) -> Plan:
    offer = Offer.MANAGED_ONLINE if path in ONLINE else Offer.KUBERNETES if path in KUBERNETES else Offer.BATCH
    one = variant(path)
    return plan_with_max_concurrency(PlanRequest(one, Workload(one.trained_positions.value), offer=offer))


def own_variables(path: str) -> dict[str, str]:
    """A deployment's environment variables."""
    deployment = spec(path)
    variables: dict[str, str] = (deployment.get("settings") or deployment)["environment_variables"]
    return variables


@pytest.mark.parametrize("path", ONLINE + KUBERNETES + BATCH)
def test_every_deployment_is_on_vllm(path: str) -> None:
    own, named = own_variables(path), spec(path)["environment"]
    assert named == ("azureml:llama-gpu-batch:1" if path in BATCH else "azureml:llama-gpu:1")
    assert own["LLAMA_ENGINE"] == "vllm"
    assert not [name for name in own if name.startswith("LLAMA_UPSTREAM_")]
    assert not own.keys() & {"LLAMA_VLLM", "LLAMA_THREADS", "LLAMA_KV_MEMORY"}
    assert int(own["LLAMA_VLLM_TENSOR_PARALLEL"]) in spreads(variant(path).shape, 8, Runner.VLLM)
    assert own["LLAMA_VLLM_TENSOR_PARALLEL"] == ("2" if "70b" in path else "1")
    assert own["LLAMA_VLLM_GPU_SHARE"] == "0.92"
    assert "LLAMA_CONTEXT" not in own, "the trained positions, which are the engine's default"
    assert own["LLAMA_DTYPE"] == "bfloat16"
    assert own["LLAMA_MAX_NUM_SEQS"] == str(planned(path).request.workload.concurrency)


@pytest.mark.parametrize(
    ("path", "sequences"),
    [
        ("online/codellama-7b-hf", 59),
        ("online/codellama-70b-hf", 62),
        ("batch/llama-2-70b-hf", 62),
        ("kubernetes/codellama-70b-hf", 24),
    ],
)
def test_vllm_is_given_as_many_sequences_as_there_is_memory_for(path: str, sequences: int) -> None:
    """By hand: what 92 % of the GPUs have, less weights, prompts, graphs and CUDA, by the keys and values of 2,048 tokens."""
    large, a100 = "70b" in path, "7b-" in path or "kubernetes" in path
    gpu_mib, rows = (81_920, 2048) if a100 else (95_830, 8192)  # A100, H100 NVL
    gpus, weights_mib, token = (2, 131_563, 327_680) if large else (1, 12_853, 524_288)
    hidden, ffn = (8192, 28_672) if large else (4096, 11_008)
    prompts_mib = rows * 2 * (4 * hidden * gpus + 2 * ffn) / 2**20
    logits_mib = sequences * 32_016 * 8 / 2**20
    left_mib = gpus * (gpu_mib * 0.92 - 500 - 1024) - weights_mib - prompts_mib - logits_mib
    assert int(left_mib / (2048 * token / 2**20)) == sequences
    assert own_variables(f"yaml/{path}.yml")["LLAMA_MAX_NUM_SEQS"] == str(sequences)


@pytest.mark.parametrize("path", ONLINE + KUBERNETES)
def test_those_that_wait_end_in_time(path: str) -> None:
    """A place more would end too late, unless there are as many as are wanted."""
    deployment = spec(path)
    own, timeout_ms = deployment["environment_variables"], deployment["request_settings"]["request_timeout_ms"]
    deadline = int(own["LLAMA_DEADLINE_S"])
    assert deadline * 1000 == timeout_ms - 2000
    fit, front = planned(path).chosen, 2 if path in ONLINE else 1
    assert fit is not None
    running, waiting = int(own["LLAMA_MAX_NUM_SEQS"]), int(own["LLAMA_QUEUE"])
    places, answer_s = running + waiting, 256 / fit.speed.all
    assert waiting == 0 or places * answer_s <= deadline
    assert waiting == 64 or (places + 1) * answer_s > deadline
    assert deployment["request_settings"]["max_concurrent_requests_per_instance"] == math.ceil(places / front)
    assert f"--threads {places + 4} " in own["GUNICORN_CMD_ARGS"]


@pytest.mark.parametrize("path", ONLINE + KUBERNETES)
def test_probes_wait_for_the_disk_and_vllm_and_not_for_the_copy(path: str) -> None:
    """What is copied to the node is there before the container starts, from where the probes count."""
    deployment = spec(path)
    loading_s = variant(path).shape.weight_bytes() / 100e6 + 300
    assert loading_s < deployment["liveness_probe"]["initial_delay"] < 1.1 * loading_s + 60
    for probe in (deployment["liveness_probe"], deployment["readiness_probe"]):
        patience = probe["initial_delay"] + probe["period"] * probe["failure_threshold"]
        assert patience == int(deployment["environment_variables"]["WORKER_TIMEOUT"])
        assert patience == int(deployment["environment_variables"]["LLAMA_VLLM_START_S"])


def test_autoscale_knows_when_each_deployment_is_busy() -> None:
    """Answers take that long where half of the places are taken."""
    template = json.loads((ROOT / "yaml/online/autoscale.json").read_text(encoding="utf-8"))
    busy_ms = template["variables"]["busy_ms"]
    assert set(busy_ms) == {spec(path)["name"] for path in ONLINE}
    for path in ONLINE:
        deployment = spec(path)
        assert 0 < busy_ms[deployment["name"]] < deployment["request_settings"]["request_timeout_ms"]


@pytest.mark.parametrize("path", ONLINE + KUBERNETES + BATCH)
def test_it_runs_our_code(path: str) -> None:
    code = spec(path)["code_configuration"]
    assert (ROOT / path).parent.joinpath(code["code"]).resolve() == SCORE


@pytest.mark.parametrize("path", BATCH)
def test_batch_loses_nothing_silently(path: str) -> None:
    settings = spec(path)["settings"]
    assert settings["error_threshold"] == 0
    assert settings["mini_batch_size"] == 1
    assert settings["retry_settings"]["timeout"] >= 3600
    assert settings["retry_settings"]["max_retries"] >= 1
    assert (settings["output_action"], settings["logging_level"]) == ("append_row", "info")
    assert settings["output_file_name"].endswith(".jsonl")


def test_clusters_cost_nothing_at_rest() -> None:
    assert all(spec(path)["min_instances"] == 0 for path in of_kind(SpecKind.COMPUTE))


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completion", "dialog", "infill"])
def test_sample_request_is_a_body_of_score(name: str) -> None:
    from llama_serving.contract import azure, strict_json

    raw = (ROOT / f"yaml/online/samples/{name}.json").read_bytes()
    assert azure.parse(strict_json.decode(raw)).inputs


def test_sample_rows_are_all_good() -> None:
    from llama_serving.contract import rows
    from llama_serving.contract.request import Parameters

    folder = (ROOT / "yaml/data" / spec("yaml/data/rows.yml")["path"]).resolve()
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["rows.jsonl"]
    lines = files[0].read_bytes().splitlines()
    assert len(lines) == 8
    assert all(rows.request(rows.read(line), Parameters()).inputs for line in lines)
    assert len({frozenset(json.loads(line)) for line in lines}) == 8, "eight kinds of row"
