"""Options of `rollout` for its quality gates."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.options import options
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.endpoints.rollout_gates import QualityGate
    from llama_endpoints.evaluation.gate import Deployment

_FORM: Final = re.compile(r"([a-z][a-z-]*)=(0(?:\.[0-9]{1,6})?)")
FOLDER: Final = Path("build/gates")

gate_options = options(
    click.option("--gate", "gates", multiple=True, metavar="TASK=MARGIN",
                 help="Run a task on both deployments before traffic moves, such as humaneval=0.02: refuse if the new one is "
                      "significantly worse by more. Repeatable."),
    click.option("--gate-data", "gate_data", multiple=True, metavar="TASK=FILE",
                 help="Data file of a gate's task. Default: that of an installed package."),
    click.option("--gate-prompt", type=click.Choice(["completion", "dialog"]), default="completion",
                 help="How both deployments are asked; dialog for Instruct models."),
    click.option("--gate-folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER,
                 help="Where the gates' samples are kept, so that an interrupted gate continues."),
    click.option("--gate-concurrency", type=click.IntRange(1, 1024), default=4, help="Requests of a gate at a time."),
    click.option("--run-generated-code", "run_code", is_flag=True,
                 help="Run what the deployments wrote for the gates here, apart. Needs bubblewrap."),
)  # fmt: skip


def quality_gates(runner: Any, flags: Mapping[str, Any]) -> tuple["QualityGate", ...]:
    """Return the gates that were given, each checked before anything is sent.

    Raises:
        SetupError: a task or its data does not exist, or it runs code and may not.
    """
    given = dict(map(_parsed, flags["gates"]))
    data = dict(_data(text, given) for text in flags["gate_data"])
    return tuple(_gate(runner, task, margin, data.get(task), flags) for task, margin in given.items())


def _parsed(text: str) -> tuple[str, str]:
    from llama_endpoints.evaluation.gate import TASKS
    from llama_endpoints.evaluation.tasks import registry

    match = _FORM.fullmatch(text)
    if match is None:
        raise SetupError(f"Invalid --gate {text!r}: write TASK=MARGIN with a margin from 0 to below 1, such as humaneval=0.02.")  # fmt: skip
    known = [name for name in TASKS if name in registry.names()]
    if match[1] not in known:
        raise SetupError(f"There is no gate {match[1]!r}. Tasks that can be one: {', '.join(known)}.")
    return match[1], match[2]


def _data(text: str, gates: Mapping[str, str]) -> tuple[str, str]:
    task, _, file = text.partition("=")
    if task not in gates or not file:
        raise SetupError(f"Invalid --gate-data {text!r}: write TASK=FILE with the task of a --gate.")
    return task, file


def _gate(runner: Any, task: str, margin: str, data: str | None, flags: Mapping[str, Any]) -> "QualityGate":
    from llama_endpoints.evaluation.gate import EvaluationGate
    from llama_endpoints.evaluation.tasks import registry
    from llama_endpoints.evaluation.tasks.code_task import CodeRunning
    from llama_endpoints.evaluation.tasks.task import PromptStyle

    running = CodeRunning(flags["run_code"])
    if data is None and task != "humaneval":  # (HumanEval comes with a package)
        raise SetupError(f"--gate {task}={margin} needs its data: give --gate-data {task}=FILE.")
    made = registry.create(task, {"data": data} if data else {}, running)
    if made.runs_code:
        running.require()
    made.problems()
    return EvaluationGate(
        f"{task}={margin}", made, float(margin), PromptStyle(flags["gate_prompt"]), flags["gate_folder"] / runner.endpoint,
        lambda name: _deployment(runner, name, flags["gate_concurrency"]), runner.report, os.cpu_count() or 1,
    )  # fmt: skip


def _deployment(runner: Any, name: str, concurrency: int) -> "Deployment":
    from llama_endpoints.endpoints.scoring import Scoring
    from llama_endpoints.endpoints.target import deployment_fields
    from llama_endpoints.evaluation.gate import Deployment
    from llama_endpoints.evaluation.targets.endpoint_target import EndpointTarget
    from llama_endpoints.evaluation.targets.protocols import Protocol

    entity = runner.client.find_deployment(runner.endpoint, name)
    if entity is None:
        raise SetupError(f"{runner.endpoint} has no deployment {name}.")
    fields = json.dumps(deployment_fields(entity), sort_keys=True, default=str)
    scoring = Scoring(runner.client, runner.endpoint)
    target = EndpointTarget(scoring.address, Protocol.SCORE, name, name, concurrency, scoring.key)
    return Deployment(name, fields, target)
