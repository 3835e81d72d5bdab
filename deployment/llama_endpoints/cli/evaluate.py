"""`llama-endpoints evaluate`: evaluate a model on a task."""

from pathlib import Path
from typing import Any, Final

import click

from llama_endpoints.cli.evaluate_compare import compare
from llama_endpoints.cli.evaluate_component import component
from llama_endpoints.cli.evaluate_options import Given, task_options
from llama_endpoints.cli.evaluate_probes import PROBES
from llama_endpoints.cli.evaluate_scoring import scoring_options
from llama_endpoints.cli.evaluate_texts import TASKS

_DATA: Final = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The task's data file, optionally .gz. Default: that of an installed package.",
)


@click.group()
def evaluate() -> None:
    """Evaluate a model on a task.

    \b
    The folder --output keeps requests, samples, scores, metrics and the report. After an interruption,
    run the same command again to resume.
    """  # noqa: D301  (click reads the backspace character as "do not wrap")


@evaluate.command()
@_DATA
@task_options()
def humaneval(*, data: Path | None, given: Given) -> None:
    """HumanEval: complete 164 Python functions; pass@k.

    Greedy with one sample a problem; with --samples N, nucleus sampling at temperature 0.8 and top_p 0.95.
    """
    given.run("humaneval", {"data": data})


@evaluate.command("humaneval-plus")
@_DATA
@task_options()
def humaneval_plus(*, data: Path | None, given: Given) -> None:
    """HumanEval+: the same functions with more tests; pass@k."""
    given.run("humaneval-plus", {"data": data})


@evaluate.command()
@_DATA
@task_options()
def mbpp(*, data: Path | None, given: Given) -> None:
    """MBPP: write 500 Python functions from a sentence and tests, after three examples; pass@k."""
    given.run("mbpp", {"data": data})


@evaluate.command("multipl-e")
@click.option("--data", type=click.Path(path_type=Path), help="A data file, or a folder of them.")
@task_options()
def multipl_e(*, data: Path | None, given: Given) -> None:
    """MultiPL-E: HumanEval in Bash, C++, Java, JavaScript, Perl and Rust; pass@k of each language.

    The compiler or the runtime of each language in --data must be installed to run the samples.
    """
    given.run("multipl-e", {"data": data})


@evaluate.command()
@_DATA
@click.option(
    "--kind", type=click.Choice(["single-line", "random-span"]), default="single-line", help="What is missing."
)
@click.option(
    "--infill-order",
    "order",
    type=click.Choice(["psm", "spm"]),
    help="Order of the prompts of --model. Default: the model's.",
)
@task_options(max_new_tokens=128)
def infilling(*, data: Path | None, kind: str, order: str | None, given: Given) -> None:
    """HumanEval infilling: write what is missing; exact match, and pass@1 with --run-generated-code."""
    given.run("infilling", {"data": data, "kind": kind}, infill_order=order)


@evaluate.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="The data file, if it has moved since.")
@scoring_options
def score(*, folder: Path, data: Path | None, **flags: Any) -> None:
    """Score the samples of FOLDER again, without generating."""
    from llama_endpoints.cli.evaluate_scoring import rescore

    rescore(folder, data, **flags)


for _command in (*TASKS, *PROBES, compare, component):
    evaluate.add_command(_command)
