"""Measure what a constraint costs: a token at one client, beside the same engine without one, in turn; and its compilation.

python -m load_tests.bench.constraints [CHECKPOINT] [--rounds 7]
"""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import click

from llama_serving.constraints import constraint
from llama_serving.constraints.compiler import Compiled, Compiler
from llama_serving.constraints.constraint import Constraint
from llama_serving.engine.base import Engine
from llama_serving.engine.batching.checkpoint import read_config
from llama_serving.engine.batching.factory import start
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.settings import Settings
from load_tests.bench.measure import NO_GUESSES

NEW: Final = 96
PROMPT: Final = tuple(range(3, 23))
LINES: Final = 200
LONG: Final = {"type": "array", "minItems": 500, "items": {"type": "string", "maxLength": 30}}
KINDS: Final = {
    "pattern": Constraint("regex", r"[a-zA-Z0-9 _.,()\n]{3000,}"),
    "schema": constraint.of_schema(LONG, "schema"),
}
"""None of them lets a text end within `NEW` tokens."""


def schema_of(lines: int, seed: int) -> dict[str, Any]:
    """Return a random schema that takes so many lines, as `json.dumps` indents it."""
    rng = random.Random(seed)  # noqa: S311
    kinds: tuple[Any, ...] = (
        {"type": "string", "maxLength": 40}, {"type": "integer", "minimum": 0}, {"enum": ["a", "b", "c"]}, {"type": "boolean"},
    )  # fmt: skip
    properties: dict[str, Any] = {}
    made: dict[str, Any] = {}
    while len(json.dumps(made, indent=2).splitlines()) < lines:
        properties[f"field_{len(properties)}"] = rng.choice(kinds)
        made = {
            "type": "object", "properties": properties, "required": list(properties)[::2], "additionalProperties": False,
        }  # fmt: skip
    return made


def seconds(engine: Engine, compiled: Compiled | None, seed: int) -> float:
    """Return the seconds that `NEW` tokens take, the prompt apart."""
    params = SamplingParams(
        max_new_tokens=NEW, temperature=1.0, seed=seed, stop_ids=frozenset({2}), min_new_tokens=NEW
    )
    matcher = None if compiled is None else compiled.matcher(params.stop_ids)
    handle = engine.submit(PROMPT, params, matcher=matcher)
    tokens = list(handle)
    if len(tokens) != NEW or handle.first_at is None:
        raise AssertionError(f"{len(tokens)} tokens came")
    return handle.last_at - handle.first_at


def costs(engine: Engine, compiled: Compiled, rounds: int) -> Sequence[float]:
    """Return the share by which a token takes longer, of each round."""
    found = []
    for number in range(rounds):
        both: dict[bool, float] = {}
        for held in (False, True) if number % 2 else (True, False):
            both[held] = seconds(engine, compiled if held else None, number)
        found.append(both[True] / both[False] - 1)
    return found


def compile_ms(pieces: Sequence[bytes], rounds: int) -> Sequence[float]:
    """Return the milliseconds that a schema of `LINES` lines takes, the tokenizer's own preparation apart."""
    compiler, found = Compiler(pieces), []
    compiler.compile(KINDS["schema"], "schema")
    for number in range(rounds):
        asked = constraint.of_schema(schema_of(LINES, number), "schema")
        began = time.perf_counter()
        compiler.compile(asked, "schema")
        found.append((time.perf_counter() - began) * 1e3)
    return found


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=7, show_default=True)
def main(checkpoint: Path, rounds: int) -> None:
    """Print a line for each kind of constraint, and one for the compilation."""
    vocab = read_config(checkpoint).vocab
    pieces = Tokenizer.from_folder(checkpoint).pieces(vocab)
    compiler = Compiler(pieces)
    engine = start(
        checkpoint,
        dtype="bfloat16",
        context=2048,
        settings=Settings(speculative_tokens=NO_GUESSES, kv_memory=1 << 30),
    )
    try:
        stats = engine.stats()
        click.echo(f"{stats.backend} {stats.instructions}, vocabulary {vocab}, medians of {rounds} rounds:")
        for kind, asked in KINDS.items():
            found = costs(engine, compiler.compile(asked, kind), rounds)
            click.echo(f"{kind}: {median(found):+.1%} a token ({min(found):+.1%} to {max(found):+.1%})")
    finally:
        engine.close()
    found = compile_ms(pieces, rounds)
    click.echo(f"a schema of {LINES} lines: {median(found):.0f} ms ({min(found):.0f} to {max(found):.0f})")


if __name__ == "__main__":
    main()
