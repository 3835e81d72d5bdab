"""`python -m load_tests.bench`: see `--help`."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import click
from tqdm import tqdm

from llama_endpoints.devtools.servers import console_script, own_server
from load_tests.bench import busy, contestants, crowd, front, jobs, limit, report, scenarios, vllm_peer
from load_tests.bench.measure import PLAIN, Sample, throughput

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
VLLM: Final = vllm_peer.VllmPeer()
WEIGHT_BYTES: Final = 2 * (134_105_856 - 32000 * 768)
"""Weights read per step: all but the embedding, of which a token reads one row."""
KV_BYTES_PER_TOKEN: Final = 2 * 12 * 768 * 2
CONTEXT: Final = 60
"""The average number of tokens that a row of this workload attends to."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clients", default="1,4,16", show_default=True, help="Numbers of clients, with commas.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; in each, everybody is measured once.")
@click.option("--new-tokens", default=64, show_default=True, help="Tokens of each answer.")
@click.option("--requests", default=2, show_default=True, help="Requests of each client in a round.")
@click.option("--peer", "urls", multiple=True, metavar="NAME=URL",
              help="An OpenAI-compatible server that is up, such as llama=http://127.0.0.1:8080/v1; may be repeated.")  # fmt: skip
@click.option(
    "--only",
    multiple=True,
    metavar="WORD",
    help="Only contestants with this word in their name; may be repeated.",
)
@click.option(
    "--scenarios/--no-scenarios",
    "also",
    default=True,
    help="Reuse, stall, memory, busy neighbours, a batch job, a crowd and the front's ceiling as well.",
)
@click.option(
    "--backends",
    default="native,native int8,native int4,portable",
    show_default=True,
    help="Backends to measure alone.",
)
@click.option("--rows", default=1000, show_default=True, help="Rows of the batch job.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "bench", show_default=False,
              help="Folder for bench.json, bench.png and the model; default: build/bench.")  # fmt: skip
def main(  # noqa: PLR0913  (the options of a command)
    *, clients: str, rounds: int, new_tokens: int, requests: int, urls: Sequence[str], only: Sequence[str], also: bool,
    backends: str, rows: int, output: Path,
) -> None:  # fmt: skip
    """Measure our engines and servers beside the peers, in turn, on a random model of 134 M parameters.

    The peers are those installed by `make peers`, and those given with --peer. All of them run during the whole benchmark and are
    queried one at a time, so that other load on the machine affects all alike.
    """
    counts = [int(count) for count in clients.split(",")]
    output = output.absolute()  # peers run in other folders
    checkpoint = output / "model"
    _python("load_tests.bench.model", str(checkpoint))
    chosen = [c for c in _all(checkpoint, output, urls) if not only or any(word in c.name for word in only)]
    samples = _measure(chosen, counts, rounds=rounds, new_tokens=new_tokens, requests=requests)
    speed = float(_python("load_tests.bench.limit"))
    limits = {
        count: limit.tokens_per_second(
            speed, weight_bytes=WEIGHT_BYTES, kv_bytes=KV_BYTES_PER_TOKEN * CONTEXT, rows=count
        )
        for count in counts
    }
    others: dict[str, Any] = {"bytes_per_second": speed}
    if also:
        others |= _scenarios(checkpoint, rounds, backends.split(","))
        others |= _jobs(checkpoint, output, rounds, rows) | _crowds(output / "packaged", rounds)
        others |= _front(output) | _vllm_jobs(checkpoint, output, rounds, rows)
    report.write(output, samples, limits, others)
    click.echo(report.table(samples, limits))
    click.echo(f"memory: {speed / 1e9:.1f} GB/s; all samples in {output / 'bench.json'}")


