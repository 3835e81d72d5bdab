"""The benchmark's own arithmetic: what it counts, which ratios it prints, what it keeps."""

import json
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from llama_endpoints.devtools.servers import RunningServer
from llama_endpoints.nano import FOLDER as NANO
from load_tests.bench import busy, front, gpu, jobs, limit, report
from load_tests.bench.contestants import ENGINE
from load_tests.bench.measure import Sample, prompt, ratio, throughput
from tests.support.paths import ROOT


def test_every_client_sends_all_of_its_requests_and_all_of_them_differ() -> None:
    asked: list[tuple[str, int]] = []
    lock = threading.Lock()

    def ask(text: str, new_tokens: int) -> int:
        with lock:
            asked.append((text, new_tokens))
        return 3

    sample = throughput("x", ask, clients=4, requests=5, new_tokens=9, first=100)
    assert (sample.contestant, sample.clients, sample.tokens) == ("x", 4, 60)
    assert {new for _, new in asked} == {9}
    assert len({text.split()[0] for text, _ in asked}) == 20
    assert asked[0][0] in {prompt(100 + n * 5) for n in range(4)}


def test_the_clients_ask_at_the_same_time() -> None:
    together = threading.Barrier(3)

    def ask(text: str, new_tokens: int) -> int:
        together.wait(30)
        return 1

    assert throughput("x", ask, clients=3, requests=2, new_tokens=1, first=0).tokens == 6


def test_a_failing_request_is_not_swallowed() -> None:
    def ask(text: str, new_tokens: int) -> int:
        raise OSError("no server")

    with pytest.raises(OSError, match="no server"):
        throughput("x", ask, clients=2, requests=1, new_tokens=1, first=0)


def test_a_ratio_is_the_median_over_the_rounds() -> None:
    samples = [Sample("a", 1, 100, 1.0), Sample("b", 1, 100, 2.0), Sample("a", 1, 90, 1.0), Sample("b", 1, 30, 1.0),
               Sample("a", 1, 100, 1.0), Sample("b", 1, 10, 1.0), Sample("a", 4, 1, 1.0)]  # fmt: skip
    assert ratio(samples, "a", "b", 1) == 3.0
    assert ratio(samples, "a", "b", 4) is None


def test_the_limit_counts_weights_once_and_each_rows_cache() -> None:
    assert limit.tokens_per_second(1000.0, weight_bytes=90, kv_bytes=10, rows=1) == 10.0
    assert limit.tokens_per_second(1000.0, weight_bytes=90, kv_bytes=10, rows=11) == 55.0


def test_the_table_and_the_file_have_everybody_and_every_sample(tmp_path: Path) -> None:
    samples = [Sample(ENGINE, 1, 80, 1.0), Sample("other", 1, 20, 1.0), Sample(ENGINE, 16, 400, 1.0)]
    table = report.table(samples, {1: 90.0, 16: 900.0})
    engine, other, last = table.splitlines()[1:]
    assert engine.split() == [*ENGINE.split(), "80.0", "(", "1.00)", "400.0", "(", "1.00)"]
    assert other.split() == ["other", "20.0", "(", "4.00)", "–"]
    assert last.split()[-2:] == ["90.0", "900.0"]
    report.write(tmp_path, samples, {1: 90.0, 16: 900.0}, {"memory": {"serving": 5}})
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert [s["tokens_per_second"] for s in figures["samples"]] == [80.0, 20.0, 400.0]
    assert figures["memory"] == {"serving": 5}
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_a_gpu_has_our_servers_share_of_the_bare_vllm() -> None:
    rates = {"vLLM": 200, "our server in front of vLLM": 198}
    samples = [
        Sample(f"{name}{how}", clients, rate * clients, 1.0)
        for name, rate in rates.items()
        for how in ("", ", streaming")
        for clients in (1, 64)
    ]
    assert gpu.table(samples, [1, 64]).splitlines()[2:] == [
        "| 1 | 200 | 198 | 0.99 | 200 | 198 | 0.99 |",
        "| 64 | 12,800 | 12,672 | 0.99 | 12,800 | 12,672 | 0.99 |",
    ]


