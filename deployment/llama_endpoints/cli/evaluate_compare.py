"""`llama-endpoints evaluate compare`: two evaluations, paired by problem."""

import json
from pathlib import Path
from typing import Any, Final

import click

_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("old", type=_FOLDER)
@click.argument("new", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(*, old: Path, new: Path, as_json: bool) -> None:
    """Compare the evaluations in the folders OLD and NEW of one task, on the same data.

    Each metric's difference, NEW minus OLD, has a 95 % interval by a bootstrap over problems. Both evaluations are drawn together, so
    problems that both pass or fail do not widen it. Where each problem is passed or failed, a verdict also needs the exact sign test
    (one-sided, 5 %).
    """
    from llama_endpoints.evaluation.folder import EvaluationFolder
    from llama_endpoints.evaluation.report.compare import check_alike, other_settings, shared_metrics
    from llama_endpoints.evaluation.report.compare import compare as compared
    from llama_endpoints.evaluation.tasks import registry

    folders = EvaluationFolder(old), EvaluationFolder(new)
    check_alike(*folders)
    if differ := other_settings(*folders):
        click.echo(f"The settings differ: {', '.join(differ)}.", err=True)
    metrics = shared_metrics(*map(registry.metrics_of, folders))
    found = compared(metrics, *(folder.scores_by_problem() for folder in folders))
    if as_json:
        click.echo(json.dumps({one.name: one.to_dict() for one in found}, indent=2))
        return
    for one in found:
        click.echo(_line(one))


def _line(one: Any) -> str:
    change, p = one.change, "" if one.p is None else f" sign test p {one.p:.3f},"
    return (
        f"{one.name}: {one.old:.4f} -> {one.new:.4f}, difference {change.value:+.4f} "
        f"({change.low:+.4f} to {change.high:+.4f}),{p} {change.problems} problems: {one.verdict}"
    )
