"""Tasks of `evaluate` that need no data set: key retrieval, and perplexity over any files."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.evaluate_options import Given, address, task_options
from llama_endpoints.cli.evaluate_scoring import limits_option, measured
from llama_endpoints.evaluation.targets.endpoint_key import KEY

if TYPE_CHECKING:
    from collections.abc import Sequence


def _numbers(_context: click.Context, option: click.Parameter, given: str) -> "Sequence[float]":
    try:
        found = [float(part) for part in given.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise click.BadParameter("give numbers with commas between them.", param=option)
    return [int(one) if one.is_integer() else one for one in found]


def _whole(context: click.Context, option: click.Parameter, given: str) -> "Sequence[int]":
    found = _numbers(context, option, given)
    if not all(isinstance(one, int) for one in found):
        raise click.BadParameter("give whole numbers with commas between them.", param=option)
    return [int(one) for one in found]


@click.command("key-retrieval")
@click.option(
    "--lengths", default="4000,8000,16000", callback=_whole, help="Tokens of the prompts, up to 100000."
)
@click.option(
    "--depths", default="0,0.2,0.4,0.6,0.8,1", callback=_numbers, help="Where the function stands, 0 to 1."
)
@click.option("--repeats", type=click.IntRange(1, 1000), default=10, help="Prompts for each length and depth.")
@click.option(
    "--tokenizer",
    help="Folder of a checkpoint, to count tokens with. Default: the model's; an estimate with --url and --records.",
)
@task_options(max_new_tokens=16)
def key_retrieval(
    *, lengths: "Sequence[int]", depths: "Sequence[float]", repeats: int, tokenizer: str | None, given: Given
) -> None:
    """Key retrieval: find the number that one function among much Python code returns."""
    if tokenizer is None and given.flags["model"]:
        from llama_endpoints.download.resolve import model_files

        tokenizer = str(model_files(given.flags["model"]).checkpoint)
    options = {
        "lengths": list(lengths),
        "depths": list(depths),
        "repeats": repeats,
        "tokenizer": tokenizer,
    }
    given.run("key-retrieval", options)


@click.command()
@click.option(
    "--model",
    required=True,
    help="Folder of a packaged model, an azureml: URI, or nano: loaded here, unless there is a --url.",
)
@click.option(
    "--url", help=f"Endpoint of this model that computes it, of the route /v1. Its key comes from {KEY}."
)
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of text files.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the evaluation.",
)
@click.option("--pattern", default="*", help="Take the files that match.")
@click.option(
    "--window", type=click.IntRange(16), default=2048, help="Tokens at a time, within the model's context."
)
@click.option("--limit", type=click.IntRange(1), help="Take the first files alone.")
@click.option("--overwrite", is_flag=True, help="Replace another evaluation in --output.")
@limits_option
def perplexity(  # noqa: PLR0913  (the options of a command)
    *, model: str, url: str | None, data: Path, output: Path, limit: int | None, overwrite: bool, **options: Any
) -> None:
    """Perplexity, and bits per byte, over the files of a folder."""
    from llama_endpoints.evaluation.folder import EvaluationFolder, write_lines
    from llama_endpoints.evaluation.run import Evaluation
    from llama_endpoints.evaluation.targets.target import Model
    from llama_endpoints.evaluation.tasks.code_task import CodeRunning
    from llama_endpoints.evaluation.tasks.perplexity import Perplexity
    from llama_endpoints.evaluation.tasks.task import PromptStyle, Sampling
    from llama_serving.service import fingerprint

    limits = {name: options.pop(name) for name in ("limits", "ceilings")}
    task = Perplexity.create(
        "perplexity", {"model": model, "data": str(data), "url": url and address(url), **options}, CodeRunning()
    )
    files, folder = task.model.files, EvaluationFolder(output)
    about = Model(
        Path(model).name, files.variant.name, PromptStyle.COMPLETION, digest=fingerprint.of(files)["digest"]
    )
    sampling = Sampling(max_new_tokens=0)
    evaluation = Evaluation(folder, task, about, PromptStyle.COMPLETION, sampling, limit, overwrite)
    problems = evaluation.problems()
    evaluation.open({"kind": "endpoint", "url": url} if url else {"kind": "model", "path": model}, problems)
    write_lines(folder.samples, (sample.to_dict() for sample in task.samples(problems)))
    measured(folder, task, {"workers": 1, **limits})


PROBES: Final = (key_retrieval, perplexity)
