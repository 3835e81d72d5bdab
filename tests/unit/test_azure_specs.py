"""The Azure ML files under `yaml/` and `environments/`: all of what `llama-endpoints validate` knows, and our own choices."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment.render import MODELS
from deployment.validate.check import check
from deployment.validate.kinds import Kind, kind_of
from llama_serving.catalog import CATALOG, ModelVariant

ROOT = Path(__file__).resolve().parents[2]
SCORE = ROOT / "score"


def spec(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return loaded


def files() -> Iterator[str]:
    for folder, pattern in (("yaml", "*.y*ml"), ("environments", "environment.y*ml")):
        yield from (path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).rglob(pattern)))


KINDS = {path: kind_of(spec(path)) for path in files()}


def of_kind(kind: Kind) -> list[str]:
    return [path for path, one in KINDS.items() if one is kind]


ONLINE, BATCH = of_kind(Kind.MANAGED_DEPLOYMENT), of_kind(Kind.BATCH_DEPLOYMENT)
KUBERNETES = of_kind(Kind.KUBERNETES_DEPLOYMENT)


def test_validate_finds_nothing() -> None:
    """Azure's own loaders, and the rules that go beyond them; warnings count, too."""
    report = check([ROOT / "yaml", ROOT / "environments"])
    assert report.files >= len(KINDS)
    assert [finding.shown() for finding in report.findings] == []


def test_there_is_a_file_of_each_kind() -> None:
    assert set(Kind) - set(KINDS.values()) == {Kind.AUTOSCALE}  # (which is JSON)
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
    resources = spec(path)["resources"]
    assert (
        resources["requests"]["nvidia.com/gpu"]
        == resources["limits"]["nvidia.com/gpu"]
        == ("2" if "70b" in path else "1")
    )
    assert int(resources["limits"]["memory"].removesuffix("Gi")) * 2**30 > variant(path).shape.weight_bytes()


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
    assert all(spec(path)["min_instances"] == 0 for path in of_kind(Kind.COMPUTE))


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completion", "dialog", "infill"])
def test_sample_request_is_a_body_of_score(name: str) -> None:
    from llama_serving.contract import azure, body

    raw = (ROOT / f"yaml/online/samples/{name}.json").read_bytes()
    assert azure.parse(body.decode(raw)).inputs


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
