"""`llama-endpoints rollout`: another deployment of an online endpoint takes over, step by step."""

from pathlib import Path
from typing import Any, Final

import click

from llama_endpoints.cli.workspace_options import client_of, where_options
from llama_serving.errors import SetupError

TAKEN_BACK: Final = 1
SAMPLE: Final = Path("yaml/online/samples/completion.json")


class Steps(click.ParamType):  # type: ignore[type-arg]  # (generic for type checkers alone)
    """`10,50,100`."""

    name = "PERCENT,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Whole numbers; whether they can be gone is said later."""
        try:
            return tuple(int(step) for step in str(value).split(","))
        except ValueError:
            self.fail(f"{value} is no list of percentages. Write one such as 10,50,100.", param, ctx)


@click.command()
@click.option("--endpoint", required=True, help="Its name.")
@click.option("--to", help="The deployment that is to have all the traffic.")
@click.option("--back", is_flag=True, help="Take the traffic back to where it was before the roll-out.")
@click.option("--dry-run", is_flag=True, help="Print the steps from where it stands, and change nothing.")
@click.option(
    "--steps",
    default="10,50,100",
    show_default=True,
    type=Steps(),
    help="Percent that it gets, one after the other.",
)
@click.option(
    "--mirror",
    default=10,
    show_default=True,
    help="Percent of the traffic that is copied to it first; 0 is none.",
)
@click.option(
    "--probes",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that are sent to it before each step.",
)
@click.option(
    "--over",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds over which they are spread.",
)
@click.option(
    "--request", "requests", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"File with a body that is sent; may be repeated. {SAMPLE} by default.",
)  # fmt: skip
@click.option(
    "--max-error-rate",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Of the probes that may fail.",
)
@click.option(
    "--max-slowdown",
    default=1.5,
    show_default=True,
    type=click.FloatRange(0),
    help="Its p95 by that of the one before; 0 is any.",
)
@click.option("--max-p50", type=click.FloatRange(0), help="Seconds.")
@click.option("--max-p95", type=click.FloatRange(0), help="Seconds.")
@where_options
def rollout(  # noqa: PLR0913  (one argument an option)
    *, endpoint: str, to: str | None, back: bool, dry_run: bool, steps: tuple[int, ...], mirror: int, probes: int, over: float,
    requests: tuple[Path, ...], max_error_rate: float, max_slowdown: float, max_p50: float | None, max_p95: float | None,
    **where: Any,
) -> None:  # fmt: skip
    """Move an online endpoint's traffic to another deployment: mirrored first, then 10, 50 and 100 %.

    Before each step, and after the last one, it is sent probes, and the one before as well. Where it fails, or is too slow, the traffic
    goes back to what it was, in one change. What is under way stands in tags of the endpoint: stopped at any moment, the same command goes
    on, from any machine.

    \b
    Exit code 0 when it has all the traffic, 1 where it was taken back, 2 where a step can't be done.

    \b
    Examples:
      llama-endpoints rollout --endpoint code-llama --to green
      llama-endpoints rollout --endpoint code-llama --to green --probes 100 --over 600 --max-p95 30
      llama-endpoints rollout --endpoint code-llama --back
    """  # noqa: D301
    from llama_endpoints.endpoints.rollout_gates import Limits
    from llama_endpoints.endpoints.rollout_runner import Moving, Probing, TakenBack, samples

    if (to is None) is not back:
        raise SetupError("Give --to with the deployment that takes over, or --back; one of them.")
    moving = Moving(client_of(**where), endpoint, click.echo)
    if to is None:
        _back(moving, dry_run=dry_run)
        return
    going = moving.begin(to, steps, mirror)
    if dry_run:
        _announce(moving, going)
        return
    limits = Limits(max_error_rate, max_slowdown or None, max_p50, max_p95)
    try:
        moving.run(going, Probing(limits, samples(requests, SAMPLE), probes, over))
    except TakenBack as error:
        click.echo(str(error), err=True)
        raise SystemExit(TAKEN_BACK) from error


def _announce(moving: Any, going: Any) -> None:
    from llama_endpoints.endpoints.rollout import position

    at = position(going, moving.state())
    for number, stage in enumerate(going.stages):
        mark = "." if number <= at else ">"
        click.echo(f"{mark} step {number + 1} of {len(going.stages)}: {stage}")
    click.echo("Nothing was done.")


def _back(moving: Any, *, dry_run: bool) -> None:
    from llama_endpoints.endpoints.plan import split
    from llama_endpoints.endpoints.rollout import is_done, of_tags

    state = moving.state()
    going = of_tags(state.tags) or (of_tags(state.tags, ended=True) if is_done(state) else None)
    if going is None:
        raise SetupError(
            f"{moving.endpoint} has no roll-out to take back. Its traffic: {split(state.traffic)}."
        )
    if dry_run:
        click.echo(f"> {split(going.was)}")
        click.echo("Nothing was done.")
        return
    moving.take_back(going, "somebody asked for it")
    click.echo(f"The traffic is {split(going.was)} again.")
