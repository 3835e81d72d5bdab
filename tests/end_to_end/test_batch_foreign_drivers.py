"""`llama-endpoints batch --as-azure` with other people's drivers: what they return, which models they load, how they are imported."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.batch import azure_emulator
from llama_endpoints.batch.azure_deployment import BatchDeployment
from llama_endpoints.batch.azure_emulator import EmulatedJob, Tally
from tests.support.azure_jobs import BATCH_DEPLOYMENT, batch, written

TABLE = """
import os
import pandas as pd

def init():
    global model
    model = open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.txt")).read()

def run(mini_batch):
    rows = [{"file": os.path.basename(path), "label": f"a {model}", "share": 0.5} for path in mini_batch]
    return pd.DataFrame(rows)
"""
ROWS = "'a.csv \"a cat\" 0.5\\n'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is a file, two inputs, and room for a script."""
    for name in ("code", "in"):
        (tmp_path / name).mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / "in" / name).write_text("x\n1\n")
    (tmp_path / "model.txt").write_text("cat")
    return tmp_path


def job(folder: Path, script: str, name: str = "driver.py", **changed: Any) -> EmulatedJob:
    path = folder / "code" / name
    path.write_text(script)
    deployment = BatchDeployment(
        name="theirs", script=path, environment={}, mini_batch_size=1, processes=1, instances=1,
        output_action="append_row", output_file_name="out.csv", timeout_s=60, max_retries=0, error_threshold=0,
        logging_level="info",
    )  # fmt: skip
    return EmulatedJob(replace(deployment, **changed), folder / "model.txt", folder / "in", folder / "out")


def ran(given: EmulatedJob) -> tuple[Tally, list[str]]:
    said = list[str]()
    return asyncio.run(azure_emulator.run(given, lambda _: None, said.append)), said


def returning(value: str, imports: str = "") -> str:
    return f"{imports}\ndef run(mini_batch):\n    return {value}\n"


class TestReturned:
    def test_a_table_is_rows_without_header_with_blanks_between(self, folder: Path) -> None:
        tally, said = ran(job(folder, TABLE))
        assert (tally.items, tally.failed, tally.aborted, said) == (2, 0, None, [])
        assert (folder / "out/score/out.csv").read_text() == 'a.csv "a cat" 0.5\nb.csv "a cat" 0.5\n'

    @pytest.mark.parametrize(
        ("value", "imports", "lines"),
        [
            ("['a', 1, None, {'b': 2}, ['c', 3]]", "", ["a", "1", "None", "{'b': 2}", "['c', 3]"]),
            ("np.array([1, 2])", "import numpy as np", ["1", "2"]),
            (
                "pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']}, index=[7, 8])",
                "import pandas as pd",
                ["1 x", "2 y"],
            ),
            ("list(pd.DataFrame({'a': [1, 2]}).values)", "import pandas as pd", ["[1]", "[2]"]),
        ],
        ids=["list", "array", "table", "rows of a table"],
    )
    def test_what_azure_takes(self, folder: Path, value: str, imports: str, lines: list[str]) -> None:
        tally, said = ran(job(folder, returning(value, imports), mini_batch_size=2))
        assert (tally.items, tally.failed, tally.aborted, said) == (len(lines), 0, None, [])
        assert (folder / "out/score/out.csv").read_text().splitlines() == lines

    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            ("None", "NoneType"),
            ("'ab'", "str"),
            ("{'a': 1}", "dict"),
            ("7", "int"),
            ("(x for x in 'ab')", "generator"),
        ],
    )
    def test_what_azure_does_not_take(self, folder: Path, value: str, kind: str) -> None:
        tally, said = ran(job(folder, returning(value)))
        assert (tally.failed, tally.aborted) == (1, "1 files failed, but error_threshold allows 0")
        assert f"run() returned {kind}; it must return a list, an array or a DataFrame" in said[0]

    @pytest.mark.parametrize("value", ["[]", "pd.DataFrame()", "pd.DataFrame({'a': []})"])
    def test_a_job_without_any_output_has_failed_whatever_is_ignored(self, folder: Path, value: str) -> None:
        tally, _ = ran(job(folder, returning(value, "import pandas as pd"), error_threshold=-1))
        assert (tally.done, tally.failed) == (2, 2)
        assert tally.aborted == "run() returned no items, so there is no output"

    def test_with_summary_only_no_output_is_what_is_wanted(self, folder: Path) -> None:
        script = "import os, pathlib\ndef run(files):\n    for file in files:\n        pathlib.Path(os.environ['AZUREML_BI_OUTPUT_PATH'], os.path.basename(file)).touch()\n    return files\n"
        tally, said = ran(job(folder, script, output_action="summary_only"))
        assert (tally.items, tally.failed, tally.aborted, said) == (2, 0, None, [])
        assert sorted(path.name for path in (folder / "out/score").iterdir()) == ["a.csv", "b.csv"]