def _all(checkpoint: Path, output: Path, urls: Sequence[str]) -> list[contestants.Contestant]:
    packaged = output / "packaged"
    # Packaged each time, since the package contains the serving code.
    command = [console_script("llama-endpoints"), "package", "--checkpoint", str(checkpoint), "--dialog", "none",
               "--infill", "none", "--overwrite", "--output", str(packaged)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    everybody = [contestants.our_engine(checkpoint), *contestants.our_carriers(packaged)]
    reason = contestants.missing()
    for peer in contestants.peers(checkpoint):
        if reason:
            click.echo(f"skipped: {peer.name}, {reason}", err=True)
        else:
            everybody.append(peer)
    if reason := vllm_peer.missing():
        click.echo(f"skipped: vLLM, bare and behind us, {reason}", err=True)
    else:
        everybody += VLLM.contestants(checkpoint, packaged)
    for given in urls:
        name, _, url = given.partition("=")
        if not url:
            raise click.UsageError(f"--peer {given} has no URL: give NAME=URL.")
        everybody.append(contestants.at(name, url))
    return everybody


def _measure(
    chosen: Sequence[contestants.Contestant],
    counts: Sequence[int],
    *,
    rounds: int,
    new_tokens: int,
    requests: int,
) -> list[Sample]:
    samples: list[Sample] = []
    with (
        ExitStack() as stack,
        tqdm(total=len(chosen) * (1 + rounds * len(counts)), file=sys.stderr, unit=" runs") as bar,
    ):
        asks = []
        for contestant in chosen:
            bar.set_description(f"start {contestant.name}")
            ask = stack.enter_context(contestant.serve())
            throughput(contestant.name, ask, clients=2, requests=1, new_tokens=8, first=9_000_000)
            asks.append((contestant.name, ask))
            bar.update()
        number = 0
        for _ in range(rounds):
            for count in counts:
                for name, ask in asks:
                    bar.set_description(f"{name}, {count} clients")
                    samples.append(
                        throughput(
                            name, ask, clients=count, requests=requests, new_tokens=new_tokens, first=number
                        )
                    )
                    number += count * requests
                    bar.update()
    return samples


def _scenarios(checkpoint: Path, rounds: int, backends: Sequence[str]) -> dict[str, Any]:
    results = {name: _backend(checkpoint, rounds, name) for name in backends}
    beside = busy.measure(checkpoint, rounds)
    for line in busy.told(beside):
        click.echo(line)
    memory = scenarios.memory(checkpoint)
    click.echo(
        f"memory: {memory.serving >> 20} MiB serving, {memory.imported >> 20} MiB with the libraries alone"
    )
    return {"backends": results, "memory": asdict(memory), "busy": [asdict(one) for one in beside]}


def _backend(checkpoint: Path, rounds: int, name: str) -> dict[str, Any]:
    """Measure one backend alone, in its own process."""
    results = scenarios.elsewhere(checkpoint, rounds, name)
    alone = [Sample(**one) for one in results["alone"]]
    for count in sorted({sample.clients for sample in alone}):
        rates = [sample.rate for sample in alone if sample.clients == count]
        click.echo(f"{name}, {count} clients: {median(rates):.1f} tokens/s")
    for one in (scenarios.AtLength(**one) for one in results["lengths"]):
        click.echo(f"{name}, {one.clients} sequences of {one.context:,} tokens: {one.rate:.1f} tokens/s")
    for reuse in (scenarios.Reuse(**one) for one in results["reuse"]):
        click.echo(
            f"{name}, first token, 1,000 tokens shared: {reuse.shared:.2f} s, not shared: {reuse.separate:.2f} s "
            f"({reuse.ratio:.2f})"
        )
    for stall in (scenarios.Stall(**one) for one in results["stall"]):
        click.echo(
            f"{name}, an 8,000-token prompt among 8: worst gap {stall.worst * 1e3:.0f} ms, median "
            f"{stall.median_before * 1e3:.0f} ms ({stall.ratio:.1f}), its first token after {stall.first_token:.1f} s"
        )
    start = scenarios.cold_start(checkpoint, name)
    click.echo(f"{name}, from nothing to the first token: {start.cold:.1f} s, again: {start.warm:.1f} s")
    return {**results, "start": asdict(start)}


def _crowds(model: Path, rounds: int) -> dict[str, Any]:
    """Send a thousand clients to our own server, ten times its capacity."""
    with own_server(model, env=crowd.CAPACITY) as server:
        came = [
            crowd.once(server.url, crowd.CLIENTS, first=number * crowd.CLIENTS)
            for number in tqdm(range(rounds), desc="crowd", file=sys.stderr)
        ]
    for one in came:
        click.echo(crowd.told(one))
    return {"crowds": [asdict(one) for one in came]}


def _vllm_jobs(checkpoint: Path, output: Path, rounds: int, number: int) -> dict[str, Any]:
    """Compare a batch job of vLLM's `run-batch` with our command in front of the same vLLM, in turn."""
    if reason := vllm_peer.missing():
        click.echo(f"skipped: a batch job against vLLM's run-batch, {reason}", err=True)
        return {}
    work = jobs.write(output / "rows.jsonl", number)
    options, env = VLLM.options(checkpoint), VLLM.environment()
    pairs = []
    for _ in tqdm(range(rounds), desc="batch job, vLLM", file=sys.stderr):
        ours = jobs.by_the_command(output / "packaged", work, output / "records.jsonl", env=VLLM.behind_us())
        pairs.append({"ours": ours, "run_batch": jobs.by_run_batch(vllm_peer.PYTHON, options, work, env=env)})
    ratios = [pair["run_batch"] / pair["ours"] for pair in pairs]
    click.echo(f"a batch job of {number:,} rows in front of vLLM: {median(ratios):.2f} times its run-batch")
    return {"vllm_job": {"rows": number, "seconds": pairs}}


def _front(output: Path) -> dict[str, Any]:
    """Measure our servers in front of a stub."""
    model = output / "nano"
    command = [console_script("llama-endpoints"), "package", "--checkpoint", "nano", "--overwrite", "--output", str(model)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    found = front.ceilings(model)
    for one in found:
        click.echo(f"in front of a stub, {front.SEQUENCES} sequences, {one.front}: {one.rate:,.0f} tokens/s")
    return {"front": [asdict(one) for one in found]}


def _jobs(checkpoint: Path, output: Path, rounds: int, number: int) -> dict[str, Any]:
    """Compare a batch job of our command with a loop around transformers' pipeline, in turn."""
    reason = contestants.missing()
    if reason:
        click.echo(f"skipped: a batch job against a pipeline's loop, {reason}", err=True)
        return {}
    work, python = jobs.write(output / "rows.jsonl", number), contestants.PEERS / "bin" / "python"
    pairs = []
    for _ in tqdm(range(rounds), desc="batch job", file=sys.stderr):
        ours = jobs.by_the_command(output / "packaged", work, output / "records.jsonl", env=PLAIN)
        pairs.append({"ours": ours, "pipeline": jobs.by_a_loop(python, checkpoint, work)})
    ratios = [pair["pipeline"] / pair["ours"] for pair in pairs]
    rates = [number / pair["ours"] for pair in pairs]
    click.echo(
        f"a batch job of {number:,} rows: {median(rates):.2f} rows/s, {median(ratios):.2f} times a pipeline's loop"
    )
    return {"job": {"rows": number, "seconds": pairs}}


def _python(module: str, *arguments: str) -> str:
    """Run a module in its own process: torch must have one thread here, the engine's."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout  # noqa: S603


if __name__ == "__main__":
    main()
