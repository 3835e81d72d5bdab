"""`llama-endpoints batch --as-azure`: what Azure does with a scoring script, good and bad."""

import asyncio
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.batch import azure_emulator
from llama_endpoints.batch.azure_deployment import BatchDeployment
from llama_endpoints.batch.azure_emulator import EmulatedJob, Tally
from llama_serving.errors import SetupError
from tests.support.azure_jobs import BATCH_DEPLOYMENT, PATIENCE_S, ROOT, batch, begun, ended, written

SCRIPT = '''
import json, logging, os, pathlib, time

started = []
ANSWERS = max(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd))

def init():
    print("said by init")
    log = logging.getLogger(__name__)
    log.setLevel(logging.INFO)
    log.info("an info of init")
    started.append(os.getpid())
    if os.environ.get("BAD_INIT"):
        raise RuntimeError("no model")

def times(name):
    """How many times it was asked for this file before."""
    path = pathlib.Path(os.environ["SCRATCH"], name)
    tried = int(path.read_text()) if path.exists() else 0
    path.write_text(str(tried + 1))
    return tried

def run(mini_batch):
    names = [os.path.basename(path) for path in mini_batch]
    for name in names:
        tried = times(name)
        if name.startswith("raises") and tried < 2:
            raise ValueError("not yet")
        if name.startswith("talks"):
            raise ValueError("x" * 1_000_000)
        if name.startswith("half"):
            os.write(ANSWERS, b'{"resul')
            os._exit(3)
        if name.startswith("exits") and tried < 1:
            os._exit(9)
        if name.startswith("sleeps"):
            time.sleep(3600)
        if name.startswith("nothing"):
            return None
    told = [json.dumps({"batch": names, "pid": started[0], "cwd": os.getcwd(), **os.environ})]
    return told + [""] * (len(names) - 1 - sum(name.startswith("short") for name in names))
'''


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedJob:
    """A job of a script that does what its files' names say."""
    for name in ("code", "model", "in", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "toy.py").write_text(SCRIPT)
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    deployment = BatchDeployment(
        name="toy", script=tmp_path / "code" / "toy.py", environment={}, mini_batch_size=1, processes=1, instances=1,
        output_action="append_row", output_file_name="out.jsonl", timeout_s=60, max_retries=2, error_threshold=0,
        logging_level="info",
    )  # fmt: skip
    return EmulatedJob(deployment, tmp_path / "model", tmp_path / "in", tmp_path / "out")


def given(job: EmulatedJob, *names: str, **changed: Any) -> EmulatedJob:
    """The job with these files, and other settings of its deployment."""
    for name in names:
        path = job.given / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    return replace(job, deployment=replace(job.deployment, **changed))


def ran(job: EmulatedJob) -> tuple[Tally, list[str]]:
    """What became of it, and what it said."""
    said = list[str]()
    return asyncio.run(azure_emulator.run(job, lambda _: None, said.append)), said


def items(job: EmulatedJob) -> list[dict[str, Any]]:
    path = job.output / "score" / job.deployment.output_file_name
    return [json.loads(line) for line in path.read_text().splitlines() if line]