def test_without_a_gpu_that_measurement_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "load_tests.bench.gpu", "--output", str(tmp_path / "out")],
        env={**os.environ, "LLAMA_VLLM": sys.executable, "CUDA_VISIBLE_DEVICES": ""}, cwd=ROOT, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, "--cpu" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_fair_share_is_that_of_all_threads() -> None:
    assert [busy.fair_slowdown(*case) for case in ((2, 1), (2, 2), (8, 4))] == [1.5, 2.0, 1.5]
    told = busy.told([busy.Busy(clients, quiet=100, spinning=50, beside=25) for clients in busy.CLIENTS])
    fair = 4 / busy.fair_slowdown(len(os.sched_getaffinity(0)))
    assert told[0].startswith(f"beside 2 busy processes, 1 clients: {fair:.2f} times")
    assert told[0].endswith("alone 2.00 of threads that always spin")


def test_the_rows_of_a_job_are_mixed_and_the_same_for_all(tmp_path: Path) -> None:
    rows = list(jobs.rows(400))
    assert rows == [
        json.loads(line) for line in jobs.write(tmp_path / "rows.jsonl", 400).read_text().splitlines()
    ]
    for lengths, (low, high) in (
        ([len(row["prompt"].split()) for row in rows], jobs.PROMPT),
        ([row["max_tokens"] for row in rows], jobs.ANSWER),
    ):
        assert low <= min(lengths) < 2 * low
        assert high / 2 < max(lengths) <= high
    assert sum(a["max_tokens"] != b["max_tokens"] for a, b in pairwise(rows)) > 300


def test_a_job_is_measured_by_both(nano_model: Path, tmp_path: Path) -> None:
    work = jobs.write(tmp_path / "rows.jsonl", 3)
    assert jobs.by_the_command(nano_model, work, tmp_path / "records.jsonl") > 0
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 3
    assert jobs.by_a_loop(Path(sys.executable), NANO, work) > 0


def test_a_job_that_did_not_do_its_work_is_not_measured(nano_model: Path, tmp_path: Path) -> None:
    work = tmp_path / "rows.jsonl"
    work.write_text('{"prompt": "def f(x):", "max_tokens": 3, "temperature": 0, "stop": " "}\n')
    with pytest.raises(RuntimeError, match="another length"):
        jobs.by_the_command(nano_model, work, tmp_path / "records.jsonl")


def test_a_front_is_measured_in_front_of_a_stub() -> None:
    with front._stub() as env:
        url = env["LLAMA_UPSTREAM_URL"] + "/v1/completions"
        assert front.rate(url, {"prompt": [1], "max_tokens": front.NEW_TOKENS}, sequences=3, requests=2) > 0


def test_an_answer_that_is_none_is_not_measured(own: RunningServer) -> None:
    with pytest.raises(RuntimeError, match="the front answers 400"):
        front.rate(f"{own.url}/v1/completions", {"prompt": ""}, sequences=2, requests=1)


BARE: Final = """
import sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in {"transformers", "accelerate", "mlflow", "click", "tqdm", "yaml", "jsonschema", "pandas", "fastapi"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Bare())

from pathlib import Path
from llama_serving.sampling_params import SamplingParams
from llama_serving.engine.batching.factory import start
from llama_serving.settings import Settings

engine = start(Path(sys.argv[1]), dtype="float32", context=64, settings=Settings(max_num_seqs=2))
print(sum(1 for _ in engine.submit([1, 300, 301], SamplingParams(max_new_tokens=5))))
engine.close()
"""


def test_the_engine_runs_where_nothing_but_torch_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BARE, str(NANO)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 < int(done.stdout) <= 5
