"""`llama-endpoints rollout`: move an online endpoint's traffic to another deployment in steps."""

from pathlib import Path
from typing import Any, Final

import click

from llama_endpoints.cli.options import FiniteRange
from llama_endpoints.cli.rollout_gates import gate_options, quality_gates
from llama_endpoints.cli.workspace_options import client_of, workspace_options
from llama_serving.errors import SetupError

ROLLED_BACK: Final = 1
SAMPLE: Final = Path("yaml/online/samples/completion.json")


class Steps(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers only
    """Percentages, such as `10,50,100`."""

    name = "PERCENT,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse integers. The roll-out checks their order."""
        try:
            return tuple(int(step) for step in str(value).split(","))
        except ValueError:
            self.fail(f"Invalid percentages {value}: use the form 10,50,100.", param, ctx)


@click.command()
@click.option("--endpoint", required=True, help="Name of the endpoint.")
@click.option("--to", help="Deployment to send all traffic to.")
@click.option("--back", is_flag=True, help="Restore the traffic from before the roll-out.")
@click.option("--dry-run", is_flag=True, help="Print the remaining steps without changing anything.")
@click.option(
    "--steps",
    default="10,50,100",
    type=Steps(),
    help="Percentages of traffic, increasing.",
)
@click.option(
    "--mirror",
    default=10,
    help="Percentage of traffic mirrored first; 0 turns mirroring off.",
)
@click.option(
    "--probes",
    default=20,
    type=click.IntRange(1),
    help="Requests sent to the deployment before each step.",
)
@click.option(
    "--over",
    default=60.0,
    type=FiniteRange(0),
    help="Seconds over which the probes are spread.",
)
@click.option(
    "--request", "requests", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"File with a JSON body to send. Repeatable. Default: {SAMPLE}.",
)  # fmt: skip
@click.option(
    "--max-error-rate",
    default=0.01,
    type=FiniteRange(0, 1),
    help="Highest share of failed probes.",
)
@click.option(
    "--max-slowdown",
    default=1.5,
    type=FiniteRange(0),
    help="Highest ratio of its p95 to the previous deployment's; 0 is no limit.",
)
@click.option("--max-p50", type=FiniteRange(0), help="Seconds.")
@click.option("--max-p95", type=FiniteRange(0), help="Seconds.")
@gate_options
@workspace_options
def rollout(  # noqa: PLR0913  (one argument an option)
    *, endpoint: str, to: str | None, back: bool, dry_run: bool, steps: tuple[int, ...], mirror: int, probes: int, over: float,
    requests: tuple[Path, ...], max_error_rate: float, max_slowdown: float, max_p50: float | None, max_p95: float | None,
    gates: tuple[str, ...], gate_data: tuple[str, ...], gate_prompt: str, gate_folder: Path, gate_concurrency: int, run_code: bool,
    **workspace: Any,
) -> None:  # fmt: skip
    """Move an online endpoint's traffic to another deployment: mirrored first, then 10, 50 and 100 %.

    Before each step, and after the last one, both deployments are probed. If the new one fails or is too slow, the previous
    traffic is restored in one change. The endpoint's tags hold the progress: after an interruption, run the same command again,
    on any machine.

    \b
    Exit codes: 0 the roll-out completed, 1 the traffic was restored, 2 a step could not be applied, 130 Ctrl-C ended it.

    \b
    Examples:
      llama-endpoints rollout --endpoint code-llama --to green
      llama-endpoints rollout --endpoint code-llama --to green --probes 100 --over 600 --max-p95 30
      llama-endpoints rollout --endpoint code-llama --to green --gate humaneval=0.02 --run-generated-code
      llama-endpoints rollout --endpoint code-llama --back
    """  # noqa: D301
    from llama_endpoints.cli.evaluate_scoring import resumable
    from llama_endpoints.endpoints.rollout_gates import Limits
    from llama_endpoints.endpoints.rollout_runner import Probing, RolledBack, RolloutRunner, samples

    if (to is None) is not back:
        raise SetupError("Give either --to with a deployment, or --back.")
    runner = RolloutRunner(client_of(**workspace), endpoint, click.echo)
    if to is None:
        _back(runner, dry_run=dry_run)
        return
    current = runner.begin(to, steps, mirror)
    if dry_run:
        _announce(runner, current)
        return
    quality = quality_gates(runner, {
        "gates": gates, "gate_data": gate_data, "gate_prompt": gate_prompt, "gate_folder": gate_folder,
        "gate_concurrency": gate_concurrency, "run_code": run_code,
    })  # fmt: skip
    limits = Limits(max_error_rate, max_slowdown or None, max_p50, max_p95)
    probing = Probing(limits, samples(requests, SAMPLE), probes, over, quality)
    try:
        with resumable():
            runner.run(current, probing)
    except RolledBack as error:
        click.echo(str(error), err=True)
        raise SystemExit(ROLLED_BACK) from error


def _announce(runner: Any, current: Any) -> None:
    from llama_endpoints.endpoints.rollout import position

    at = position(current, runner.state())
    for number, stage in enumerate(current.stages):
        mark = "." if number <= at else ">"
        click.echo(f"{mark} step {number + 1} of {len(current.stages)}: {stage}")
    click.echo("Nothing was applied.")


def _back(runner: Any, *, dry_run: bool) -> None:
    from llama_endpoints.endpoints.plan import split
    from llama_endpoints.endpoints.rollout import from_tags, is_done

    state = runner.state()
    current = from_tags(state.tags) or (from_tags(state.tags, ended=True) if is_done(state) else None)
    if current is None:
        raise SetupError(f"{runner.endpoint} has no roll-out to revert. Its traffic: {split(state.traffic)}.")
    if dry_run:
        click.echo(f"> {split(current.previous_traffic)}")
        click.echo("Nothing was applied.")
        return
    runner.restore_traffic(current, "by --back")
    click.echo(f"The traffic was restored to {split(current.previous_traffic)}.")
