"""The same request gives the same text through every door. All doors are real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.devtools.servers import RunningServer, console_script
from llama_serving.contract import azure
from llama_serving.service.service import Service
from tests.conftest import ROOT, post

TIMEOUT_S = 180

COMPLETION = "    def push(self, item):\n        "
DIALOG = [
    {"role": "system", "content": "Answer in one line."},
    {"role": "user", "content": "Reverse a list 🦙"},
    {"role": "assistant", "content": "a[::-1]"},
    {"role": "user", "content": "  Now sort it"},
]
GAP = {"prefix": "def mean(values):\r\n\ttotal = ", "suffix": "\r\n\treturn total / len(values)\n"}

LENGTH = {"max_new_tokens": 16, "min_new_tokens": 8}
GREEDY = {"do_sample": False, **LENGTH}
SEEDED = {"do_sample": True, "temperature": 1.3, "top_p": 0.95, "seed": 7, **LENGTH}
PENALIZED = {**SEEDED, "seed": 2**62, "top_k": 50, "repetition_penalty": 1.2, "frequency_penalty": 0.5}

SCHEMA = {"type": "object", "properties": {"a": {"enum": [None, 1.5, "é"]}}, "required": ["a"], "default": None}
"""A null in a schema is a value."""

ASKED: dict[str, tuple[Any, dict[str, Any]]] = {
    f"{kind} {how}": (prompt, parameters)
    for kind, prompt in (("completion", COMPLETION), ("dialog", DIALOG), ("infill", GAP))
    for how, parameters in (("greedy", GREEDY), ("seeded", SEEDED))
} | {
    "penalties": (COMPLETION, PENALIZED),
    "stop": (COMPLETION, {**GREEDY, "stop": "e", "return_full_text": True}),
    "full text": (GAP, {**SEEDED, "return_full_text": True}),
    "two sequences": (COMPLETION, {**SEEDED, "num_return_sequences": 2}),
    "a schema": (
        COMPLETION,
        {**SEEDED, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ),
    "a pattern": (DIALOG, {**SEEDED, "structured_outputs": {"regex": "[a-z]{3,9}(-[0-9])?"}}),
}
"""What is asked for at every door: a prompt in the form of `input_string`, and parameters."""

Texts = dict[str, Any]
"""Of each request the text, or the list of texts."""


def input_data(prompt: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Bodies 1, 3 and 6: a dialog stands alone, all else in a list."""
    alone = isinstance(prompt, list)
    return {"input_string": prompt if alone else [prompt], "parameters": parameters}


def text_of(answer: Any) -> Any:
    """`{"output": text}`, or one row `{"0": text, …}`."""
    if isinstance(answer, dict):
        return answer["output"]
    (row,) = answer
    texts = list(row.values())
    return texts[0] if len(texts) == 1 else texts


@pytest.fixture(scope="module")
def expected(service: Service) -> Texts:
    """What the service says in this process."""
    return {
        name: text_of(azure.answer(asked, service.generate(asked)))
        for name, (prompt, parameters) in ASKED.items()
        for asked in (azure.parse({"input_data": input_data(prompt, parameters)}),)
    }


