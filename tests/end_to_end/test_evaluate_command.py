"""`evaluate` from data to the report: texts, limits, MLflow, two evaluations compared, and the component's command."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_endpoints.cli.evaluate_component import words
from llama_serving.errors import SetupError
from tests.support import command
from tests.support.evaluations import a_folder
from tests.support.paths import ROOT

COMPONENT = ROOT / "yaml/evaluate/component.yml"
JOB = ROOT / "yaml/evaluate/job.yml"
SAMPLES = ROOT / "yaml/evaluate/samples"
SHORT = ("--max-new-tokens", "8", "--prompt", "completion")


def texts(output: Path, *more: str, **env: str) -> command.Done:
    data = SAMPLES / "text-generation.jsonl"
    given = ("evaluate", "text-generation", "--model", "nano", "--data", data, "--output", output)
    return command.run(*given, *SHORT, *more, env=env or None)


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text())["metrics"])


def test_texts_are_scored_logged_and_held_to_a_limit(tmp_path: Path) -> None:
    pytest.importorskip("rouge_score", reason="the extra evaluate is not installed")
    folder, runs = tmp_path / "e", tmp_path / "runs"
    failed = texts(folder, "--fail-below", "rougeL=0.99", MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_TRACKING_URI=runs.as_uri())  # fmt: skip
    assert failed.returncode == 1, failed.stderr
    found = metrics(folder)
    assert f"rougeL is {found['rougeL']['value']:.4f}, less than 0.99." in failed.stderr
    assert "rougeL: " in failed.stdout
    assert set(found) == {"rouge1", "rouge2", "rougeL", "rougeLsum", "bleu_1", "bleu_2", "bleu_3", "bleu_4"}
    assert {path.name for path in runs.rglob("report.html")} == {"report.html"}
    before = {path: path.read_bytes() for path in folder.glob("*.json*") if path.name != "evaluation.json"}
    above = command.run("evaluate", "score", folder, "--fail-above", "rougeL=-1")
    assert (above.returncode, "more than -1." in above.stderr) == (1, True)
    again = command.run("evaluate", "score", folder, "--fail-below", "rougeL=0", "--fail-above", "rougeL=1")
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in before} == before, "scored again, without a model"


@pytest.mark.parametrize(
    ("limit", "said"), [("rougeL", "METRIC=VALUE"), ("pass@1=0.5", "has no metric 'pass@1'. It has: rouge1")]
)
def test_a_limit_that_cannot_be_held_is_told_before_anything_runs(
    tmp_path: Path, limit: str, said: str
) -> None:
    refused = texts(tmp_path / "e", "--fail-below", limit)
    assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "e").exists()


def test_compared_on_the_command_line(tmp_path: Path) -> None:
    settings = {"settings": {"samples": 1, "options": {"data": "gone.jsonl", "ks": [1]}}}
    old = a_folder(tmp_path / "old", [[1.0]] * 164, **settings)
    new = a_folder(tmp_path / "new", [[float(n > 4)] for n in range(164)], **settings)
    said = command.run("evaluate", "compare", old.path, new.path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("pass@1: 1.0000 -> 0.9695, difference -0.0305 (-0.0")
    assert said.stdout.endswith("164 problems: worse\n")
    found = json.loads(command.run("evaluate", "compare", old.path, new.path, "--json").stdout)["pass@1"]
    assert (found["difference"], found["verdict"]) == (pytest.approx(-5 / 164), "worse")
    assert said.stderr == ""
    drawn = a_folder(tmp_path / "drawn", [[1.0]] * 164, settings={**settings["settings"], "temperature": 0.8})
    assert "The settings differ: temperature None and 0.8." in command.run("evaluate", "compare", old.path, drawn.path).stderr  # fmt: skip
    other = a_folder(tmp_path / "other", [[1.0]] * 164, task="mbpp", **settings)
    refused = command.run("evaluate", "compare", old.path, other.path)
    assert (refused.returncode, "evaluations of one task" in refused.stderr) == (2, True)


# --- in Azure ML ----------------------------------------------------------------------------------


def component(**given: Any) -> dict[str, Any]:
    usual = {
        "task": "text-generation",
        "data": SAMPLES,
        "model": Path("m"),
        "output": Path("o"),
        "device": "auto",
    }
    names = (
        "input_column_names",
        "label_column_name",
        "batch_size",
        "config_file",
        "config",
        "fail_below",
        "fail_above",
    )
    return {**dict.fromkeys(names), "run_generated_code": False, **usual, **given}


def test_the_component_s_inputs_are_the_task_s_options(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"aggregator": false, "max_new_tokens": 9}')
    given = component(
        input_column_names="a,b", label_column_name="c", batch_size="8", device="gpu", fail_below="rouge1=0,bleu_1=0.1", fail_above="rouge2=1",
        config_file=tmp_path / "config.json", config='{"stemmer": true, "temperature": 0}', run_generated_code=True,
    )  # fmt: skip
    assert words(given) == [
        "--data", str(SAMPLES / "text-generation.jsonl"), "--model", "m", "--output", "o", "--input-column-names", "a,b",
        "--label-column-name", "c", "--engine", "vllm", "--concurrency", "8", "--fail-below", "rouge1=0", "--fail-below",
        "bleu_1=0.1", "--fail-above", "rouge2=1", "--run-generated-code", "--no-use-aggregator", "--max-new-tokens", "9", "--use-stemmer", "--temperature", "0",
    ]  # fmt: skip
    assert "--label-column-name" not in words(component(task="humaneval", label_column_name="c"))


@pytest.mark.parametrize("config", ['{"generator": 1}', '{"stemmer": "yes"}', '{"limit": true}', "[]", "{"])
def test_a_configuration_that_means_nothing_here_is_refused(config: str) -> None:
    with pytest.raises(SetupError, match="configuration"):
        words(component(config=config))


def test_a_folder_must_have_one_data_file(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="It has: none"):
        words(component(data=tmp_path))
    for name in ("a.jsonl", "b.csv", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(SetupError, match=r"It has: a\.jsonl, b\.csv\."):
        words(component(data=tmp_path))


@pytest.mark.filterwarnings("ignore::marshmallow.warnings.Marshmallow4Warning")
def test_azure_loads_both_files() -> None:
    ml = pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")
    job, step = ml.load_job(JOB), ml.load_component(COMPONENT)
    assert Path(job.base_path, job.code).resolve() == ROOT
    assert Path(step.base_path, step.code).resolve() == ROOT
    assert job.environment == step.environment == "llama-evaluate:1"
    made = yaml.safe_load((ROOT / "environments/evaluate/environment.yml").read_text())
    assert (made["name"], made["version"]) == ("llama-evaluate", "1")
    assert set(job.inputs) <= set(step.inputs)
    assert {name for name, one in step.inputs.items() if one.type != "string"} >= {"test_data", "mlflow_model"}
    azure_s = {"task", "test_data", "evaluation_config", "test_data_label_column_name", "test_data_input_column_names",
               "mlflow_model", "device", "batch_size", "evaluation_config_params"}  # fmt: skip
    assert azure_s <= set(step.inputs)


def test_the_job_s_command_runs_as_it_is(nano_model: Path, tmp_path: Path) -> None:
    """As Azure runs it: the placeholders are filled in, the output's folder is there and empty."""
    pytest.importorskip("rouge_score", reason="the extra evaluate is not installed")
    job = yaml.safe_load(JOB.read_text())
    (tmp_path / "out").mkdir()
    values = {
        "inputs.test_data": str(SAMPLES), "inputs.mlflow_model": str(nano_model), "inputs.device": "auto",
        "outputs.evaluation_result": str(tmp_path / "out"),
        **{f"inputs.{name}": value for name, value in job["inputs"].items() if isinstance(value, str) and name != "device"},
    }  # fmt: skip
    given = [job["command"]]
    for name, value in values.items():
        given[0] = given[0].replace("${{" + name + "}}", value)
    assert "${{" not in given[0]
    import shlex

    _, _, program, *rest = shlex.split(given[0])
    assert program == "llama_endpoints"
    done = command.run(*rest)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "out")["rouge1"]["problems"] == 3
    assert (tmp_path / "out/report.html").is_file()
