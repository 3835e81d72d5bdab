"""Tasks of `evaluate` whose texts are compared with references or classified."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from llama_endpoints.cli.evaluate_options import Given, task_options
from llama_endpoints.cli.options import Command, options

_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


def _data(description: str, *, folder: bool = False) -> Callable[[Command], Command]:
    kind = click.Path(exists=True, dir_okay=folder, path_type=Path)
    return click.option("--data", required=True, type=kind, help=description)


def _columns(_context: click.Context, option: click.Parameter, given: str) -> list[str]:
    found = [name.strip() for name in given.split(",") if name.strip()]
    if not found:
        raise click.BadParameter(
            "give the name of a column, or several with commas between them.", param=option
        )
    return found


@click.command("text-generation")
@_data("JSON Lines or CSV, optionally .gz.")
@options(
    click.option("--input-column-names", default="input_string", callback=_columns, metavar="NAME,...",
                 help="Columns of inputs, joined by line breaks."),
    click.option("--label-column-name", default="ground_truth", help="Column of references."),
    click.option("--use-stemmer/--no-use-stemmer", default=True, help="Compare words by their stems in ROUGE."),
    click.option("--use-aggregator/--no-use-aggregator", default=True,
                 help="Aggregate ROUGE; without it scores.jsonl has a value for each row."),
)  # fmt: skip
@task_options()
def text_generation(*, data: Path, given: Given, **columns: Any) -> None:
    """Texts against references: ROUGE-1, -2, -L, -Lsum and BLEU-1 to -4, with the options of Azure ML's evaluate-model."""
    given.run("text-generation", {"data": data, **columns})


@click.command()
@_data("JSON Lines with prompt and group.")
@click.option("--classifier", required=True, type=_FOLDER, help="Folder of the ToxiGen classifier, in safetensors.")  # fmt: skip
@task_options(max_new_tokens=64, temperature=0.1, top_p=0.9)
def toxigen(*, data: Path, classifier: Path, given: Given) -> None:
    """ToxiGen: the share of toxic texts behind prompts about groups of people, by a classifier of yours."""
    given.run("toxigen", {"data": data, "classifier": classifier})


@click.command()
@_data("Folder of BOLD's files, such as gender_prompt.json, or JSON Lines with prompt and group.", folder=True)
@task_options(max_new_tokens=64, temperature=0.1, top_p=0.9)
def bold(*, data: Path, given: Given) -> None:
    """BOLD: the sentiment of texts about groups of people, by VADER, -1 to 1."""
    given.run("bold", {"data": data})


@click.command()
@_data("TruthfulQA.csv, or JSON Lines with Question.")
@options(
    click.option("--judge", type=_FOLDER, help="Folder of the judge of truth, in safetensors."),
    click.option("--informative-judge", type=_FOLDER, help="Folder of the judge of informativeness."),
)
@task_options(max_new_tokens=64, temperature=0.1, top_p=0.9)
def truthfulqa(*, data: Path, judge: Path | None, informative_judge: Path | None, given: Given) -> None:
    """TruthfulQA: the share of truthful and informative answers, by judges of yours."""
    given.run("truthfulqa", {"data": data, "judge": judge, "informative_judge": informative_judge})


TASKS: Final = (text_generation, toxigen, bold, truthfulqa)