class TestScript:
    def test_it_is_called_as_azure_calls_it(self, job: EmulatedJob, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_THREADS", "77")
        job = given(
            job,
            "a",
            "b",
            "c",
            "d",
            "sub/e",
            mini_batch_size=2,
            environment={"LLAMA_DTYPE": "float32", "X": "1"},
        )
        tally, said = ran(replace(job, flags={"LLAMA_DTYPE": "bfloat16"}))
        assert (tally.files, tally.done, tally.failed, tally.retries, tally.items) == (5, 5, 0, 0, 5)
        assert not said
        found = items(job)
        assert [one["batch"] for one in found] == [["a", "b"], ["c", "d"], ["e"]]
        one = found[0]
        assert {one["pid"] for one in found} == {one["pid"]}
        assert (one["X"], one["LLAMA_DTYPE"], one.get("LLAMA_THREADS")) == ("1", "bfloat16", None)
        assert one["cwd"] == str(job.deployment.script.parent)
        assert one["AZUREML_BI_OUTPUT_PATH"] == str(job.output / "score")
        assert one["AZURE_ML_INPUT_input"] == str(job.given)
        assert not Path(one["AZUREML_MODEL_DIR"]).exists(), "what was made for the job is gone"
        assert "said by init" in (job.output / "logs" / "0.txt").read_text()

    def test_the_level_of_the_log(self, job: EmulatedJob) -> None:
        for level, seen in (("info", True), ("warning", False)):
            one = replace(given(job, "a", logging_level=level), output=job.output / level)
            ran(one)
            assert ("an info of init" in (one.output / "logs" / "0.txt").read_text()) is seen

    def test_processes_side_by_side(self, job: EmulatedJob) -> None:
        job = given(job, *"abcdefgh", processes=2)
        tally, _ = ran(job)
        assert tally.items == 8
        assert sorted(one["batch"][0] for one in items(job)) == list("abcdefgh")
        assert sorted(path.name for path in (job.output / "logs").iterdir()) == ["0.txt", "1.txt"]

    def test_with_summary_only_what_it_returns_is_dropped(self, job: EmulatedJob) -> None:
        job = given(job, "a", output_action="summary_only")
        tally, _ = ran(job)
        assert (tally.failed, tally.items) == (0, 1)
        assert not list((job.output / "score").iterdir())


class TestFailures:
    def test_one_that_raises_is_tried_again_by_the_same_process(self, job: EmulatedJob) -> None:
        tally, said = ran(given(job, "a", "raises", "z"))
        assert (tally.done, tally.failed, tally.retries, tally.items) == (3, 0, 2, 3)
        assert said == [f"mini-batch 1 (raises), try {n} of 3: ValueError: not yet." for n in (1, 2)]
        assert [one["batch"] for one in items(job)] == [["a"], ["z"], ["raises"]]
        assert len({one["pid"] for one in items(job)}) == 1

    def test_one_that_ends_its_process_is_tried_by_another(self, job: EmulatedJob) -> None:
        tally, said = ran(given(job, "a", "exits"))
        assert (tally.done, tally.failed, tally.retries) == (2, 0, 1)
        assert said == ["mini-batch 1 (exits), try 1 of 3: its process ended with exit code 9."]
        assert len({one["pid"] for one in items(job)}) == 2

    def test_one_that_takes_too_long_is_lost_and_its_process_too(self, job: EmulatedJob) -> None:
        tally, said = ran(given(job, "a", "sleeps", "z", timeout_s=1, max_retries=1, error_threshold=1))
        assert (tally.done, tally.failed, tally.retries, tally.aborted) == (3, 1, 1, None)
        assert said[0] == "mini-batch 1 (sleeps), try 1 of 2: it exceeded its timeout of 1 s."
        assert said[-1].startswith("1 of 1 files failed (sleeps)")
        assert len({one["pid"] for one in items(job)}) == 2

    def test_answers_that_are_none_are_failed_tries(self, job: EmulatedJob) -> None:
        tally, said = ran(given(job, "a", "half", "talks", "z", error_threshold=2, max_retries=0))
        assert (tally.done, tally.failed, tally.aborted) == (4, 2, None)
        assert said[0] == "mini-batch 1 (half), try 1 of 1: its process ended with exit code 3."
        assert said[2].startswith("mini-batch 2 (talks), try 1 of 1: ValueError: xxx")
        assert len(said[2]) < 1100

    @pytest.mark.parametrize(("threshold", "ends"), [(-1, False), (1, True), (2, False)])
    def test_so_many_may_fail(self, job: EmulatedJob, threshold: int, *, ends: bool) -> None:
        names = ("nothing1", "nothing2", "z")
        tally, said = ran(given(job, *names, error_threshold=threshold, max_retries=0))
        assert (tally.failed, tally.done) == ((2, 2) if ends else (2, 3))
        assert tally.aborted == (f"2 files failed, but error_threshold allows {threshold}" if ends else None)
        assert (
            "try 1 of 1: TypeError: run() returned NoneType; it must return a list, an array or a DataFrame."
            in said[0]
        )

    def test_a_file_without_an_item_has_failed(self, job: EmulatedJob) -> None:
        tally, said = ran(given(job, "a", "short1", "short2", mini_batch_size=3))
        assert (tally.done, tally.failed, tally.items, tally.retries) == (3, 2, 1, 0)
        assert tally.aborted is not None
        assert said == ["2 of 3 files failed (a and 2 more): run() returned no item for them."]

    def test_a_script_that_cant_begin(self, job: EmulatedJob) -> None:
        tally, said = ran(given(job, "a", processes=2, environment={"BAD_INIT": "1"}))
        assert (tally.done, len(said)) == (0, 2)
        assert tally.aborted is not None
        assert "init() failed: RuntimeError: no model" in tally.aborted
        assert "RuntimeError: no model" in (job.output / "logs" / "1.txt").read_text()

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            (
                {"output_action": "summary_only"},
                "output_action is summary_only, but LLAMA_BATCH_OUTPUT is append_row",
            ),
            ({"environment": {"LLAMA_BATCH_OUTPUT": "summary_only"}}, "no records would be written"),
        ],
    )
    def test_records_that_nobody_would_write(
        self, job: EmulatedJob, changed: dict[str, Any], says: str
    ) -> None:
        ours = job.deployment.script.parent / "llama_serving" / "hosts" / "azureml_batch.py"
        ours.parent.mkdir(parents=True)
        ours.touch()
        with pytest.raises(SetupError, match=says):
            ran(given(job, "a", **changed))
        assert not job.output.exists()

    def test_what_is_there_is_left_alone(self, job: EmulatedJob) -> None:
        job = given(job, "a")
        job.output.mkdir()
        ran(job)
        with pytest.raises(SetupError, match="not an empty folder"):
            ran(job)
        with pytest.raises(SetupError, match="neither a file nor a folder with files"):
            ran(replace(job, given=job.model, output=job.output / "other"))


