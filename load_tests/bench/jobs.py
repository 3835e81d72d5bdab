"""A batch job: prompts and answers of mixed length, as fast as possible.

It runs by `llama-endpoints batch`, and by a plain loop with transformers (`pipeline_loop.py`). Each is timed as a whole process,
including loading the model.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llama_endpoints.devtools.servers import NO_ENV, console_script
from llama_serving.batch.outputs import Outputs
from load_tests.bench.measure import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SEED: Final = 5
PROMPT: Final = (10, 300)
ANSWER: Final = (8, 128)
"""Words and tokens, drawn uniformly on a logarithmic scale: many short ones, some long ones, as in real files."""
TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Renders a dialog of one message as its text."""


def rows(number: int) -> Iterator[dict[str, Any]]:
    """Return rows, the same for every contestant. With random weights no answer ends by itself."""
    rng = random.Random(SEED)  # noqa: S311

    def between(limits: tuple[int, int]) -> int:
        low, high = limits
        return int(low * (high / low) ** rng.random())

    for _ in range(number):
        text = " ".join(rng.choice(WORDS) for _ in range(between(PROMPT)))
        yield {"prompt": text, "max_tokens": between(ANSWER), "ignore_eos": True, "temperature": 0}


def write(path: Path, number: int) -> Path:
    """Return the rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(number)), encoding="utf-8")
    return path


def by_the_command(packaged: Path, work: Path, output: Path, *, env: Mapping[str, str] = NO_ENV) -> float:
    """Return the seconds that `llama-endpoints batch` takes.

    Args:
        packaged: the model.
        work: the rows.
        output: the file for the records; an existing one is replaced.
        env: settings.

    Raises:
        RuntimeError: an answer has another length than requested.
    """
    command = [console_script("llama-endpoints"), "batch", "--model", str(packaged), "--input", str(work),
               "--output", str(output)]  # fmt: skip
    for path in Outputs(output).all:  # a journal of an interrupted run would be resumed
        path.unlink(missing_ok=True)
    seconds = _timed(command, env)
    asked = [row["max_tokens"] for row in map(json.loads, work.read_text(encoding="utf-8").splitlines())]
    records = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    if [record["usage"]["completion_tokens"] for record in records] != asked:
        raise RuntimeError("an answer has another length than was asked for")
    return seconds


def by_a_loop(python: Path, checkpoint: Path, work: Path) -> float:
    """Return the seconds of a loop around transformers' pipeline, with a Python that has transformers."""
    return _timed([str(python), str(Path(__file__).with_name("pipeline_loop.py")), str(checkpoint), str(work)])


def by_run_batch(python: Path, options: Sequence[str], work: Path, *, env: Mapping[str, str]) -> float:
    """Return the seconds of vLLM's own `run-batch` for the same rows, in OpenAI's Batch format.

    It takes only dialogs: each prompt is one message, which a template turns back into the prompt.

    Args:
        python: a Python that has vLLM.
        options: vLLM's options, with the model.
        work: the rows.
        env: environment of its process.

    Raises:
        RuntimeError: it fails, or an answer has another length than requested.
    """
    asked = [json.loads(line) for line in work.read_text(encoding="utf-8").splitlines()]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": _dialog(row)}
        for n, row in enumerate(asked)
    ]
    given, output = work.with_suffix(".openai.jsonl"), work.with_suffix(".answers.jsonl")
    given.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = [
        str(python),
        "-m",
        "vllm.entrypoints.openai.run_batch",
        "-i",
        str(given),
        "-o",
        str(output),
        "--chat-template",
        TEMPLATE,
        *options,
    ]
    seconds = _timed(command, env)
    answers = {
        a["custom_id"]: a["response"] for a in map(json.loads, output.read_text(encoding="utf-8").splitlines())
    }
    found = [answers[str(n)]["body"]["usage"]["completion_tokens"] for n in range(len(asked))]
    if found != [row["max_tokens"] for row in asked]:
        raise RuntimeError("an answer of run-batch has another length than was asked for")
    return seconds


def _dialog(row: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in row.items() if name != "prompt"}
    return {"model": "any", "messages": [{"role": "user", "content": row["prompt"]}], **others}


def _timed(command: Sequence[str], env: Mapping[str, str] = NO_ENV) -> float:
    started = time.perf_counter()
    mine = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    quiet = {**mine, "TRANSFORMERS_VERBOSITY": "error", **env}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=quiet)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - started
