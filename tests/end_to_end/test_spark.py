"""The example job on a real Spark: a master and two executors, processes of their own, as on a cluster."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import console_script, environment
from tests.support.paths import ROOT

pyspark = pytest.importorskip("pyspark", reason="make test installs the extra spark")

PATIENCE_S = 280

pytestmark = pytest.mark.skipif(
    shutil.which("java") is None and "JAVA_HOME" not in os.environ, reason="Spark needs Java, and there is none"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all sorts, with everything that can be wrong with a row."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "sub").mkdir()

    def row(file: int, number: int) -> bytes:
        sampling = {"seed": number} if number % 2 else {"temperature": 0}
        return json.dumps(
            {"id": number, "prompt": f"def f{file}_{number}(x):", "max_tokens": 4 + number % 9, **sampling}
        ).encode()

    strange = [b"{", b"", b" ", b"\xff\xfe", b'{"prompt": "a", "top_p": 7}', b"[1]", b'"' + b"x" * 5000 + b'"',
               '{"prompt": "a\u2028b", "max_tokens": 2, "temperature": 0}'.encode()]  # fmt: skip
    (folder / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join([*(row(1, n) for n in range(60)), *strange])
    )
    (folder / "sub" / "a.jsonl").write_bytes(b"\n".join(row(2, n) for n in range(30)))
    packed = gzip.compress(b"\n".join(row(3, n) for n in range(200)))
    (folder / "torn.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "empty.jsonl").write_bytes(b"\n")
    return folder


@pytest.fixture(scope="module")
def expected(rows: Path, nano_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("expected") / "out.jsonl"
    subprocess.run(
        [console_script("llama-endpoints"), "batch", "--model", str(nano_model), "--input", str(rows),
         "--output", str(output), "--parameters", '{"top_p": 0.5}'],
        check=True, timeout=PATIENCE_S, env=environment({"LLAMA_MAX_BODY": "4096"}), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return output.read_text().splitlines()


def test_the_same_records_as_the_command_in_the_same_order(
    rows: Path, expected: list[str], nano_model: Path, tmp_path: Path
) -> None:
    home, output = tmp_path / "spark", tmp_path / "out"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():  # Spark's workers write beside what is in its home
        (home / part.name).symlink_to(part)
    done = subprocess.run(
        [sys.executable, "deployment/llama_endpoints/spark/job.py", "--model", str(nano_model), "--input", str(rows),
         "--output", str(output), "--parameters", '{"top_p": 0.5}', "--master", "local-cluster[2,1,1024]"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=ROOT,
        env=environment({"LLAMA_MAX_BODY": "4096", "LLAMA_THREADS": "1", "SPARK_HOME": str(home),
                         "SPARK_LOCAL_IP": "127.0.0.1"}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = sorted(output.glob("part-*"))
    assert len(parts) > 2
    found = [line for part in parts for line in part.read_text().splitlines()]
    assert found == expected
    assert sum(json.loads(line)["error"] is not None for line in found) >= 5
    logs = [path.read_text() for path in (home / "work").rglob("stderr")]
    loads = sum(log.count("batching engine on the") for log in logs)
    assert (len(logs), loads) == (2, 2), "each executor loads the model once, whatever the number of partitions"
    assert "tasks at a time" not in done.stderr
