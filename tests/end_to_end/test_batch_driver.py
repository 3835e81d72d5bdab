"""Our driver in a job as Azure runs it: the same records as `llama-endpoints batch`, whatever happens on the way."""

import json
from pathlib import Path

import pytest

from tests.support.azure_jobs import BATCH_DEPLOYMENT, PATIENCE_S, ROOT, batch, written

KILLED_ONCE = '''
"""The real driver; the first process is killed when some rows are in the journal."""
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, SCORE)
from llama_serving.hosts import azureml_batch as driver

driver.SYNC_S = 0.01
output = pathlib.Path(os.environ["AZUREML_BI_OUTPUT_PATH"])
mark = output.parent / "killed"

def kill():
    while True:
        for path in output.glob(".*.journal"):
            if path.read_bytes().count(b"\\n") > 8:
                mark.write_bytes(path.read_bytes())
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.005)

init = driver.init
inner = driver.runner.run

async def noted(service, windows, take):
    def took(entry):
        with open(output.parent / f"took-{os.getpid()}", "a") as file:
            file.write(f"{entry.row}\\n")
        take(entry)
    await inner(service, windows, took)

driver.runner.run = noted

def run(mini_batch):
    if not mark.exists():
        threading.Thread(target=kill, daemon=True).start()
    return driver.run(mini_batch)
'''


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "sub").mkdir()
    for number, name in enumerate(("a.jsonl", "b.jsonl", "sub/a.jsonl")):
        lines = [
            json.dumps({"id": n, "prompt": f"def f{number}{n}(x):", "max_tokens": 24, "temperature": 0, "n": 1})
            for n in range(20)
        ]
        (folder / name).write_text("\n".join([*lines, "{", "", '{"prompt": "a", "top_p": 7}']))
    (folder / "empty.jsonl").write_text("\n")
    return folder


@pytest.fixture(scope="module")
def expected(rows: Path, nano_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("expected") / "out.jsonl"
    code, told = batch(nano_model, rows, output)
    assert code == 0, told
    return sorted(output.read_text().splitlines())


def test_append_row(rows: Path, nano_model: Path, expected: list[str], tmp_path: Path) -> None:
    file = BATCH_DEPLOYMENT
    code, told = batch(
        nano_model,
        rows,
        tmp_path / "out",
        "--as-azure",
        str(file),
        "--engine",
        "batching",
        "--dtype",
        "float32",
    )
    assert code == 0, told
    lines = (tmp_path / "out" / "score" / "predictions.jsonl").read_text().splitlines()
    assert sorted(filter(None, lines)) == expected
    assert "4 succeeded, 0 failed" in told
    assert [path.name for path in (tmp_path / "out" / "score").iterdir()] == ["predictions.jsonl"]


def test_summary_only_with_two_processes(
    rows: Path, nano_model: Path, expected: list[str], tmp_path: Path
) -> None:
    variables = {"LLAMA_BATCH_OUTPUT": "summary_only", "LLAMA_THREADS": "1"}
    file = written(
        tmp_path, ROOT / "score" / "batch_driver.py", mini_batch_size=2, max_concurrency_per_instance=2,
        output_action="summary_only", retry_settings={"timeout": PATIENCE_S}, error_threshold=0,
        environment_variables=variables,
    )  # fmt: skip
    code, told = batch(nano_model, rows, tmp_path / "out", "--as-azure", str(file))
    assert code == 0, told
    files = sorted((tmp_path / "out" / "score").glob("*.jsonl"))
    assert len(files) == 4
    assert sorted(line for path in files for line in path.read_text().splitlines()) == expected


def test_a_process_that_is_killed_is_gone_on_from(
    rows: Path, nano_model: Path, expected: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "killed_once.py"
    script.write_text(KILLED_ONCE.replace("SCORE", repr(str(ROOT / "score"))))
    file = written(
        tmp_path, script, mini_batch_size=4, retry_settings={"timeout": PATIENCE_S, "max_retries": 1},
        error_threshold=0,
    )  # fmt: skip
    code, told = batch(nano_model, rows, tmp_path / "out", "--as-azure", str(file))
    assert code == 0, told
    assert "try 1 of 2: its process ended with exit code -9" in told
    lines = (tmp_path / "out" / "score" / "predictions.csv").read_text().splitlines()
    assert sorted(filter(None, lines)) == expected
    assert not list((tmp_path / "out" / "score").glob(".*"))
    kept = [int(line.split()[1]) for line in (tmp_path / "out" / "killed").read_bytes().splitlines()[1:]]
    first, second = sorted((tmp_path / "out").glob("took-*"), key=lambda path: path.stat().st_mtime)
    assert len(kept) >= 8
    assert not set(kept) & set(map(int, second.read_text().split())), "what was kept was not done again"
    assert {*map(int, first.read_text().split()), *map(int, second.read_text().split())} == set(
        range(len(expected))
    )
