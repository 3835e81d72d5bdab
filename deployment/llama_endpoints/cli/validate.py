"""`llama-endpoints validate`: Azure's files, before Azure sees them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

_ENDS_OF_LINES: Final = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""What JSON may hold as it is, and what many programs that read by lines take for the end of one."""


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a finding; the summary goes to standard error."
)
@click.option(
    "--strict", is_flag=True, help="Warnings end with exit code 1, too; what is not checked never does."
)
def validate(*, paths: tuple[Path, ...], as_json: bool, strict: bool) -> None:
    """Check files for Azure ML, offline: with Azure's own client, and for what it lets through.

    Takes files and folders: endpoints, deployments (managed, Kubernetes, batch), environments, models, data, clusters,
    command jobs, and autoscale settings of Azure Monitor. `$schema` says which one a file is. What a file names is looked up
    in those that lie around it.

    \b
    Each finding is FILE:LINE: field: what is wrong, what is allowed, what to do.
    An error is what Azure refuses or what can't work, a warning what is legal and costs something or surprises.
    "not checked" is what is not ours to know, such as other kinds of files and other people's containers.
    Exit code 1 with errors, 0 without, 2 where nothing could be checked.

    \b
    Examples:
      llama-endpoints validate yaml environments
      llama-endpoints validate --strict --json yaml/online/codellama-7b-hf.yml
    """  # noqa: D301
    from llama_endpoints.validate.findings import Level
    from llama_endpoints.validate.report import check

    report = check(paths)
    for finding in report.findings:
        click.echo(_line(finding.to_dict()) if as_json else finding.shown())
    click.echo(report.summary(), err=as_json)
    bad = {Level.ERROR, Level.WARNING} if strict else {Level.ERROR}
    raise SystemExit(1 if any(one.level in bad for one in report.findings) else 0)


def _line(value: Mapping[str, Any]) -> str:
    """JSON that is one line to everybody."""
    return json.dumps(value, ensure_ascii=False).translate(_ENDS_OF_LINES)
