"""What the image for GPUs starts: azmlinfsrv with a scoring script, else our own server from the code in the model.

The image itself can't be built here. Its start script runs as it is; what stands for its `python` is this one, told to listen on
loopback and not where Azure's front would ask.
"""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from llama_endpoints.devtools.servers import free_port
from tests.conftest import ROOT

START = ROOT / "environments/gpu/start.sh"
PYTHON = """\
#!/bin/sh
echo "$@" > "$CALLED"
"$REAL" -c 'import llama_serving; print(llama_serving.__file__)' >> "$CALLED"
exec "$REAL" "$1" "$2" --host 127.0.0.1 --port "$PORT"
"""
AZMLINFSRV = """\
#!/bin/sh
echo "$(pwd) $@"
"""


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for PATH with what the image has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("python", PYTHON), ("azmlinfsrv", AZMLINFSRV)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def environment(commands: Path, **more: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AZUREML_", "AML_", "LLAMA_"))
    }
    return {**kept, "PATH": f"{commands}:{os.environ['PATH']}", "REAL": sys.executable, **more}


@pytest.fixture
def server(commands: Path, tmp_path: Path, nano_model: Path) -> Iterator[tuple[str, Path]]:
    """Our server as the container starts it, on a model below AZUREML_MODEL_DIR; its address, and what was called."""
    port, called = free_port("127.0.0.1"), tmp_path / "called"
    above = tmp_path / "azureml-models"
    above.mkdir()
    (above / "nano").symlink_to(nano_model)
    variables = environment(
        commands, AZUREML_MODEL_DIR=f"{above}/", LLAMA_ENGINE="batching", PORT=str(port), CALLED=str(called)
    )
    with subprocess.Popen(
        ["sh", START], env=variables, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}", called
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0


def test_openai_s_client_works_with_the_endpoint_s_key(server: tuple[str, Path]) -> None:
    """Azure's front checks the key and passes it on; the server behind it looks at none."""
    url, called = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="the endpoint's", max_retries=120)
    answer = client.completions.create(model="nano", prompt="def fib(n):", max_tokens=8, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    for path in ("/health/ready", "/health/live"):
        with urllib.request.urlopen(f"{url}{path}", timeout=30) as probe:
            assert probe.status == 200
    arguments, code = called.read_text("utf-8").splitlines()
    assert arguments == "-m llama_serving.server --host 0.0.0.0 --port 5001 --open-to-all"
    assert "/azureml-models/nano/code/llama_serving/" in code, "the model's own code, and not what is installed"


def test_a_scoring_script_is_azmlinfsrv_s(commands: Path, tmp_path: Path) -> None:
    variables = environment(commands, AZUREML_ENTRY_SCRIPT="score.py", AML_APP_ROOT=str(tmp_path))
    done = subprocess.run(["sh", START], env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == (f"{tmp_path} --entry_script score.py --port 5001\n", 0)


def test_a_folder_without_a_model_is_said(commands: Path, tmp_path: Path) -> None:
    variables = environment(commands, AZUREML_MODEL_DIR=str(tmp_path))
    done = subprocess.run(["sh", START], env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"There is no MLmodel file below {tmp_path}" in done.stderr


def test_a_start_that_can_t_succeed_is_one_sentence() -> None:
    command = [sys.executable, "-m", "llama_serving.server"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AZUREML_", "LLAMA_"))}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "Error: AZUREML_MODEL_DIR is not set. Set it to the folder of the packaged model, or give --model.\n",
    )
