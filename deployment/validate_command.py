"""`llama-endpoints validate`: Azure's files, before Azure sees them."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a finding; the summary goes to standard error."
)
@click.option("--strict", is_flag=True, help="Warnings end with exit code 1, too.")
def validate(*, paths: tuple[Path, ...], as_json: bool, strict: bool) -> None:
    """Check files for Azure ML, offline: with Azure's own client, and for what it lets through.

    Takes files and folders: endpoints, deployments (managed, Kubernetes, batch), environments, models, data, clusters,
    command jobs, and autoscale settings of Azure Monitor. `$schema` says which one a file is. What a file names is looked up
    in those that lie around it.

    \b
    Each finding is FILE:LINE: field: what is wrong, what is allowed, what to do.
    Exit code 1 with errors, 0 without, 2 where nothing could be checked.

    \b
    Examples:
      llama-endpoints validate yaml environments
      llama-endpoints validate --strict --json yaml/online/codellama-7b-hf.yml
    """  # noqa: D301
    from deployment.validate.check import check
    from deployment.validate.findings import Level

    report = check(paths)
    for finding in report.findings:
        click.echo(json.dumps(finding.to_dict(), ensure_ascii=False) if as_json else finding.shown())
    click.echo(report.summary(), err=as_json)
    bad = report.findings if strict else [one for one in report.findings if one.level is Level.ERROR]
    raise SystemExit(1 if bad else 0)
