"""What all tests share: the packaged nano model, one in-process service, the two real servers."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict
from xdist.scheduler.loadfile import LoadFileScheduling

from llama_endpoints.checkpoints.inspection import inspect
from llama_endpoints.checkpoints.package import package
from llama_endpoints.devtools.servers import RunningServer, azmlinfsrv, mlflow_serve, own_server
from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support import torchless
from tests.support.paths import ROOT

NOT_NATIVE = "the native backend is not tested here: "
"""What the reason of each test begins with that needs a CPU or a compiler which is not here."""
SHARED = ROOT.parent / "shared" / "data"
STOCK_SERVERS = [f"tests/end_to_end/test_{name}.py" for name in ("same_text", "bad_requests", "swagger")]
"""Files that use `azure_server` and `mlflow_server`, whose starts take long."""


def pytest_configure() -> None:
    """Tests may run in several processes side by side, and be started from anywhere."""
    # What was started in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Before torch is there: threads of several processes that spin while they wait slow each other down tenfold.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's marker is the folder that it lies in; each has an id of its own, or xdist runs but one of them."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        item.add_marker(getattr(pytest.mark, folder))
        operation = getattr(item, "operation_label", None)  # schemathesis': it gives all operations one id
        if operation:
            item._id = replace(item._id, params=operation)
    twice = [name for name, times in Counter(item.nodeid for item in items).items() if times > 1]
    if twice:
        raise pytest.UsageError(f"{twice[0]} is the id of several tests")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Files that share servers run in one process."""
    return Together(config, log)


class Together(LoadFileScheduling):
    """A file's tests run in one process, and those of some files together."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "the stock servers" if file in STOCK_SERVERS else file


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Where torch is missing, a file that imports it is skipped."""
    return torchless.Module.from_parent(parent, path=module_path) if torchless.MISSING else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a CPU lacks is said in one line of the summary, which has one for each place that skips."""
    report = torchless.skipped((yield), call)
    if report.skipped and isinstance(report.longrepr, tuple) and NOT_NATIVE in report.longrepr[2]:
        report.longrepr = (str(ROOT / "tests/support/backends.py"), 0, report.longrepr[2])
    return report


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def post(url: str, body: object, **headers: str) -> Answer:
    """POSTs a JSON value, or bytes as they are, on loopback."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    request = urllib.request.Request(url, data, named, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return Answer(response.status, response.read().decode(), CaseInsensitiveDict(response.headers))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), CaseInsensitiveDict(error.headers))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def nano_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as an MLflow model."""
    output = tmp_path_factory.mktemp("models") / "nano"
    package(inspect(NANO_FOLDER, NANO), output)
    return output


@pytest.fixture(scope="session")
def nano_tokenizer() -> Tokenizer:
    """The embedded model's tokenizer."""
    return Tokenizer.from_folder(NANO_FOLDER)


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The embedded model in this process."""
    started = Service.start(ModelFiles(NANO_FOLDER, NANO), Settings())
    yield started
    started.close()


@pytest.fixture(scope="session", params=("batching", "pipeline"))
def azure_server(nano_model: Path, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """The real azmlinfsrv on score/score.py, with either engine."""
    with azmlinfsrv(nano_model, score=ROOT / "score", env={"LLAMA_ENGINE": request.param}) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(nano_model: Path) -> Iterator[RunningServer]:
    """The real `mlflow models serve`, from an empty working directory; that either engine serves, azmlinfsrv shows."""
    with mlflow_serve(nano_model) as server:
        yield server


@pytest.fixture(scope="session")
def own() -> Iterator[RunningServer]:
    """Our own server, with the embedded model."""
    with own_server("nano") as server:
        yield server


def shared_tokenizer(name: str) -> Path:
    """A folder of real Llama tokenizers beside the checkout; skips where there is none."""
    folder = SHARED / "tokenizers" / name
    if not folder.exists():
        pytest.skip(f"the real Llama tokenizer is not here ({name}): it may not be shipped with the project")
    return folder
