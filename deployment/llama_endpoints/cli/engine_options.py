"""Options that `plan` and `render` have in common: what computes, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from llama_endpoints.planning.sizing import Runner, VllmOptions


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What the options say.

    Attributes:
        runner: the engine; None is the planner's choice.
        usual_tokens: of a sequence; None is the planner's assumption.
        options: of vLLM.
    """

    runner: "Runner | None"
    usual_tokens: int | None
    options: "VllmOptions"


_OPTIONS: Final = (
    click.option(
        "--engine",
        type=click.Choice(["auto", "pipeline", "vllm"]),
        default="auto",
        show_default=True,
        help="vllm: many sequences at a time, on all GPUs at once; pipeline: transformers in the scoring process, one sequence after "
        "the other. auto is vllm, and on a GPU that is too old for it the pipeline.",
    ),
    click.option(
        "--usual-tokens",
        type=int,
        help="Tokens of prompt and completion that a sequence usually has; vLLM is given as many sequences as have room so. "
        "2048 by default.",
    ),
    click.option(
        "--kv-dtype",
        type=click.Choice(["auto", "fp8"]),
        default="auto",
        show_default=True,
        help="vLLM's keys and values: the model's 16 bits, or half of that (Ada, Hopper).",
    ),
    click.option(
        "--pipeline-parallel",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Groups of GPUs that vLLM's layers are spread over; within a group each layer is cut.",
    ),
    click.option(
        "--prefill-tokens",
        type=click.IntRange(64, 1 << 20),
        help="Tokens of prompts that vLLM computes in one step; by default its own choice, 2048 or 8192.",
    ),
    click.option(
        "--speculative-tokens",
        type=click.IntRange(0, 16),
        default=0,
        show_default=True,
        help="Tokens that vLLM guesses in each step, by looking them up in the prompt.",
    ),
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets them as one argument, `engine`."""

    @wraps(command)
    def with_choice(  # noqa: PLR0913  (one argument an option)
        *, engine: str, usual_tokens: int | None, kv_dtype: str, pipeline_parallel: int, prefill_tokens: int | None,
        speculative_tokens: int, **others: Any,
    ) -> None:  # fmt: skip
        from llama_endpoints.planning.sizing import KvDtype, Runner, VllmOptions

        options = VllmOptions(pipeline_parallel, KvDtype(kv_dtype), prefill_tokens, speculative_tokens)
        runner = None if engine == "auto" else Runner(engine)
        command(engine=EngineChoice(runner, usual_tokens, options), **others)

    made: Callable[..., None] = with_choice
    for option in reversed(_OPTIONS):
        made = option(made)
    return made
