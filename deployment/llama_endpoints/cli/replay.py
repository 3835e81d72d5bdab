"""`llama-endpoints replay`: run what a receipt or a batch record tells of again, and compare."""

import asyncio
import json
import logging
import os
import random
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.batch.row_defaults import defaults_of
from llama_endpoints.cli.options import model_option, refuse, setting_options
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import ServingError, SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from llama_endpoints.replay.claims import Claim
    from llama_endpoints.replay.rows import RowVerdict
    from llama_endpoints.replay.verdict import Verdict
    from llama_serving.contract.request import Request
    from llama_serving.service.service import Service

CONCURRENCY: Final = "64"
"""The default of LLAMA_MAX_NUM_SEQS for records."""
SHOWN: Final = 20
"""Rows that differ, or can't be replayed, of which each is named."""


@click.command()
@click.argument("receipt", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@model_option
@click.option(
    "--request", type=click.File("rb"), help="File with the body of the request, or - for standard input."
)
@click.option(
    "--prompt",
    type=click.File("rb"),
    help="File with the prompt alone, where that was a plain text. The parameters are the receipt's.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="FILE|FOLDER|GLOB",
    help="For records of a batch: its inputs. Repeatable.",
)
@click.option("--parameters", help="For records without a manifest: the job's --parameters.")
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="For records: replay so many of them, chosen at random. Default: all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@setting_options
def replay(  # noqa: PLR0913  (the options of a command)
    *, receipt: Path, model: str, request: Any, prompt: Any, inputs: "Sequence[str]", parameters: str | None,
    rows: int | None, as_json: bool, **flags: str | None,
) -> None:  # fmt: skip
    """Run a request again, and compare the result with its receipt.

    \b
    RECEIPT is one of
      a receipt, or a whole answer that has some: with --request or --prompt;
      the records of a batch job, or its manifest: with --input.
    Context, dtype, quantization and engine are the receipt's, where neither an option nor a variable sets them.

    \b
    Exit codes: 0 the same bytes; 1 something differs, and what is printed; 2 it can't be replayed
    (files, settings, a request that is not valid).
    """  # noqa: D301  (click reads the backspace character as "do not wrap")
    if len([one for one in (request, prompt, *inputs[:1]) if one is not None]) != 1:
        raise click.UsageError("Give one of --request, --prompt and --input.")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if inputs:
        raise SystemExit(
            _records(
                receipt, model, inputs=inputs, parameters=parameters, rows=rows, flags=flags, as_json=as_json
            )
        )
    if parameters is not None or rows is not None:
        raise click.UsageError("--parameters and --rows go with --input.")
    raise SystemExit(_receipt(receipt, model, request=request, prompt=prompt, flags=flags, as_json=as_json))


def _receipt(  # noqa: PLR0913  (options of the command)
    path: Path, model: str, *, request: Any, prompt: Any, flags: "Mapping[str, str | None]", as_json: bool
) -> int:
    from llama_endpoints.replay.documents import claims_in
    from llama_endpoints.replay.replay import Replayer, settings_of

    found = claims_in(path)
    asked = _requests(found, request, prompt)
    try:
        with _service(model, settings_of(found[0].receipt), flags) as service:
            verdicts = Replayer(service).replay_all(zip(asked, found, strict=True))
    except ServingError as error:
        raise SetupError(f"The request can't be replayed here. {error.message}") from error
    if as_json:
        identical = all(one.identical for one in verdicts)
        click.echo(json_line({"identical": identical, "receipts": [one.to_dict() for one in verdicts]}))
    else:
        for verdict in verdicts:
            _show(verdict)
    return 0 if all(one.identical for one in verdicts) else 1


def _requests(found: "Sequence[Claim]", request: Any, prompt: Any) -> "list[Request]":
    """Return the request of each receipt."""
    from llama_endpoints.replay.requests import of_body, of_prompt
    from llama_serving.contract import strict_json

    try:
        if prompt is not None:
            text = prompt.read().decode("utf-8")
            return [of_prompt(text, claim.receipt) for claim in found]
        body = strict_json.decode(request.read())
        return [of_body(body, claim.receipt["protocol"]) for claim in found]
    except UnicodeDecodeError:
        raise SetupError("--prompt is not UTF-8.") from None
    except ServingError as error:
        refused = f"--request is not valid as a body of {found[0].receipt['protocol']}"
        raise SetupError(f"{refused}. {error.message}") from error


def _records(  # noqa: PLR0913  (options of the command)
    path: Path, model: str, *, inputs: "Sequence[str]", parameters: str | None, rows: int | None,
    flags: "dict[str, str | None]", as_json: bool,
) -> int:  # fmt: skip
    from llama_endpoints.replay.records import manifest_of, recorded
    from llama_endpoints.replay.replay import settings_of
    from llama_endpoints.replay.rows import replay_rows
    from llama_endpoints.replay.verdict import of_job
    from llama_serving.batch import inputs as sources
    from llama_serving.batch.outputs import Outputs
    from llama_serving.settings import Settings

    records, manifest = manifest_of(path)
    if parameters is None:
        parameters = json.dumps(manifest.job["parameters"]) if manifest else "{}"
    defaults, _ = defaults_of(parameters)
    found = sources.find(inputs, but=Outputs(records).all)
    changed = list(manifest.changed_inputs(found)) if manifest else []
    max_bytes = Settings.from_environment(os.environ).max_body
    chosen = list(recorded(records, found, defaults, max_bytes))
    if not chosen:
        raise SetupError(f"{records} has no record with an output.")
    if rows is not None and rows < len(chosen):
        chosen = random.SystemRandom().sample(chosen, rows)
    made = next((settings_of(row.claims[0].receipt) for row in chosen if row.claims), {})
    made = manifest.settings if manifest else made
    if not os.environ.get("LLAMA_MAX_NUM_SEQS", "").strip():
        flags = {**flags, "max_num_seqs": CONCURRENCY}
    try:
        with _service(model, made, flags) as service, _bar(len(chosen)) as on_row:
            job = of_job(changed, manifest.shared if manifest else None, service.receipts.shared())
            outcomes = asyncio.run(replay_rows(service, chosen, on_row))
    except ServingError as error:
        refuse(error)
    return _report(job, outcomes, as_json=as_json)


def _report(job: "Verdict", outcomes: "Sequence[RowVerdict]", *, as_json: bool) -> int:
    """Print what came of the rows, and return the exit code."""
    identical = sum(one.identical for one in outcomes)
    skipped = [one for one in outcomes if one.skipped]
    differing = [one for one in outcomes if not one.identical and not one.skipped]
    if as_json:
        about = {
            "job": job.to_dict(),
            "rows": len(outcomes), "identical": identical, "different": len(differing), "skipped": len(skipped),
            "differing": [{"row": one.name, "sequences": [v.to_dict() for v in one.verdicts]} for one in differing],
        }  # fmt: skip
        click.echo(json_line(about))
    else:
        if job.differences or job.environment:
            _show(job)
        for one in differing[:SHOWN]:
            for verdict in one.verdicts:
                _show(verdict, f"{one.name}, ")
        for one in skipped[:SHOWN]:
            click.echo(f"{one.name}: not replayed: {one.skipped}")
        click.echo(
            f"{len(outcomes)} rows = {identical} identical + {len(differing)} different + {len(skipped)} not replayed"
        )
    if len(skipped) == len(outcomes):
        raise SetupError("No row can be replayed. Let the job run with `receipt: true`, or with seeds.")
    return 1 if differing or job.differences else 0


def _show(verdict: "Verdict", of: str = "") -> None:
    click.echo(f"{of}{verdict.name}: {'identical' if verdict.identical else 'different'}")
    for one in verdict.differences:
        click.echo(f"  {one}")
    if verdict.first is not None:
        click.echo(f"  first difference: {verdict.first}")
    if verdict.environment:
        click.echo("  computed otherwise:")
        for one in verdict.environment:
            click.echo(f"    {one}")
    if verdict.reason:
        click.echo(f"  The receipt does not promise the same bytes: {verdict.reason}.")


@contextmanager
def _service(model: str, made: "Mapping[str, str]", flags: "Mapping[str, str | None]") -> "Iterator[Service]":
    """Yield the model, with the receipt's settings under those of the environment and of the options."""
    from llama_endpoints.download.resolve import model_files
    from llama_serving.service.service import Service
    from llama_serving.settings import Settings

    given = {f"LLAMA_{name.upper()}": value for name, value in flags.items() if value is not None}
    set_here = {name: value for name, value in os.environ.items() if value.strip()}
    settings = Settings.from_environment({**made, **set_here, **given})
    with closing(Service.start(model_files(model), settings)) as service:
        yield service


@contextmanager
def _bar(total: int) -> "Iterator[Callable[[], object]]":
    import sys

    from tqdm import tqdm

    with tqdm(
        total=total, desc="replaying", unit=" rows", file=sys.stderr, disable=None, dynamic_ncols=True
    ) as bar:
        yield lambda: bar.update(1)
