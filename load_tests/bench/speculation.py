"""Measure speculation: the same requests with and without it, in turn, each answer compared.

    python -m load_tests.bench.speculation [CHECKPOINT] [--guesses 15] [--rounds 5]

An edit's prompt is a file of Python's standard library followed by the file's own beginning, so that a model that copies goes
on with the file. A plain prompt is the head of a function. The model must be a trained one (default: nano): a random one
copies nothing.
"""

import random
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click

from llama_endpoints.nano import FOLDER
from llama_serving.engine.base import Engine
from llama_serving.engine.batching.factory import start
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.settings import Settings

CLIENTS: Final = (1, 4, 16)
NEW: Final = 96
FILE: Final = 1500
BEGINNING: Final = 300
"""Characters of a file, and of its beginning that is repeated."""
BOS: Final = 1

Prompts = Callable[[int], list[int]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One kind of prompt at one temperature and number of clients.

    Attributes:
        ratios: seconds without speculation, in terms of those with it, of each round.
        guessed: tokens; `accepted` of them were right.
    """

    ratios: tuple[float, ...]
    guessed: int
    accepted: int


def prompts(tokenizer: Tokenizer) -> dict[str, Prompts]:
    """Return the prompts of each kind, by number."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(library.glob("*.py"))]
    long = [text for text in texts if len(text) > 2 * FILE]
    random.Random(0).shuffle(long)  # noqa: S311

    def edit(number: int) -> list[int]:
        text = long[number % len(long)][BEGINNING : BEGINNING + FILE]
        return [BOS, *tokenizer.encode(f"{text}\n\n# The same once more:\n{text[:BEGINNING]}")]

    def plain(number: int) -> list[int]:
        return [BOS, *tokenizer.encode(f"def function_{number}(values, other):\n    ")]

    return {"edit": edit, "plain": plain}


def measure(
    engines: Sequence[Engine], prompt: Prompts, *, clients: int, temperature: float, rounds: int
) -> Measured:
    """Measure two engines, without and with speculation.

    Raises:
        AssertionError: an answer differs.
    """
    before = engines[1].stats()
    ratios = []
    for number in range(rounds):
        asked = [prompt(number * clients + client) for client in range(clients)]
        for engine in engines:  # (so that prompts are in the cache, and tokens are all that is measured)
            _answers(engine, asked, new=1, temperature=temperature)
        found = {}
        for engine in engines if number % 2 else engines[::-1]:
            began = time.perf_counter()
            answers = _answers(engine, asked, new=NEW, temperature=temperature)
            found[engine] = time.perf_counter() - began, answers
        (plain_s, expected), (seconds, answers) = (found[engine] for engine in engines)
        if answers != expected:
            raise AssertionError("speculation changed an answer")
        ratios.append(plain_s / seconds)
    after = engines[1].stats()
    return Measured(
        tuple(ratios),
        after.guessed_tokens - before.guessed_tokens,
        after.accepted_tokens - before.accepted_tokens,
    )


def _answers(engine: Engine, asked: Sequence[list[int]], *, new: int, temperature: float) -> list[list[int]]:
    handles = [
        engine.submit(ids, SamplingParams(max_new_tokens=new, temperature=temperature, seed=seed))
        for seed, ids in enumerate(asked)
    ]
    return [[token.id for token in handle] for handle in handles]


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path), default=FOLDER)
@click.option("--guesses", default=15, show_default=True, help="Most guesses of a sequence in a step.")
@click.option("--rounds", default=5, show_default=True)
def main(checkpoint: Path, guesses: int, rounds: int) -> None:
    """Print a line for each kind, temperature and number of clients."""
    engines = [
        start(
            checkpoint,
            dtype="bfloat16",
            context=2048,
            settings=Settings(max_num_seqs=max(CLIENTS), speculative_tokens=most, kv_memory=1 << 30),
        )
        for most in (0, guesses)
    ]
    stats = engines[0].stats()
    click.echo(f"{stats.backend} {stats.instructions}; as fast as without, in the median of {rounds} rounds:")
    for kind, prompt in prompts(Tokenizer.from_folder(checkpoint)).items():
        for temperature in (0.0, 1.0):
            for clients in CLIENTS:
                found = measure(engines, prompt, clients=clients, temperature=temperature, rounds=rounds)
                click.echo(
                    f"{kind}, temperature {temperature:g}, {clients:2} clients: {median(found.ratios):.2f} "
                    f"({min(found.ratios):.2f} to {max(found.ratios):.2f}), {found.accepted} of {found.guessed} guesses right"
                )
    for engine in engines:
        engine.close()


if __name__ == "__main__":
    main()
