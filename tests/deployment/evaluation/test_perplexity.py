"""Perplexity: the sums are those of the model's own logits, whatever the windows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from llama_endpoints.evaluation.tasks.perplexity import windowed
from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.engine.batching.logits import next_token_logits, token_logprobs
from llama_serving.prompts.tokenizer import Tokenizer
from tests.support import command
from tests.support.in_process import serving

TEXT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"


def test_log_probabilities_are_those_of_the_models_logits(nano_tokenizer: Tokenizer) -> None:
    ids = [1, *nano_tokenizer.encode(TEXT * 4)]
    found = token_logprobs(NANO_FOLDER, len(ids), "float32")(ids)
    assert len(found) == len(ids) - 1 > 100  # more than one pass
    for at in (1, 2, 63, 64, 65, len(ids) - 1):
        logits = next_token_logits(NANO_FOLDER, [ids[:at]], "float32")[0].astype(np.float64)
        assert found[at - 1] == pytest.approx(float(logits[ids[at]] - np.logaddexp.reduce(logits)), abs=1e-3)


@pytest.mark.parametrize("window", [16, 17, 33, 200])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 31, 100, 199])
def test_each_token_is_counted_once(window: int, count: int) -> None:
    ids = list(range(10, 10 + count))

    def logprobs(given: list[int]) -> list[float]:
        assert given[0] == 1
        assert len(given) <= window
        return [-float(one) for one in given[1:]]

    assert windowed(ids, 1, window, logprobs) == [-float(one) for one in ids]  # type: ignore[arg-type]


def test_a_folder_is_measured_and_resumed(tmp_path: Path) -> None:
    folder, output = tmp_path / "texts", tmp_path / "e"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text(TEXT)
    (folder / "inner" / "é.py").write_text(TEXT * 9, encoding="utf-8")
    (folder / "empty.py").write_text("")
    (folder / "other.bin").write_bytes(b"\xff\xfe")
    words = ("evaluate", "perplexity", "--model", "nano", "--data", folder, "--output", output)
    refused = command.run(*words)
    assert (refused.returncode, "other.bin is not UTF-8" in refused.stderr) == (2, True)
    done = command.run(*words, "--pattern", "*.py", "--overwrite", "--window", "64")
    assert done.returncode == 0
    scores = [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()]
    assert [one["problem"] for one in scores] == ["a.py", "inner/é.py"]
    nll, tokens, size = (sum(one["values"][name] for one in scores) for name in ("nll", "tokens", "bytes"))
    metrics = json.loads((output / "metrics.json").read_text())["metrics"]
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(nll / tokens))
    assert metrics["bits per byte"]["value"] == pytest.approx(nll / size / math.log(2))
    assert scores[0]["values"]["bytes"] == len(TEXT)
    again = command.run("evaluate", "score", output)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_an_endpoint_computes_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.py").write_text(TEXT * 3)
    words = ("evaluate", "perplexity", "--model", "nano", "--data", folder, "--window", "64")
    here = command.run(*words, "--output", tmp_path / "here")
    with serving({"LLAMA_API_KEYS": "secret-key-1"}) as server:
        at = ("--url", server.url, "--output", tmp_path / "there")
        refused = command.run(*words, *at)
        there = command.run(*words, *at, env={"LLAMA_EVALUATE_KEY": "secret-key-1"})
    assert (here.returncode, refused.returncode, there.returncode) == (0, 2, 0)
    one, other = (
        json.loads((tmp_path / name / "scores.jsonl").read_text())["values"] for name in ("here", "there")
    )
    assert other == {**one, "nll": pytest.approx(one["nll"], abs=1e-3)}
    assert "secret-key-1" not in (tmp_path / "there" / "evaluation.json").read_text()
