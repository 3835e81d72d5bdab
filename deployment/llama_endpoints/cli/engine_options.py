"""Options shared by `plan` and `render`: the context, the weights' type, the engine and its settings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import click

from llama_endpoints.cli.options import options as combined

if TYPE_CHECKING:
    from llama_endpoints.planning.sizing import Runner, VllmSizingOptions


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The values of the options.

    Attributes:
        runner: the engine; None lets the planner choose.
        usual_tokens: usual tokens of a sequence; None is the planner's assumption.
        options: vLLM's options.
    """

    runner: "Runner | None"
    usual_tokens: int | None
    options: "VllmSizingOptions"


_OPTIONS: Final = combined(
    click.option("--context", type=int, help="Tokens of prompt and completion. Default: the trained context."),
    click.option(
        "--dtype",
        "--precision",
        "dtype",
        type=click.Choice(["bf16", "fp16", "fp8", "int8", "int4"]),
        default="bf16",
        help="Type of the weights. fp8, int8 and int4 (AWQ, GPTQ, compressed-tensors) need a quantized checkpoint and vLLM.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "pipeline", "vllm"]),
        default="auto",
        help="vllm: many sequences at a time, on all GPUs; pipeline: transformers in the scoring process, one sequence at a time. "
        "auto: vllm, or pipeline on a GPU too old for vLLM.",
    ),
    click.option(
        "--usual-tokens",
        type=int,
        help="Usual tokens of a sequence (prompt and completion). Sets how many sequences vLLM runs at a time. "
        " Default: 2048.",
    ),
    click.option(
        "--kv-dtype",
        type=click.Choice(["auto", "fp8"]),
        default="auto",
        help="Type of vLLM's KV cache: the model's 16 bits, or fp8 (Ada and Hopper GPUs).",
    ),
    click.option(
        "--pipeline-parallel",
        type=click.IntRange(1, 64),
        default=1,
        help="Pipeline stages: groups of GPUs that share the layers. Within a group, layers are split by tensor parallelism.",
    ),
    click.option(
        "--prefill-tokens",
        type=click.IntRange(64, 1 << 20),
        help="Prompt tokens that vLLM computes in one step. Default: vLLM's own, 2048 or 8192.",
    ),
    click.option(
        "--speculative-tokens",
        type=click.IntRange(0, 16),
        default=0,
        help="Speculative tokens per step, from an n-gram lookup in the prompt.",
    ),
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options to a command, which gets `context`, `dtype`, and all others as one argument, `engine`."""

    @wraps(command)
    def with_choice(  # noqa: PLR0913  (one argument an option)
        *, engine: str, usual_tokens: int | None, kv_dtype: str, pipeline_parallel: int, prefill_tokens: int | None,
        speculative_tokens: int, **others: Any,
    ) -> None:  # fmt: skip
        from llama_endpoints.planning.sizing import KvDtype, Runner, VllmSizingOptions

        options = VllmSizingOptions(pipeline_parallel, KvDtype(kv_dtype), prefill_tokens, speculative_tokens)
        runner = None if engine == "auto" else Runner(engine)
        command(engine=EngineChoice(runner, usual_tokens, options), **others)

    return _OPTIONS(with_choice)
