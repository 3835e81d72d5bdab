"""Steps of several backends, in turn in one process, so that other load on the machine affects all alike.

`python -m load_tests.bench.steps CHECKPOINT` prints the median milliseconds of a step with 1, 4 and 16 sequences that generate, and of a
prompt of 512 tokens, and the share of the memory's bandwidth at which one sequence reads the weights.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import click

from llama_serving.engine.batching.backends.base import Rows
from llama_serving.engine.batching.backends.selection import BackendRequest, select_backend
from llama_serving.engine.batching.checkpoint import CheckpointWeights, read_config
from load_tests.bench.limit import bandwidth
from load_tests.bench.scenarios import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_serving.engine.batching.backends.base import Backend

GENERATING: Final = (1, 4, 16)
START: Final = 48
"""Tokens before the one that is generated."""
PROMPT: Final = 512
REPETITIONS: Final = 8


def batches(block_tokens: int) -> list[list[Rows]]:
    """Return one step for each number of sequences, and that of the prompt."""
    each = START // block_tokens + 1

    def row(number: int) -> Rows:
        blocks = range(1 + number * each, 1 + (number + 1) * each)
        return Rows((5 + number,), START, blocks, prefill=False, num_logits=1)

    prompt = Rows(range(PROMPT), 0, range(1, 1 + PROMPT // block_tokens), prefill=True, num_logits=1)
    return [*([row(number) for number in range(count)] for count in GENERATING), [prompt]]


def seconds(backend: Backend, batch: Sequence[Rows], times: int) -> float:
    """Return the median of a step, after one that is not measured."""
    backend.forward(batch)
    found = []
    for _ in range(times):
        began = time.perf_counter()
        backend.forward(batch)
        found.append(time.perf_counter() - began)
    return median(found)


def loaded(checkpoint: Path, name: str) -> Backend:
    """Return the backend of that name in `BACKENDS`.

    Raises:
        SetupError: this machine does not have it.
    """
    backend, quantization, instructions = BACKENDS[name]
    config = read_config(checkpoint)
    selection = select_backend(config, BackendRequest("bfloat16", backend, quantization, instructions))
    tokens = max(PROMPT, (START + selection.block_tokens) * max(GENERATING))
    return selection.load(config, CheckpointWeights(checkpoint), lambda _: 1 + tokens // selection.block_tokens)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--backends", default="portable,native", show_default=True, help=f"Of {', '.join(BACKENDS)}.")
@click.option("--rounds", default=7, show_default=True, help="Rounds; in each, everybody is measured once.")
@click.option("--threads", type=int, help="Of torch.")
def main(checkpoint: Path, *, backends: str, rounds: int, threads: int | None) -> None:
    """Measure steps of backends in turn."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    each = {name: loaded(checkpoint, name) for name in backends.split(",")}
    config = read_config(checkpoint)
    found: dict[str, list[list[float]]] = {name: [] for name in each}
    speeds = []
    for _ in range(rounds):
        speeds.append(bandwidth(2))
        for name, backend in each.items():
            steps = batches(backend.block_tokens)
            found[name].append(
                [seconds(backend, step, REPETITIONS if step is not steps[-1] else 1) for step in steps]
            )
    click.echo(f"memory: {median(speeds) / 1e9:.1f} GB/s (median), {max(speeds) / 1e9:.1f} (best)")
    for name, times in found.items():
        middle = [median(column) for column in zip(*times, strict=True)]
        size = {"none": 2.0, "int8": 1.0, "int4": 0.5625}[BACKENDS[name][1]] * config.weights_per_token
        shares = [size / one[0] / speed for one, speed in zip(times, speeds, strict=True)]
        click.echo(
            f"{name:24}"
            + "  ".join(f"{ms * 1e3:8.2f}" for ms in middle)
            + f" ms; {median(shares):.2f} of the bandwidth"
        )


if __name__ == "__main__":
    main()
