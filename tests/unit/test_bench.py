"""The benchmark's own arithmetic: what it counts, which ratios it prints, what it keeps."""

import json
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from deployment.nano import FOLDER as NANO
from load_tests.bench import jobs, limit, report
from load_tests.bench.contestants import ENGINE
from load_tests.bench.measure import Sample, prompt, ratio, throughput


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


def test_the_rows_of_a_job_are_mixed_and_the_same_for_all(tmp_path: Path) -> None:
    rows = jobs.rows(400)
    assert rows == jobs.read(jobs.write(tmp_path / "rows.jsonl", 400))
    for lengths, (low, high) in (
        ([len(row.ids) for row in rows], jobs.PROMPT),
        ([row.new_tokens for row in rows], jobs.ANSWER),
    ):
        assert low <= min(lengths) < 2 * low
        assert high / 2 < max(lengths) <= high
    assert sum(a.new_tokens != b.new_tokens for a, b in pairwise(rows)) > 300


BARE: Final = """
import runpy, sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in {"transformers", "accelerate", "mlflow", "click", "tqdm", "yaml", "jsonschema", "pandas", "fastapi"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Bare())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_the_engines_own_benchmark_runs_where_nothing_but_torch_is(root: Path, tmp_path: Path) -> None:
    work = jobs.write(tmp_path / "rows.jsonl", 3)
    command = [sys.executable, "-c", BARE, "load_tests.bench.jobs", str(NANO), str(work)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) > 0


def test_the_loop_that_a_job_is_measured_against_runs(root: Path, tmp_path: Path) -> None:
    work = jobs.write(tmp_path / "rows.jsonl", 3)
    script = root / "load_tests" / "bench" / "pipeline_loop.py"
    command = [sys.executable, str(script), str(NANO), str(work)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0