class TestImported:
    def test_no_init_is_needed(self, folder: Path) -> None:
        assert ran(job(folder, returning("mini_batch")))[0].aborted is None

    def test_no_run_is_no_driver(self, folder: Path) -> None:
        tally, _ = ran(job(folder, "def init(): pass"))
        assert tally.aborted is not None
        assert "driver.py has no function run(mini_batch)" in tally.aborted

    @pytest.mark.parametrize(
        "name", ["json.py", "signal.py", "azure_emulator_worker.py", "my-driver.py", "llama_endpoints.py"]
    )
    def test_it_may_be_called_as_any_module_is(self, folder: Path, name: str) -> None:
        assert ran(job(folder, returning("[__file__] * len(mini_batch)"), name))[0].aborted is None
        assert (folder / "out/score/out.csv").read_text() == f"{folder / 'code' / name}\n" * 2

    def test_it_may_bring_packages_that_are_called_as_ours(self, folder: Path) -> None:
        for package in ("llama_endpoints", "llama_serving"):
            (folder / "code" / package).mkdir()
            (folder / "code" / package / "__init__.py").write_text("mine = 'mine'")
        script = "import sys, llama_endpoints, llama_serving\n" + returning(
            "[llama_endpoints.mine + llama_serving.mine + str(sys.argv)]"
        )
        assert ran(job(folder, script))[0].aborted is None
        assert (
            (folder / "out/score/out.csv")
            .read_text()
            .startswith(f"minemine['{folder / 'code' / 'driver.py'}']\n")
        )

    def test_what_it_exits_with_is_a_failure(self, folder: Path) -> None:
        tally, said = ran(job(folder, returning("exit(0)")))
        assert tally.aborted == "1 files failed, but error_threshold allows 0"
        assert "its process ended with exit code 0" in said[0]


class TestCommand:
    """Exit code 1 wherever the job would have failed."""

    def deployment(self, folder: Path, script: str, **settings: Any) -> str:
        path = folder / "code" / "driver.py"
        path.write_text(script)
        return str(
            written(folder, path, **{"mini_batch_size": 1, "retry_settings": {"max_retries": 0}, **settings})
        )

    @pytest.mark.parametrize("model", ["model.txt", "models/theirs"])
    def test_a_model_that_is_not_ours(self, folder: Path, model: str) -> None:
        (folder / "models/theirs").mkdir(parents=True)
        script = "import os\n" + returning("os.listdir(os.environ['AZUREML_MODEL_DIR'])")
        file = self.deployment(folder, script, output_file_name="out.csv")
        code, told = batch(folder / model, folder / "in", folder / "out", "--as-azure", file)
        assert code == 0, told
        assert (folder / "out/score/out.csv").read_text() == f"{Path(model).name}\n" * 2

    def test_no_model(self, folder: Path) -> None:
        file = self.deployment(folder, returning("mini_batch"))
        code, told = batch("nowhere", folder / "in", folder / "out", "--as-azure", file)
        assert code == 2
        assert "nowhere does not exist. Pass a model's file or folder, or nano." in told

    @pytest.mark.parametrize(
        ("script", "threshold"), [(returning("None"), 0), (returning("[]"), -1), ("def init(): 1/0", -1)]
    )
    def test_a_job_that_would_have_failed(self, folder: Path, script: str, threshold: int) -> None:
        file = self.deployment(folder, script, error_threshold=threshold)
        code, told = batch(folder / "model.txt", folder / "in", folder / "out", "--as-azure", file)
        assert code == 1
        assert "The job failed: " in told

    def test_nano_needs_no_packaging(self, folder: Path) -> None:
        (folder / "rows").mkdir()
        (folder / "rows/a.jsonl").write_text('{"prompt": "def f(", "parameters": {"max_new_tokens": 2}}\n')
        options = ("--engine", "batching", "--dtype", "float32")
        code, told = batch(
            "nano", folder / "rows", folder / "out", "--as-azure", str(BATCH_DEPLOYMENT), *options
        )
        assert code == 0, told
        assert '"usage"' in (folder / "out/score/predictions.jsonl").read_text()
