"""What a load test sends, and what must come back: CONTRACT.md sections 1 and 3, without any server in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

NEW_TOKENS = 16
"""Few, so that a small machine answers many requests in a short run."""

SIGNATURES = (
    "def is_prime(n: int) -> bool:\n",
    "def flatten(lists: list[list[int]]) -> list[int]:\n",
    "def count_vowels(text: str) -> int:\n",
    "class Stack:\n    def push(self, item: object) -> None:\n",
)
HOLES = (
    ("def mean(values):\n    ", "\n    return total / len(values)\n"),
    ("def clamp(value, low, high):\n    return ", "\n"),
)


@dataclass(frozen=True, slots=True)
class Workload:
    """One request and its verdict.

    Attributes:
        name: what the report calls it.
        input_data: the prompts with their parameters, as they stand in `/score`'s body.
        status: the one HTTP status that is right.
        fault: what is wrong with the answer, or None.
    """

    name: str
    input_data: Mapping[str, Any]
    status: int
    fault: Callable[[object], str | None]


def completion(random: Random) -> Workload:
    """Two prompts in one request."""
    prompts = random.sample(SIGNATURES, k=2)
    return Workload("completion", _input_data(prompts, random), 200, rows_fault(2))


def infill(random: Random) -> Workload:
    """A middle between a prefix and a suffix."""
    prefix, suffix = random.choice(HOLES)
    return Workload("infill", _input_data([{"prefix": prefix, "suffix": suffix}], random), 200, rows_fault(1))


def dialog(random: Random) -> Workload:
    """A dialog of one user message, which every variant takes."""
    message = {"role": "user", "content": random.choice(SIGNATURES)}
    return Workload("dialog", _input_data([message], random), 200, output_fault)


def refused(random: Random) -> Workload:
    """A request with one bad prompt, none of which may run."""
    return Workload("refused", _input_data([random.choice(SIGNATURES), ""], random), 400, error_fault)


def _input_data(input_string: list[Any], random: Random) -> dict[str, Any]:
    parameters = {"max_new_tokens": NEW_TOKENS, "seed": random.randrange(2**31)}
    return {"input_string": input_string, "parameters": parameters}


def rows_fault(count: int) -> Callable[[object], str | None]:
    """`[{"0": "text"}, …]`, one row a prompt."""

    def fault(answer: object) -> str | None:
        if isinstance(answer, list) and len(answer) == count and all(map(_is_row, answer)):
            return None
        return f'want {count} rows like {{"0": "text"}}'

    return fault


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and row.keys() == {"0"} and isinstance(row["0"], str)


def output_fault(answer: object) -> str | None:
    """`{"output": "text"}`."""
    if isinstance(answer, dict) and answer.keys() == {"output"} and isinstance(answer["output"], str):
        return None
    return 'want {"output": "text"}'


def error_fault(answer: object) -> str | None:
    """`{"error": {"code": …, "message": …, "index": 1, …}}`: the second prompt is the bad one."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict) or not all(isinstance(error.get(key), str) for key in ("code", "message")):
        return 'want {"error": {"code": "…", "message": "…"}}'
    return None if error.get("index") == 1 else "want the index of the bad prompt, 1"
