"""`python -m load_tests.bench.gpu`: vLLM alone and behind our own server, on a GPU, with a random model of a published shape.

Random weights produce meaningless text, but at the speed of the published ones.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import click
from tqdm import tqdm

from llama_endpoints.devtools.servers import console_script
from llama_serving.catalog import CATALOG
from llama_serving.engine.vllm.installation import gpu_here
from load_tests.bench import vllm_peer
from load_tests.bench.measure import Sample, ratio, throughput
from load_tests.bench.vllm_peer import BARE, BEHIND, WAYS

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
CONTEXT: Final = 2048


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--model", type=click.Choice(sorted(CATALOG)), default="codellama/CodeLlama-7b-Python-hf", metavar="NAME",
              help="The model whose shape is measured; `llama-endpoints models` lists them.")  # fmt: skip
@click.option("--clients", default="1,64,256", help="Numbers of clients, with commas; one sequence each.")
@click.option("--new-tokens", default=256, help="Tokens of each answer.")
@click.option("--rounds", default=3, help="Rounds of each number of clients; the median counts.")
@click.option("--cpu", is_flag=True, help="Without a GPU, to try the script itself: nothing is compiled.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "bench-gpu", show_default=False,
              help="Folder for the random weights (13 GB for 7B) and the logs; default: build/bench-gpu.")  # fmt: skip
def main(  # noqa: PLR0913  (the options of a command)
    *, model: str, clients: str, new_tokens: int, rounds: int, cpu: bool, output: Path
) -> None:
    """Measure vLLM on this machine's GPU, alone and behind our own server, in turn, and print a table.

    LLAMA_VLLM names the Python of the environment that has vLLM; default: .venv-vllm. Nothing is downloaded.
    """
    if reason := vllm_peer.missing():
        raise click.UsageError(f"vLLM is {reason}.")
    if not (cpu or gpu_here()):
        raise click.UsageError("There is no GPU here. --cpu tries the script without one.")
    counts = [int(count) for count in clients.split(",")]
    folder = output.absolute() / model.rpartition("/")[2]
    checkpoint, packaged = folder / "model", folder / "packaged"
    _prepare(checkpoint, packaged, model)
    peer = vllm_peer.VllmPeer(sequences=max(counts), context=CONTEXT, gpu=not cpu)
    servers = {BARE: partial(peer.bare, checkpoint), BEHIND: partial(peer.behind, packaged)}
    samples: list[Sample] = []
    for name, serve in tqdm(servers.items(), file=sys.stderr, unit=" servers"):
        with serve() as url:  # one at a time: each takes its share of the GPU's memory
            samples += _measured(name, url, counts, rounds, new_tokens)
    click.echo(table(samples, counts))


def table(samples: Sequence[Sample], counts: Sequence[int]) -> str:
    """Return tokens a second as a Markdown table, with our server's share of the bare vLLM's."""
    lines = ["| clients | vLLM | behind us | share | vLLM, streaming | behind us | share |",
             "|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for count in counts:
        cells = [f"{count:,}"]
        for bare, ours in ((f"{BARE}{how}", f"{BEHIND}{how}") for how in WAYS):
            cells += [f"{_rate(samples, name, count):,.0f}" for name in (bare, ours)]
            cells.append(f"{ratio(samples, ours, bare, count) or 0:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(samples: Sequence[Sample], name: str, count: int) -> float:
    return median(s.rate for s in samples if (s.contestant, s.clients) == (name, count))


def _prepare(checkpoint: Path, packaged: Path, model: str) -> None:
    """Write the random checkpoint once, and package it each time, since the package contains the serving code."""
    write = [sys.executable, "-m", "load_tests.bench.model", str(checkpoint), model]
    subprocess.run(write, check=True, cwd=ROOT)  # noqa: S603
    package = [console_script("llama-endpoints"), "package", "--checkpoint", str(checkpoint), "--dialog", "none",
               "--infill", "none", "--overwrite", "--output", str(packaged)]  # fmt: skip
    subprocess.run(package, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def _measured(name: str, url: str, counts: Sequence[int], rounds: int, new_tokens: int) -> list[Sample]:
    """Run all rounds of one server, whole and streamed in turn."""
    asks = {f"{name}{how}": asking(url) for how, asking in WAYS.items()}
    samples, number = [], 0
    for one, ask in asks.items():
        throughput(one, ask, clients=2, requests=1, new_tokens=8, first=9_000_000)
    for _ in range(rounds):
        for count in counts:
            for one, ask in asks.items():
                samples.append(
                    throughput(one, ask, clients=count, requests=1, new_tokens=new_tokens, first=number)
                )
                number += count
    return samples


if __name__ == "__main__":
    main()