class TestFile:
    def test_ours(self) -> None:
        found = BatchDeployment.read(BATCH_DEPLOYMENT)
        assert found.script == ROOT / "score" / "batch_driver.py"
        assert found.environment["LLAMA_ENGINE"] == "vllm"
        assert found.environment["LLAMA_VLLM_TENSOR_PARALLEL"] == "1"
        assert (found.mini_batch_size, found.processes, found.timeout_s, found.max_retries) == (1, 1, 86400, 2)
        assert (found.output_action, found.output_file_name) == ("append_row", "predictions.jsonl")

    def test_another_engine_takes_none_of_vllms_settings(self, job: EmulatedJob) -> None:
        deployment = BatchDeployment.read(BATCH_DEPLOYMENT)
        asked = {
            engine: replace(job, deployment=deployment, flags={"LLAMA_ENGINE": engine} if engine else {}).ours
            for engine in ("", "vllm", "batching")
        }
        assert "LLAMA_VLLM_TENSOR_PARALLEL" in asked[""].keys() & asked["vllm"].keys()
        assert not [name for name in asked["batching"] if name.startswith("LLAMA_VLLM")]
        assert asked["batching"]["LLAMA_DTYPE"] == "bfloat16"

    def test_what_azure_takes_where_nothing_is_said(self, job: EmulatedJob, tmp_path: Path) -> None:
        found = BatchDeployment.read(written(tmp_path, job.deployment.script, mini_batch_size=10))
        assert (found.processes, found.timeout_s, found.max_retries, found.error_threshold) == (1, 30, 3, -1)
        assert (found.output_action, found.output_file_name) == ("append_row", "predictions.csv")
        assert (found.logging_level, found.instances) == ("info", 2)

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"retry_settings": {"timeout": 0}}, "timeout must be an integer from 1"),
            ({"error_threshold": -5}, "error_threshold must be an integer from -1"),
            ({"logging_level": "loud"}, "logging_level"),
            ({"output_file_name": "a/b"}, "output_file_name must be a file name"),
            ({"mini_batch_size": "many"}, "says: settings.mini_batch_size: Not a valid integer"),
            ({"mini_batch_size": None}, "mini_batch_size"),
            ({"environment_variables": {"X": None}}, "X has no value"),
        ],
    )
    def test_what_it_refuses(
        self, job: EmulatedJob, tmp_path: Path, settings: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(SetupError, match=says):
            BatchDeployment.read(written(tmp_path, job.deployment.script, **{"mini_batch_size": 1, **settings}))

    def test_variables_are_text_and_stand_where_azure_reads_them(
        self, job: EmulatedJob, tmp_path: Path
    ) -> None:
        given = {"LLAMA_THREADS": 8, "LLAMA_LOG_PROMPTS": True, "X": "a"}
        file = written(tmp_path, job.deployment.script, mini_batch_size=1, environment_variables=given)
        assert BatchDeployment.read(file).environment == {
            "LLAMA_THREADS": "8",
            "LLAMA_LOG_PROMPTS": "True",
            "X": "a",
        }
        file.write_text(file.read_text() + "environment_variables:\n  LLAMA_DTYPE: bfloat16\n")
        with pytest.raises(SetupError, match="Move them into settings"):
            BatchDeployment.read(file)

    def test_a_script_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match=r"gone\.py does not exist"):
            BatchDeployment.read(written(tmp_path, tmp_path / "gone.py", mini_batch_size=1))
        with pytest.raises(SetupError, match="is not a file"):
            BatchDeployment.read(tmp_path / "nothing.yml")


