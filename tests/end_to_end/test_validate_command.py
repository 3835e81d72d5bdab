"""`llama-endpoints validate` as people run it."""

import json
import subprocess
from pathlib import Path

from llama_endpoints.devtools.servers import console_script
from tests.support.paths import ROOT

COMMAND = console_script("llama-endpoints")
TIMEOUT_S = 120


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "validate", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_the_projects_own_files_pass_and_nothing_else_is_said() -> None:
    """Azure's client warns and logs while it is imported and while it loads."""
    done = run("--strict", "yaml", "environments")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" files: 0 errors, 0 warnings.\n")
    assert done.stdout.count("\n") == 1


def test_what_azures_client_takes_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "yaml/online/endpoint.yml").read_text(encoding="utf-8")
    broken = text.replace("auth_mode: key", "auth_mode: key\nmirror_traffic: {blue: 60}")
    (tmp_path / "endpoint.yml").write_text(broken, encoding="utf-8")
    done = run("--json", "endpoint.yml", cwd=tmp_path)
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    line = broken.split("\n").index("mirror_traffic: {blue: 60}") + 1
    assert [(one["file"], one["line"], one["field"], one["rule"]) for one in found] == [
        ("endpoint.yml", line, "mirror_traffic.blue", "mirror"),
        ("endpoint.yml", line, "mirror_traffic.blue", "not-found"),
    ]
    assert done.stderr == "1 file: 1 error, 1 warning.\n"


def test_a_job_of_azures_is_loaded_without_its_chatter(tmp_path: Path) -> None:
    """Jobs make it log that some of its classes are experimental."""
    job = (
        "$schema: https://azuremlschemas.azureedge.net/latest/commandJob.schema.json\ntype: command\n"
        "command: echo\nenvironment: azureml://registries/r/environments/e/versions/1\nexperiment_nam: x\n"
    )
    (tmp_path / "job.yml").write_text(job, encoding="utf-8")
    done = run("job.yml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(
        "job.yml:5: experiment_nam: is not a field here. Did you mean experiment_name?"
    )
