"""Prove what is promised of texts, on thousands of random requests to the embedded model.

    python -m load_tests.proofs guesses --requests 10000
    python -m load_tests.proofs constraints --requests 10000

`guesses` sends the same seeded requests to engines with and without speculation: texts, ids and log-probabilities must be equal.
`constraints` asks for texts held to random schemas and patterns until so many have ended by themselves: each must be valid.
Both are random by `--seed`, and exit with 1 if anything is not as promised.
"""

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import click
import jsonschema
from tqdm import tqdm

from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from llama_serving.contract import openai
from llama_serving.contract.request import Generation
from llama_serving.engine.batching.speculation import CHEAPEST, StepCost
from llama_serving.errors import BadRequest
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings

TOGETHER: Final = 8
"""Requests in flight."""
PROMPTS: Final = (
    "def add(a, b):\n    return",
    "x = [1, 2, 3]\ny = [1, 2, 3]\nz =",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n\n    def pop(self):\n        ",
    "for i in range(10):\n    print(i)\nfor j in range(10):\n    ",
    '"""Texts with é, 🦙 and tabs."""\n\tname = "é🦙"\n\tother = ',
)
WORDS: Final = ("name", "é", "size", "a b", "/", "items", "🦙", "x")

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Constrained:
    """A request for a text that is held, and how to tell whether it is."""

    body: Body
    holds: Callable[[str], bool]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Prove what is promised of texts, on thousands of random requests to the embedded model."""


@main.command()
@click.option("--requests", default=10_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def guesses(requests: int, seed: int) -> None:
    """Compare answers with and without speculation, which guesses as if it cost nothing."""
    StepCost.row = _cheapest  # type: ignore[method-assign,assignment]
    bodies = [_seeded(random.Random(f"{seed}/{number}")) for number in range(requests)]  # noqa: S311
    found = []
    for tokens in ("0", "15"):
        with closing(_service(LLAMA_SPECULATIVE_TOKENS=tokens)) as service:
            found.append(list(_answers(service, bodies)))
            stats = service.engine.stats()
    different = [number for number, (plain, guessed) in enumerate(zip(*found, strict=True)) if plain != guessed]
    click.echo(f"{requests} requests, {stats.guessed_tokens} tokens guessed, {stats.accepted_tokens} accepted: "
               f"{len(different)} answers differ")  # fmt: skip
    for number in different[:3]:
        click.echo(json.dumps(bodies[number]))
    sys.exit(bool(different) or not stats.accepted_tokens)


@main.command()
@click.option("--requests", default=10_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def constraints(requests: int, seed: int) -> None:
    """Check texts that are held to random schemas and patterns."""
    counts: Counter[str] = Counter()
    with closing(_service()) as service, tqdm(total=requests, unit="text") as bar:
        for block in _blocks(seed):
            for asked, answer in zip(block, _answers(service, [one.body for one in block]), strict=True):
                kind = _verdict(asked, answer)
                counts[kind] += 1
                bar.update(kind == "valid")
                if kind == "invalid":
                    click.echo(f"invalid: {json.dumps(asked.body)}")
            if counts["valid"] + counts["invalid"] >= requests:
                break
    click.echo(", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))
    sys.exit(bool(counts["invalid"]))


def _cheapest(_: StepCost, __: int) -> float:
    return CHEAPEST


def _service(**settings: str) -> Service:
    given = {"LLAMA_DTYPE": "float32", "LLAMA_MAX_NUM_SEQS": str(TOGETHER), **settings}
    return Service.start(ModelFiles(FOLDER, NANO), Settings.from_environment(given))


def _answers(service: Service, bodies: Sequence[Body]) -> Iterator[Generation | BadRequest]:
    """Yield the answers in order, without the times that they took."""

    def one(body: Body) -> Generation | BadRequest:
        try:
            ((generation,),) = service.generate(openai.parse(body))
        except BadRequest as error:
            return error
        return generation

    with ThreadPoolExecutor(TOGETHER) as pool:
        yield from pool.map(one, bodies)


def _seeded(rng: random.Random) -> Body:
    body: Body = {
        "prompt": rng.choice(PROMPTS) * rng.choice((1, 3, 4)),
        "seed": rng.randrange(2**63),
        "max_tokens": rng.randint(1, 30),
        "temperature": rng.choice((0, 0, 0.2, 0.7, 1.5)),
    }
    for name, values in {
        "top_p": (0.5, 0.95),
        "top_k": (3, 50),
        "repetition_penalty": (0.8, 1.2),
        "presence_penalty": (-0.5, 1),
        "frequency_penalty": (-0.5, 0.5),
        "min_tokens": (1,),
        "logprobs": (0, 3),
        "prompt_logprobs": (1,),
        "stop": ("\n", ["):", "self"]),
        "logit_bias": ({"13": -5}, {"100": 2}),
        "response_format": ({"type": "json_object"},),
    }.items():
        if rng.random() < 0.1:
            body[name] = rng.choice(values)
    return body


def _blocks(seed: int) -> Iterator[list[Constrained]]:
    number = 0
    while True:
        yield [_constrained(random.Random(f"{seed}/{number + n}")) for n in range(8 * TOGETHER)]  # noqa: S311
        number += 8 * TOGETHER


def _constrained(rng: random.Random) -> Constrained:
    body: Body = {
        "prompt": rng.choice(PROMPTS),
        "seed": rng.randrange(2**63),
        "max_tokens": 160,
        "temperature": rng.choice((0, 0.5, 1.0)),
    }
    if rng.random() < 0.3:
        pattern = _pattern(rng)
        return Constrained(
            {**body, "structured_outputs": {"regex": pattern}},
            lambda text: re.fullmatch(pattern, text) is not None,
        )
    schema = _schema(rng, depth=2)
    checker = jsonschema.Draft202012Validator(schema)
    asked = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    return Constrained({**body, "response_format": asked}, lambda text: checker.is_valid(json.loads(text)))


def _schema(rng: random.Random, depth: int) -> Any:
    """Return a random schema whose values are short."""
    if not depth or rng.random() < 0.5:
        return rng.choice(LEAVES)(rng)
    inner = [_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    match rng.choice(("object", "object", "array", "tuple", "any")):
        case "object":
            names = rng.sample(WORDS, len(inner))
            return {
                "type": "object",
                "properties": dict(zip(names, inner, strict=True)),
                "required": rng.sample(names, rng.randint(0, len(names))),
                "additionalProperties": False,
            }
        case "array":
            return {"type": "array", "items": inner[0], "minItems": rng.randint(0, 2), "maxItems": 3}
        case "tuple":
            return {"type": "array", "prefixItems": inner, "items": False, "minItems": len(inner)}
        case _:
            return {"anyOf": inner}


def _string(rng: random.Random) -> Any:
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)}


def _integer(rng: random.Random) -> Any:
    low = rng.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}


def _number(rng: random.Random) -> Any:
    low = rng.randint(-10, 10) / 4
    return {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 40) / 8}


LEAVES: Final[tuple[Callable[[random.Random], Any], ...]] = (
    _string,
    _integer,
    _number,
    lambda rng: {"type": "string", "pattern": f"^(?:{_pattern(rng)})$"},
    lambda rng: {"enum": rng.sample((*WORDS, 1, -2.5, None, True, ["é"], {"a": 1}), rng.randint(1, 4))},
    lambda rng: {"const": rng.choice((*WORDS, 0, None, {"x": ["y"]}))},
    lambda _: {"type": ["boolean", "null"]},
)


def _pattern(rng: random.Random) -> str:
    parts = ("[a-z]{1,6}", "\\d{2,4}", "é+?", "(?:ab|cd)", '[^\\s"]{1,3}', "-", "\\w{0,4}", "x?", "[A-F0-9]{4}")
    return "".join(rng.choices(parts, k=rng.randint(1, 5)))


def _verdict(asked: Constrained, answer: Generation | BadRequest) -> str:
    if isinstance(answer, BadRequest):
        return "refused"
    if answer.finish_reason != "stop":
        return f"ended by {answer.finish_reason}"
    try:
        return "valid" if asked.holds(answer.text) else "invalid"
    except ValueError:
        return "invalid"


if __name__ == "__main__":
    main()