class TestCommand:
    def test_it_says_what_became_of_it(self, job: EmulatedJob, nano_model: Path, tmp_path: Path) -> None:
        given(job, "a", "nothing")
        file = written(
            tmp_path,
            job.deployment.script,
            mini_batch_size=1,
            retry_settings={"max_retries": 1},
            error_threshold=0,
        )
        code, told = batch(nano_model, job.given, job.output, "--as-azure", str(file))
        assert code == 1
        for says in ("one of its 2 instances", "try 2 of 2", "2 files: 1 succeeded, 1 failed, 0 not done",
                     "score/predictions.csv", "The job failed: 1 files failed, but error_threshold allows 0."):  # fmt: skip
            assert says in told
        assert "Traceback" not in told

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
    def test_a_signal_ends_all_its_processes(
        self, job: EmulatedJob, nano_model: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        given(job, "sleeps")
        file = written(tmp_path, job.deployment.script, mini_batch_size=1, retry_settings={"timeout": 3600})
        process = begun(nano_model, job.given, job.output, "--as-azure", str(file))
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / "scratch" / "sleeps").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        (worker,) = workers(job)
        process.send_signal(number)
        code, told = ended(process)
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        assert ("1 not done" in told) == (number != signal.SIGKILL)
        while worker in workers(job):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (["--max-errors", "3", "--dry-run"], "--max-errors or --dry-run"),
            (["--input", "yaml"], "one input"),
            (["--model", "nowhere"], "nowhere is not a folder"),
        ],
    )
    def test_what_no_job_has(self, job: EmulatedJob, nano_model: Path, more: list[str], says: str) -> None:
        given(job, "a")
        file = str(BATCH_DEPLOYMENT)
        code, told = batch(nano_model, job.given, job.output, "--as-azure", file, *more)
        assert code == 2
        assert says in told


def workers(job: EmulatedJob) -> list[Path]:
    return [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if str(job.deployment.script) in text_of(path)
    ]


def text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended
        return ""
