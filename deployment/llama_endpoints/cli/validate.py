"""`llama-endpoints validate`: check Azure ML's files offline."""

from pathlib import Path

import click


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object per finding; the summary goes to standard error.",
)
@click.option(
    "--strict", is_flag=True, help="Exit with code 1 on warnings too, but not for what was not checked."
)
def validate(*, paths: tuple[Path, ...], as_json: bool, strict: bool) -> None:
    """Check Azure ML's files offline: with Azure's own client, and for errors it misses.

    Takes files and folders: endpoints, deployments (managed, Kubernetes, batch), environments, models, data, clusters,
    command jobs, and autoscale settings of Azure Monitor. `$schema` gives a file's kind. References are resolved in the
    folders around a file.

    \b
    Findings have the form FILE:LINE: field: what is wrong, what is allowed, what to do.
    An error is refused by Azure or cannot work. A warning is legal, but costly or surprising.
    "not checked" marks what cannot be checked, such as other kinds of files and third-party containers.
    Exit codes: 0 no errors, 1 errors, 2 nothing could be checked.

    \b
    Examples:
      llama-endpoints validate yaml environments
      llama-endpoints validate --strict --json yaml/online/codellama-7b-hf.yml
    """  # noqa: D301
    from llama_endpoints.validate.findings import Level
    from llama_endpoints.validate.report import check
    from llama_serving.contract.json_lines import json_line

    report = check(paths)
    for finding in report.findings:
        click.echo(json_line(finding.to_dict()) if as_json else finding.shown())
    click.echo(report.summary(), err=as_json)
    bad = {Level.ERROR, Level.WARNING} if strict else {Level.ERROR}
    raise SystemExit(1 if any(one.level in bad for one in report.findings) else 0)
