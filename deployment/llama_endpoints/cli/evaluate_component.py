"""`llama-endpoints evaluate component`: what yaml/evaluate runs in Azure ML, by the inputs of Azure's component evaluate_model."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from llama_serving.errors import SetupError

_DATA: Final = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
_ENGINES: Final[Mapping[str, str | None]] = {"auto": None, "cpu": "batching", "gpu": "vllm"}
_FLAGS: Final = {
    "aggregator": "use-aggregator",
    "use_aggregator": "use-aggregator",
    "stemmer": "use-stemmer",
    "use_stemmer": "use-stemmer",
}
_NUMBERS: Final = ("max_new_tokens", "samples", "temperature", "top_p", "seed", "limit")
_ANY: Final = click.Path(exists=True, path_type=Path)


@click.command("component")
@click.option("--task", required=True, help="Task, such as text-generation.")
@click.option("--data", required=True, type=_ANY, help="Data file, or a folder with one.")
@click.option("--model", required=True, type=_ANY, help="Folder of a packaged model.")
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the evaluation.",
)
@click.option("--input-column-names", help="Columns of inputs, for text-generation.")
@click.option("--label-column-name", help="Column of references, for text-generation.")
@click.option("--device", type=click.Choice(list(_ENGINES)), default="auto", help="gpu is vLLM.")
@click.option("--batch-size", help="Sequences at a time.")
@click.option("--config-file-name", "config_file", type=_ANY, help="JSON file with further options.")
@click.option("--config-str", "config", help="The same as a text.")
@click.option("--run-generated-code", type=click.BOOL, default=False, help="Run what the model wrote.")
@click.option("--fail-below", help="METRIC=VALUE, separated by commas.")
@click.option("--fail-above", help="The same, for metrics that must not be higher.")
def component(**given: Any) -> None:
    """Evaluate as a component of an Azure ML pipeline: the inputs of Azure's evaluate_model, as yaml/evaluate passes them.

    The configuration has aggregator and stemmer (true or false), and max_new_tokens, samples, temperature, top_p, seed and limit.
    """
    from llama_endpoints.cli.evaluate import evaluate

    evaluate.main([given["task"], *words(given)], prog_name="llama-endpoints evaluate", standalone_mode=False)


def words(given: Mapping[str, Any]) -> list[str]:
    """Return the words of the task's own command.

    Raises:
        SetupError: the configuration has an unknown option, or the data's folder has several files or none.
    """
    texts = given["task"] == "text-generation"
    found = {
        "--data": data_file(given["data"]),
        "--model": given["model"],
        "--output": given["output"],
        "--input-column-names": given["input_column_names"] if texts else None,
        "--label-column-name": given["label_column_name"] if texts else None,
        "--engine": _ENGINES[given["device"]],
        "--concurrency": given["batch_size"],
    }
    words = [word for name, value in found.items() if value is not None for word in (name, str(value))]
    for name in ("fail_below", "fail_above"):
        limits = [limit for limit in (given[name] or "").split(",") if limit]
        words += [word for limit in limits for word in (f"--{name.replace('_', '-')}", limit)]
    return [
        *words,
        *(["--run-generated-code"] if given["run_generated_code"] else []),
        *_configured(given, texts=texts),
    ]


def _configured(given: Mapping[str, Any], *, texts: bool) -> Iterator[str]:
    for name, value in {**_json(given["config_file"]), **_json(given["config"])}.items():
        if texts and name in _FLAGS and isinstance(value, bool):
            yield f"--{'' if value else 'no-'}{_FLAGS[name]}"
        elif name in _NUMBERS and isinstance(value, int | float) and not isinstance(value, bool):
            yield from (f"--{name.replace('_', '-')}", str(value))
        else:
            allowed = ", ".join((*(_FLAGS if texts else ()), *_NUMBERS))
            raise SetupError(f"The evaluation's configuration can't have {name} = {json.dumps(value)[:100]}. Allowed: {allowed}.")  # fmt: skip


def _json(given: Path | str | None) -> Mapping[str, Any]:
    if not given:
        return {}
    text = given.read_text(encoding="utf-8") if isinstance(given, Path) else given
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"The evaluation's configuration is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise SetupError("The evaluation's configuration must be a JSON object.")
    return found


def data_file(given: Path) -> Path:
    """Return the data file: Azure mounts a file's folder where the input is a folder.

    Raises:
        SetupError: the folder has several data files, or none.
    """
    if not given.is_dir():
        return given
    found = [path for path in sorted(given.rglob("*")) if path.name.endswith(_DATA)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise SetupError(f"{given} must have one data file ({', '.join(_DATA)}). It has: {names}.")
    return found[0]
