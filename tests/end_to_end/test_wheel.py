"""The wheel, alone: what it holds, and that it can package and score where no checkout is."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.version import commit
from llama_serving.contract import azure
from llama_serving.service.service import Service
from tests.conftest import ROOT

TIMEOUT_S = 280
COMMIT = commit(ROOT / "deployment" / "llama_endpoints")
ENTRIES = ("score.py", "batch_driver.py", "mlflow_model.py")
NANO = (
    *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("README.md", "sources.csv", "evaluation.json", "loss.csv", "loss.png"),
)
BODY = {"input_data": ["def add(a, b):\n"], "params": {"do_sample": False, "max_new_tokens": 16}}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    if importlib.util.find_spec("hatchling") is not None:
        command = ("build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    else:
        command = ("pip", "wheel", "--disable-pip-version-check", "--no-deps", "--wheel-dir", folder, ROOT)
    done = run(sys.executable, "-m", *command, cwd=folder)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("hatchling builds the wheel; it is not installed, and no package index can be reached")
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip unpacks it."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--disable-pip-version-check", "--no-index", "--no-deps", "--target", folder)
    done = run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def alone(installed: Path, *command: str | Path, cwd: Path) -> str:
    """Runs what is installed there: before the checkout's own packages, and never the working directory's."""
    done = run(*command, cwd=cwd, PYTHONPATH=str(installed), PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestContent:
    @pytest.fixture
    def names(self, wheel: Path) -> set[str]:
        with zipfile.ZipFile(wheel) as archive:
            return set(archive.namelist())

    def test_every_module_is_in_it_and_nothing_else(self, names: set[str]) -> None:
        expected = {
            path.relative_to(folder).as_posix()
            for folder, package in ((ROOT / "score", "llama_serving"), (ROOT / "deployment", "llama_endpoints"))
            for path in (folder / package).rglob("*.py")
        } | {f"llama_serving/entries/{name}" for name in ENTRIES}
        assert {name for name in names if name.endswith(".py")} == expected
        assert {name.partition("/")[0] for name in names} == {
            *("llama_serving", "llama_endpoints", "llama_endpoints-0.1.0.dist-info"),
        }

    def test_what_the_modules_read_is_in_it(self, names: set[str]) -> None:
        schemas = {path.name for path in (ROOT / "score/llama_serving/contract/schema").glob("*.json")}
        assert {f"llama_serving/contract/schema/{name}" for name in schemas} <= names
        assert {"azure.json", "mlflow.json", "row.json"} <= schemas
        page = {path.name for path in (ROOT / "score/llama_serving/server/page").iterdir() if path.is_file()}
        assert {f"llama_serving/server/page/{name}" for name in page} <= names
        assert {"page.html", "page.css", "main.js"} <= page
        assert {"llama_serving/py.typed", "llama_endpoints/py.typed"} <= names
        assert {f"llama_endpoints/nano/{name}" for name in NANO} <= names

    @pytest.mark.skipif(
        not COMMIT, reason="this checkout has no commit: git is missing, or it is a copy without .git"
    )
    def test_the_commit_is_recorded(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read("llama_endpoints/commit.txt").decode() == f"{COMMIT}\n"

    def test_the_licence_is_in_it_and_named(self, wheel: Path, names: set[str]) -> None:
        info = "llama_endpoints-0.1.0.dist-info"
        assert f"{info}/licenses/LICENSE" in names
        with zipfile.ZipFile(wheel) as archive:
            told = archive.read(f"{info}/METADATA").decode()
            assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "\nLicense-Expression: Apache-2.0\n" in told

    def test_nothing_left_over_is_in_it(self, names: set[str]) -> None:
        parts = {part for name in names for part in name.split("/")}
        assert not [part for part in parts if part in ("__pycache__", "tests", "build") or part.startswith(".")]

    @pytest.mark.parametrize("name", ENTRIES)
    def test_the_entries_are_those_of_the_checkout(self, wheel: Path, name: str) -> None:
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read(f"llama_serving/entries/{name}") == (ROOT / "score" / name).read_bytes()


class TestInstalled:
    @pytest.fixture(scope="module")
    @staticmethod
    def model(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Nano, packaged by the installed command."""
        folder = tmp_path_factory.mktemp("clean")
        command = installed / "bin" / "llama-endpoints"
        alone(installed, command, "package", "--checkpoint", "nano", "--output", "nano", cwd=folder)
        return folder / "nano"

    def test_it_comes_before_the_checkout(self, installed: Path, tmp_path: Path) -> None:
        code = "import llama_endpoints, llama_serving; print(llama_endpoints.__file__, llama_serving.__file__)"
        for module in alone(installed, sys.executable, "-c", code, cwd=tmp_path).split():
            assert Path(module).is_relative_to(installed)

    def test_its_version_tells_the_commit(self, installed: Path, tmp_path: Path) -> None:
        told = alone(installed, installed / "bin" / "llama-endpoints", "--version", cwd=tmp_path)
        assert told == f"llama-endpoints 0.1.0{f' ({COMMIT})' if COMMIT else ''}\n"

    def test_it_packages_the_same_model(self, model: Path, nano_model: Path) -> None:
        def files(folder: Path) -> set[str]:
            found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
            return {name for name in found if "__pycache__" not in name and "/entries/" not in name}

        assert files(model) == files(nano_model)
        assert (model / "mlflow_model.py").read_bytes() == (ROOT / "score" / "mlflow_model.py").read_bytes()

    def test_it_scores_with_it(self, installed: Path, model: Path, tmp_path: Path, service: Service) -> None:
        (tmp_path / "request.json").write_text(json.dumps(BODY))
        command = (
            installed / "bin" / "llama-endpoints",
            "score",
            "--model",
            model,
            "--request",
            "request.json",
        )
        told: Any = json.loads(alone(installed, *command, cwd=tmp_path))
        asked = azure.parse(BODY)
        assert told == azure.answer(asked, service.generate(asked))

    def test_the_model_holds_its_own_code(self, model: Path, tmp_path: Path, installed: Path) -> None:
        code = (
            "import sys, mlflow.pyfunc; mlflow.pyfunc.load_model(sys.argv[1]); "
            "import llama_serving; print(llama_serving.__file__)"
        )
        told = alone(installed, sys.executable, "-c", code, model, cwd=tmp_path)
        assert Path(told.strip()) == model / "code" / "llama_serving" / "__init__.py"
