"""The first process of the image for vLLM: both servers come up in order, and end together, whichever way."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployment.servers import console_script, environment, free_port
from llama_serving.catalog import NANO
from llama_serving.contract import azure
from llama_serving.model_files import ModelFiles
from llama_serving.service import Service
from tests import stand_in
from tests.conftest import ROOT, Answer, post

START = ROOT / "environments" / "vllm" / "start.py"
PATIENCE_S = 60


def running(pid: int) -> bool:
    """Whether it computes still: what waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass
class Container:
    """`start.py` as the image runs it, with stand-ins for both servers on its PATH."""

    folder: Path
    port: int
    settings: dict[str, str]
    stdin: int
    process: subprocess.Popen[str] | None = None

    def tell(self, *what: str) -> None:
        for name in what:
            (self.folder / name).touch()

    def start(self, *front: str, **settings: str) -> None:
        command = (sys.executable, str(START), *(front or ("azmlinfsrv", "--port", "5001")))
        self.run(command, ROOT / "score", settings)

    def run(self, command: Sequence[str], cwd: Path, settings: Mapping[str, str]) -> None:
        # Its output goes to a pipe that every process of it holds: communicate() waits for the last of them.
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment({**self.settings, **settings}), text=True,
            stdin=self.stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def signal(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """Exit code and output, when the last process that it started has ended."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, output

    def journal(self) -> list[str]:
        file = self.folder / "journal"
        return file.read_text("utf-8").splitlines() if file.exists() else []

    def wait_for(self, line: str, times: int = 1) -> None:
        assert self.process is not None
        until(lambda: self.journal().count(line) >= times or self.process.poll() is not None, line)
        assert self.journal().count(line) >= times, self.end()

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def started(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text("utf-8"))
        return loaded


@pytest.fixture
def container(tmp_path: Path, nano_model: Path) -> Iterator[Container]:
    folder, scripts = tmp_path / "stand-in", tmp_path / "bin"
    folder.mkdir()
    scripts.mkdir()
    for name in ("vllm", "azmlinfsrv"):
        script = scripts / name
        script.write_text(f"#!{sys.executable}\n{Path(stand_in.__file__).read_text('utf-8')}", encoding="utf-8")
        script.chmod(0o755)
    port = free_port("127.0.0.1")
    settings = {
        "PATH": os.pathsep.join((str(scripts), os.environ["PATH"])),
        "STAND_IN": str(folder),
        "AZUREML_MODEL_DIR": str(nano_model),
        "LLAMA_UPSTREAM_GPUS": "2",
        "LLAMA_UPSTREAM_PORT": str(port),
    }
    read_end, write_end = os.pipe()
    made = Container(folder, port, settings, stdin=read_end)
    yield made
    os.close(write_end)  # where the test has failed this ends the stand-ins, and with them start.py
    os.close(read_end)
    if made.process and made.process.stdout and not made.process.stdout.closed:
        made.end()


# --- up ---------------------------------------------------------------------------------------------


def test_vllm_is_started_on_loopback_with_the_model_and_the_settings(
    container: Container, nano_model: Path
) -> None:
    container.start(LLAMA_CONTEXT="512", LLAMA_MAX_NUM_SEQS="7")
    container.wait_for("azmlinfsrv started")
    serve, checkpoint, *options = container.started("vllm")["arguments"]
    assert (serve, Path(checkpoint)) == ("serve", ModelFiles.find(nano_model).checkpoint)
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "--host": "127.0.0.1",
        "--port": str(container.port),
        "--served-model-name": NANO.name,
        "--tensor-parallel-size": "2",
        "--dtype": NANO.dtype,
        "--max-model-len": "512",
        "--max-num-seqs": "7",
        "--load-format": "safetensors",
        "--generation-config": "vllm",
    }


def test_the_front_is_started_as_given_and_told_where_vllm_is(container: Container) -> None:
    container.start("azmlinfsrv", "--entry_script", "score.py", LLAMA_QUEUE="9")
    container.wait_for("azmlinfsrv started")
    front = container.started("azmlinfsrv")
    assert front["arguments"] == ["--entry_script", "score.py"]
    assert Path(front["cwd"]) == ROOT / "score"
    ours = {name: text for name, text in front["environment"].items() if name.startswith("LLAMA_")}
    url = f"http://127.0.0.1:{container.port}"
    assert ours == {"LLAMA_QUEUE": "9", "LLAMA_ENGINE": "upstream", "LLAMA_UPSTREAM_URL": url}


@pytest.mark.parametrize("image", ["online", "vllm"])
def test_the_command_of_an_image(container: Container, tmp_path: Path, image: str) -> None:
    dockerfile = (ROOT / "environments" / image / "Dockerfile").read_text("utf-8")
    command = json.loads(dockerfile.splitlines()[-1].removeprefix("CMD "))
    here = [word.replace("/opt/llama/start.py", str(START)) for word in command]
    container.run(here, tmp_path, {"AML_APP_ROOT": str(ROOT / "score"), "AZUREML_ENTRY_SCRIPT": "score.py"})
    container.wait_for("azmlinfsrv started")
    front = container.started("azmlinfsrv")
    assert front["arguments"] == ["--entry_script", "score.py", "--port", "5001"]
    assert Path(front["cwd"]) == ROOT / "score"
    assert ("vllm started" in container.journal()) == (image == "vllm")


@pytest.mark.parametrize("ill", ["sick", "silent"])
def test_the_front_waits_until_vllm_is_healthy(container: Container, ill: str) -> None:
    container.tell(ill)
    container.start()
    container.wait_for("vllm /health 503" if ill == "sick" else "vllm silent", times=2)
    (container.folder / ill).unlink()
    container.wait_for("azmlinfsrv started")
    journal = container.journal()
    assert journal.index("vllm /health 200") < journal.index("azmlinfsrv started")


def test_output_is_passed_on(container: Container) -> None:
    container.start()
    container.wait_for("azmlinfsrv started")
    container.signal()
    _, output = container.end()
    assert "vllm writes to its output" in output
    assert "azmlinfsrv writes to its output" in output


# --- down -------------------------------------------------------------------------------------------


def test_sigterm_ends_the_front_first_and_then_vllm(container: Container) -> None:
    container.tell("worker")
    container.start()
    container.wait_for("azmlinfsrv started")
    container.signal()
    code, _ = container.end()  # (returns only when the workers are gone, too)
    ends = [line for line in container.journal() if line.endswith(("SIGTERM", "ends"))]
    assert (code, ends) == (0, ["azmlinfsrv SIGTERM", "azmlinfsrv ends", "vllm SIGTERM", "vllm ends"])


def test_where_the_front_dies_the_container_ends(container: Container) -> None:
    container.tell("worker")
    container.start()
    container.wait_for("azmlinfsrv started")
    os.kill(container.pid("azmlinfsrv"), signal.SIGKILL)
    code, output = container.end()
    assert code == 1
    assert "azmlinfsrv has ended with exit code -9" in output
    assert container.journal()[-2:] == ["vllm SIGTERM", "vllm ends"]


def test_vllm_that_dies_is_started_again_and_the_front_stays(container: Container) -> None:
    container.tell("worker")
    container.start()
    container.wait_for("azmlinfsrv started")
    for times in (2, 3):
        worker = container.pid("vllm-worker")
        os.kill(container.pid("vllm"), signal.SIGKILL)
        container.wait_for("vllm /health 200", times=times)
        until(lambda worker=worker: not running(worker), "its worker goes with it")  # type: ignore[misc]
    container.signal()
    code, output = container.end()
    assert code == 0
    assert output.count("vllm has ended with exit code -9\nstart: vllm is started again\n") == 2
    assert container.journal().count("azmlinfsrv started") == 1
    assert container.journal()[-4:] == ["azmlinfsrv SIGTERM", "azmlinfsrv ends", "vllm SIGTERM", "vllm ends"]


def test_vllm_that_does_not_come_up_again_ends_the_container(container: Container) -> None:
    container.start()
    container.wait_for("azmlinfsrv started")
    container.tell("early-end")
    os.kill(container.pid("vllm"), signal.SIGKILL)
    code, output = container.end()
    assert (code, f"vllm has ended with exit code {stand_in.CODE_AT_ONCE}" in output) == (1, True)
    assert container.journal()[-2:] == ["azmlinfsrv SIGTERM", "azmlinfsrv ends"]


def test_a_front_that_dies_while_vllm_comes_up_again(container: Container) -> None:
    container.start()
    container.wait_for("azmlinfsrv started")
    container.tell("sick")
    os.kill(container.pid("vllm"), signal.SIGKILL)
    container.wait_for("vllm /health 503")
    os.kill(container.pid("azmlinfsrv"), signal.SIGKILL)
    code, output = container.end()
    assert (code, "azmlinfsrv has ended with exit code -9" in output) == (1, True)


def test_a_server_that_ends_without_an_error_ends_the_container_as_well(container: Container) -> None:
    container.start()
    container.wait_for("azmlinfsrv started")
    os.kill(container.pid("azmlinfsrv"), signal.SIGTERM)
    code, output = container.end()
    assert (code, "azmlinfsrv has ended with exit code 0" in output) == (1, True)


def test_vllm_that_ends_at_once_is_not_waited_for(container: Container) -> None:
    container.tell("early-end")
    container.start()
    code, output = container.end()
    assert (code, f"vllm has ended with exit code {stand_in.CODE_AT_ONCE}" in output) == (1, True)
    assert "azmlinfsrv started" not in container.journal()


def test_vllm_that_is_never_healthy_is_given_up(container: Container) -> None:
    container.tell("sick", "worker")
    container.start(LLAMA_UPSTREAM_START_S="2")
    code, output = container.end()
    assert (code, "not healthy within 2 s (LLAMA_UPSTREAM_START_S)" in output) == (1, True)
    assert "azmlinfsrv started" not in container.journal()
    assert container.journal()[-1] == "vllm ends"


def test_sigterm_while_vllm_loads(container: Container) -> None:
    container.tell("sick")
    container.start()
    container.wait_for("vllm /health 503")
    container.signal()
    code, _ = container.end()
    assert (code, container.journal()[-1]) == (0, "vllm ends")
    assert "azmlinfsrv started" not in container.journal()


def test_a_second_sigterm_kills_what_does_not_obey_the_first(container: Container) -> None:
    container.tell("stubborn", "worker")
    container.start()
    container.wait_for("azmlinfsrv started")
    container.signal()
    container.wait_for("azmlinfsrv SIGTERM")
    container.signal()
    code, output = container.end()
    assert code == 0
    assert [f"{name} has ended with exit code -9" in output for name in ("azmlinfsrv", "vllm")] == [True, True]


# --- a start that can't succeed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"LLAMA_UPSTREAM_GPUS": ""}, "LLAMA_UPSTREAM_GPUS is not set"),
        ({"LLAMA_UPSTREAM_GPUS": "two"}, "LLAMA_UPSTREAM_GPUS=two can't be used: it must be an integer from 1"),
        ({"LLAMA_UPSTREAM_PORT": "0"}, "LLAMA_UPSTREAM_PORT=0"),
        ({"LLAMA_UPSTREAM_START_S": "-1"}, "LLAMA_UPSTREAM_START_S=-1"),
        ({"LLAMA_UPSTREAM_URL": "http://example.org"}, "LLAMA_UPSTREAM_URL can't be set in this image"),
        ({"LLAMA_UPSTREAM_KEY": "k"}, "LLAMA_UPSTREAM_KEY can't be set in this image"),
        ({"LLAMA_ENGINE": "batching"}, "LLAMA_ENGINE=batching can't be used in this image"),
        ({"LLAMA_QUEUE": "many"}, "LLAMA_QUEUE=many can't be used"),
        ({"AZUREML_MODEL_DIR": ""}, "AZUREML_MODEL_DIR is not set"),
        ({"AZUREML_MODEL_DIR": str(ROOT / "score")}, "no MLmodel file"),
        ({"PATH": os.defpath}, "vllm can't be started"),
    ],
)
def test_refusals_are_sentences_before_anything_runs(
    container: Container, settings: dict[str, str], says: str
) -> None:
    container.start(**settings)
    code, output = container.end()
    assert (code, container.journal()) == (2, [])
    assert "Traceback" not in output
    assert says in output.splitlines()[-1]


def test_a_front_that_is_not_there_takes_vllm_along(container: Container) -> None:
    container.start("no-such-server")
    code, output = container.end()
    assert (code, container.journal()[-1]) == (2, "vllm ends")
    assert "no-such-server can't be started" in output.splitlines()[-1]


def test_the_image_s_engine_is_the_one(container: Container) -> None:
    dockerfile = START.with_name("Dockerfile").read_text("utf-8")
    assert "ENV LLAMA_ENGINE=upstream\n" in dockerfile
    container.start(LLAMA_ENGINE="upstream")
    container.wait_for("azmlinfsrv started")
    container.signal()
    assert container.end()[0] == 0


OUR_SERVER_AS_VLLM = """#!{python}
import os, sys
port, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--port", "--served-model-name"))
with open(os.environ["STAND_IN"] + "/vllm.pid", "w") as file:
    file.write(str(os.getpid()))
os.environ["LLAMA_ENGINE"] = "batching"
del os.environ["LLAMA_UPSTREAM_URL"]
os.execv("{command}", ["llama-endpoints", "serve", "--model", name, "--port", port])
"""
"""It keeps the process id: killing it is killing the server."""


def test_killed_in_mid_request_and_back_by_itself(container: Container, service: Service) -> None:
    """The real azmlinfsrv in front, our own server in vLLM's place."""
    vllm = container.folder.with_name("bin") / "vllm"
    command = console_script("llama-endpoints")
    vllm.write_text(OUR_SERVER_AS_VLLM.format(python=sys.executable, command=command), encoding="utf-8")
    port = free_port("")
    container.start(
        console_script("azmlinfsrv"), "--entry_script", "score.py", "--port", str(port),
        AML_APP_ROOT=str(ROOT / "score"), AZUREML_ENTRY_SCRIPT="score.py",
        WORKER_COUNT="1", WORKER_PRELOAD="false", GUNICORN_CMD_ARGS="--threads 8 --graceful-timeout 10",
    )  # fmt: skip
    url, behind = f"http://127.0.0.1:{port}/score", f"http://127.0.0.1:{container.port}"
    body = {"input_data": ["def f(x):"], "params": {"max_new_tokens": 8, "temperature": 0}}
    long = {
        "input_data": ["def f(x):"],
        "params": {"max_new_tokens": 1900, "temperature": 0, "ignore_eos": True},
    }

    def asked(what: object) -> Answer | None:
        assert container.process is not None
        assert container.process.poll() is None, container.end()
        try:
            return post(url, what)
        except OSError:
            return None

    def status(what: object = body) -> int | None:
        answer = asked(what)
        return answer and answer.status

    def inside() -> bool:
        with urllib.request.urlopen(f"{behind}/metrics", timeout=10) as page:
            return b"llama_num_requests_running 1.0" in page.read()

    until(lambda: status() == 200, "azmlinfsrv answers")
    parsed = azure.parse(body)
    expected = azure.answer(parsed, service.generate(parsed))
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(asked, long)
        until(inside, "it is at work")
        os.kill(container.pid("vllm"), signal.SIGKILL)
        answer = killed.result(PATIENCE_S)
    assert answer is not None
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error"]["message"].startswith("The model's server broke off")
    until(lambda: status() == 503, "it is away")
    until(lambda: status() == 200, "it comes back")
    answer = asked(body)
    assert answer is not None
    assert answer.json == expected
    container.signal()
    code, output = container.end()
    assert code == 0, output
    assert "upstream engine on the llama-endpoints" in output
    assert "is away" in output
    assert "is back" in output
