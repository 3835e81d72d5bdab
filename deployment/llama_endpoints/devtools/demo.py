"""`make run` and `make serve`: the embedded model behind the real servers."""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click
import requests
from tqdm import tqdm

from llama_endpoints.checkpoints.inspection import inspect
from llama_endpoints.checkpoints.package import package
from llama_endpoints.devtools.servers import azmlinfsrv, mlflow_serve, own_server
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from llama_serving.contract.json_lines import json_line

ROOT: Final = Path(__file__).parents[3]
MODEL: Final = ROOT / "build" / "nano"
SAMPLES: Final = ROOT / "yaml" / "online" / "samples"
ROWS: Final = ROOT / "yaml" / "batch" / "samples" / "rows.jsonl"
TIMEOUT_S: Final = 120
SEED: Final = 2
"""Makes every run print the same."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A request, its answer, and the endpoint."""

    endpoint: str
    request: Any
    answer: Any

    def __str__(self) -> str:
        return json_line({"endpoint": self.endpoint, "request": self.request, "answer": self.answer})


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the demo."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # exit orderly, so that no server is left running
        signal.signal(number, lambda number, _: sys.exit(128 + number))


@main.command()
def run() -> None:
    """Package nano, query the real servers, and score a batch. Print one line of JSON per request."""
    bar = tqdm(total=5, desc="package nano", unit="step", file=sys.stderr)
    package_nano()
    samples = [json.loads((SAMPLES / name).read_text(encoding="utf-8"))
               for name in ("completion.json", "dialog.json", "infill.json")]  # fmt: skip
    for sample in samples:
        sample["input_data"]["parameters"] = {**sample["input_data"].get("parameters", {}), "seed": SEED}
    for description, steps in (
        ("azmlinfsrv", through_azmlinfsrv(samples)),
        ("mlflow models serve", through_mlflow(samples)),
        ("our server", through_own_server(samples[0])),
        ("batch driver", through_batch_driver(ROWS)),
    ):
        bar.update()
        bar.set_description(description)
        for shown in steps:
            bar.write(str(shown), file=sys.stdout)
    bar.update()
    bar.close()


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8453, show_default=True)
def serve(*, port: int) -> None:
    """Run `mlflow models serve` with nano on loopback until Ctrl-C."""
    package_nano()
    body = {"inputs": json.loads((SAMPLES / "completion.json").read_text(encoding="utf-8"))["input_data"]}
    with mlflow_serve(MODEL, port=port) as server:
        click.echo(
            f"Ready. Press Ctrl-C to stop. Call it from another shell:\n"
            f"curl {server.url}/invocations -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
        )
        try:
            server.process.wait()
        except KeyboardInterrupt:
            click.echo("Stopped.")


def package_nano() -> None:
    """Package the embedded model as an MLflow model in build/."""
    package(inspect(FOLDER, NANO), MODEL, overwrite=True)


def through_azmlinfsrv(samples: Sequence[Any]) -> Iterator[Shown]:
    """Send Azure's bodies to Azure's inference server."""
    with azmlinfsrv(MODEL, score=ROOT / "score") as server:
        for sample in samples:
            yield Shown("azmlinfsrv /score", sample, _post(f"{server.url}/score", sample))


def through_mlflow(samples: Sequence[Any]) -> Iterator[Shown]:
    """Send the same prompts as MLflow's `inputs`, and one OpenAI body."""
    bodies = [{"inputs": sample["input_data"]} for sample in samples]
    bodies.append({"messages": [{"role": "user", "content": "Write a haiku about loops."}], "max_tokens": 32})
    with mlflow_serve(MODEL) as server:
        for body in bodies:
            yield Shown("mlflow /invocations", body, _post(f"{server.url}/invocations", body))


def through_own_server(sample: Any) -> Iterator[Shown]:
    """Send Azure's body to our own server, and a completion and a streaming chat with OpenAI's client."""
    from openai import OpenAI

    prompt = sample["input_data"]["input_string"][0]
    with own_server(MODEL) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        yield Shown("our server /score", sample, _post(f"{server.url}/score", sample))
        completion = client.completions.create(model="nano", prompt=prompt, max_tokens=256, seed=SEED)
        sent = {"model": "nano", "prompt": prompt, "max_tokens": 256, "seed": SEED}
        yield Shown("openai /v1/completions", sent, completion.model_dump(exclude_none=True))
        stream = client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": prompt}], max_tokens=64, seed=SEED, stream=True
        )
        pieces = [chunk.choices[0].delta.content for chunk in stream]
        yield Shown("openai /v1/chat/completions, streaming", prompt, pieces)


def through_batch_driver(rows: Path) -> Iterator[Shown]:
    """Pass a JSONL file to the batch driver, loaded by path and called as Azure does."""
    os.environ["AZUREML_MODEL_DIR"] = str(MODEL)
    driver = _load(ROOT / "score" / "batch_driver.py")
    driver.init()
    requests_ = [json.loads(line) for line in rows.read_text(encoding="utf-8").split("\n") if line.strip()]
    for request, record in zip(requests_, driver.run([str(rows)]), strict=True):
        yield Shown("batch driver", request, json.loads(record))


def _load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("entry_module", script)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {script}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _post(url: str, body: Any) -> Any:
    response = requests.post(url, json=body, timeout=TIMEOUT_S)
    response.raise_for_status()
    return response.json()


if __name__ == "__main__":
    main()