def test_the_requests_tell_doors_apart(expected: Texts) -> None:
    texts = [text for one in expected.values() for text in (one if isinstance(one, list) else [one])]
    assert all(texts)
    # The first of two sequences is the one that comes when one is asked for.
    assert expected["two sequences"][0] == expected["completion seeded"]
    assert len(set(texts)) == len(texts) - 1 == len(ASKED)


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., str]:
    """Runs a program in an empty folder and returns what it prints."""

    def run(*command: str, stdin: str = "", **environment: str) -> str:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "AZUREML_"))
        }
        done = subprocess.run(
            command,
            cwd=tmp_path,
            input=stdin,
            env={**clean, **environment},
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("name", ["dialog greedy", "infill seeded"])
def test_score(nano_model: Path, process: Callable[..., str], expected: Texts, name: str) -> None:
    body = json.dumps({"input_data": input_data(*ASKED[name])})
    command = (console_script("llama-endpoints"), "score", "--model", str(nano_model), "--request", "-")
    assert text_of(json.loads(process(*command, stdin=body))) == expected[name]


@pytest.mark.parametrize("name", ASKED)
def test_azmlinfsrv(azure_server: RunningServer, expected: Texts, name: str) -> None:
    answer = post(f"{azure_server.url}/score", {"input_data": input_data(*ASKED[name])})
    assert answer.status == 200, answer.text
    assert text_of(answer.json) == expected[name]


@pytest.mark.parametrize("name", ASKED)
def test_mlflow_models_serve(mlflow_server: RunningServer, expected: Texts, name: str) -> None:
    answer = post(f"{mlflow_server.url}/invocations", {"inputs": input_data(*ASKED[name])})
    assert answer.status == 200, answer.text
    assert text_of(answer.json["predictions"]) == expected[name]


OPENAI = {"max_new_tokens": "max_tokens", "return_full_text": "echo"}


@pytest.mark.parametrize("name", [name for name in ASKED if name not in ("full text", "two sequences")])
def test_openai_bodies_on_mlflow(mlflow_server: RunningServer, expected: Texts, name: str) -> None:
    prompt, parameters = ASKED[name]
    given = {OPENAI.get(key, key): value for key, value in parameters.items() if key != "do_sample"}
    sampling = {} if parameters["do_sample"] else {"temperature": 0}
    if isinstance(prompt, list):
        body = {"messages": prompt}
    elif isinstance(prompt, dict):
        body = {"prompt": prompt["prefix"], "suffix": prompt["suffix"]}
    else:
        body = {"prompt": prompt}
    answer = post(f"{mlflow_server.url}/invocations", {**body, **given, **sampling})
    assert answer.status == 200, answer.text
    (choice,) = answer.json["choices"]
    text = choice["message"]["content"] if isinstance(prompt, list) else choice["text"]
    assert text == expected[name]


@pytest.mark.parametrize(
    "held", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"choice": ["{é}"]}}]
)
def test_mlflow_passes_constraints_in_params(mlflow_server: RunningServer, held: dict[str, Any]) -> None:
    params = {**held, "max_new_tokens": 12}
    answer = post(f"{mlflow_server.url}/invocations", {"inputs": [COMPLETION], "params": params})
    assert answer.status == 200, answer.text
    assert answer.json["predictions"][0].startswith("{")
    wrong = post(
        f"{mlflow_server.url}/invocations",
        {"inputs": [COMPLETION], "params": {"structured_outputs": {"json": {"not": {}}}}},
    )
    assert (wrong.status, wrong.json["error"]["code"]) == (400, "unsupported_constraint")


BATCH_DRIVER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("entry_module", sys.argv[1])
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)
driver.init()
print(json.dumps(driver.run(sys.argv[2:])))
"""
"""By its path, as Azure ML loads it: the folder of the script is on no path."""


def rows_of(prompt: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    if isinstance(prompt, list):
        return {"messages": prompt, "parameters": parameters}
    if isinstance(prompt, dict):
        return {**prompt, "parameters": parameters}
    return {"prompt": prompt, "parameters": parameters}


def test_batch_driver(nano_model: Path, tmp_path: Path, process: Callable[..., str], expected: Texts) -> None:
    short = [rows_of(*asked) for asked in ASKED.values()]
    whole = [{"input_data": input_data(*asked)} for asked in ASKED.values()]
    paths = []
    for name, rows in (("short", short), ("whole", whole)):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    driver = str(ROOT / "score" / "batch_driver.py")
    command = (sys.executable, "-c", BATCH_DRIVER, driver, *map(str, paths))
    # Azure names the folder that the model's folder lies in.
    printed = process(*command, AZUREML_MODEL_DIR=str(nano_model.parent))
    records = [json.loads(record) for record in json.loads(printed)]
    places = [("short.jsonl", n + 1) for n in range(len(ASKED))] + [
        ("whole.jsonl", n + 1) for n in range(len(ASKED))
    ]
    assert [(record["file"], record["line"]) for record in records] == places
    assert [record["error"] for record in records] == [None] * len(places)
    assert [record["output"] for record in records] == [*expected.values(), *expected.values()]


PYFUNC = """
import json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
told = []
for body in json.load(sys.stdin):
    told.append({"predict": model.predict(body), "stream": list(model.predict_stream(body))})
print(json.dumps(told))
"""


def test_pyfunc_predict_and_its_stream(nano_model: Path, process: Callable[..., str], expected: Texts) -> None:
    bodies = json.dumps([input_data(*asked) for asked in ASKED.values()])
    printed = process(sys.executable, "-c", PYFUNC, str(nano_model), stdin=bodies)
    for (name, text), told in zip(expected.items(), json.loads(printed), strict=True):
        assert text_of(told["predict"]) == text
        sequences: dict[str, str] = {}
        for delta in told["stream"]:
            ((sequence, piece),) = delta.items()
            sequences[sequence] = sequences.get(sequence, "") + piece
        assert len(told["stream"]) > len(sequences), f"{name} came in one piece"
        assert list(sequences.values()) == (text if isinstance(text, list) else [text])
