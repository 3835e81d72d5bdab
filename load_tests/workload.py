"""What a load test sends, and how often. Read from a YAML file such as `workload.yml`."""

from __future__ import annotations

import bisect
import importlib
import inspect
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import jsonschema
import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

Kind = Literal["completion", "infill", "dialog"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
DEFAULT: Final = Path(__file__).with_name("workload.yml")
SOURCES: Final = ("argparse", "ast", "csv", "json.decoder", "textwrap", "tokenize", "zipfile")
"""Standard library modules whose text the prompts are cut from."""

_SHARE: Final = {"type": "number", "minimum": 0, "maximum": 1}
_LENGTHS: Final = {
    "type": "object",
    "properties": {
        "least": {"type": "integer", "minimum": 1},
        "most": {"type": "integer", "minimum": 1, "maximum": 100_000},
    },
    "required": ["least", "most"],
    "additionalProperties": False,
}
_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "prompt_characters": _LENGTHS,
        "new_tokens": _LENGTHS,
        "prompts": _LENGTHS,
        "requests_per_second": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "kinds": {
            "type": "object",
            "properties": {kind: {"type": "number", "minimum": 0} for kind in KINDS},
            "additionalProperties": False,
        },
        "stream": _SHARE,
        "cancel": _SHARE,
        "bad": _SHARE,
    },
    "additionalProperties": False,
}


class WorkloadError(ValueError):
    """A workload file is invalid. The message names the field."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """A range, both ends included."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class RequestMix:
    """What a load test sends.

    Attributes:
        prompt_characters: characters per prompt, drawn log-uniformly.
        new_tokens: the limit of tokens per answer, drawn uniformly.
        prompts: prompts of a request that does not stream.
        requests_per_second: of all users together, as a Poisson process; None: each user sends its next request after its answer.
        kinds: weights of the kinds of inputs.
        stream: share of requests that stream.
        cancel: share of streams that the client cancels after the first piece.
        bad: share of requests that must be refused.
    """

    prompt_characters: Lengths = Lengths(40, 400)
    new_tokens: Lengths = Lengths(8, 32)
    prompts: Lengths = Lengths(1, 2)
    requests_per_second: float | None = None
    kinds: tuple[tuple[Kind, float], ...] = (("completion", 3.0), ("infill", 1.0), ("dialog", 1.0))
    stream: float = 0.5
    cancel: float = 0.05
    bad: float = 0.05

    @classmethod
    def read(cls, path: Path) -> RequestMix:
        """Read a YAML file; missing fields get their defaults.

        Raises:
            WorkloadError: it cannot be read, or a field is unknown or out of range.
        """
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
            jsonschema.validate(given, _SCHEMA, cls=jsonschema.Draft202012Validator)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise WorkloadError(f"{path} cannot be read as YAML: {error}") from None
        except jsonschema.ValidationError as error:
            field = ".".join(map(str, error.absolute_path)) or "the file"
            raise WorkloadError(f"{path}: {field}: {error.message}. {DEFAULT} shows all fields.") from None
        return cls._of(path, given)

    @classmethod
    def _of(cls, path: Path, given: Mapping[str, Any]) -> RequestMix:
        fields: dict[str, Any] = dict(given)
        for name in ("prompt_characters", "new_tokens", "prompts"):
            if name in fields:
                fields[name] = lengths = Lengths(**fields[name])
                if lengths.least > lengths.most:
                    raise WorkloadError(f"{path}: {name}: least is above most.")
        if "kinds" in fields:
            fields["kinds"] = tuple(fields["kinds"].items())
            if not any(weight for _, weight in fields["kinds"]):
                raise WorkloadError(f"{path}: kinds: no weight is above 0.")
        return cls(**fields)

    def weights(self, kinds: Sequence[Kind]) -> list[float]:
        """Return the weights of some kinds; all 0 if the workload has none of them."""
        return [dict(self.kinds).get(kind, 0.0) for kind in kinds]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, independent of protocols.

    Attributes:
        kind: the kind of inputs.
        texts: the prompts; for infilling see `holes`.
        new_tokens: the limit of tokens per answer.
        seed: seed for sampling.
        stream: whether the answer is streamed.
        cancelled: whether the client cancels it after the first piece.
        bad: whether it must be refused.
    """

    kind: Kind
    texts: tuple[str, ...]
    new_tokens: int
    seed: int
    stream: bool
    cancelled: bool
    bad: bool

    @property
    def holes(self) -> list[tuple[str, str]]:
        """The texts without the middle quarter: what precedes it, and what follows it."""
        return [_without_middle(text) for text in self.texts]


def draw(workload: RequestMix, random: Random, kinds: Sequence[Kind], *, streams: bool) -> Asked:
    """Draw the next request.

    Args:
        workload: what to draw from.
        random: the user's random numbers.
        kinds: the kinds that the protocol takes; the workload has a weight for at least one.
        streams: whether the protocol can stream.
    """
    (kind,) = random.choices(kinds, workload.weights(kinds))
    stream = streams and random.random() < workload.stream
    count = 1 if stream or kind == "dialog" else _evenly(random, workload.prompts)
    return Asked(
        kind,
        texts=tuple(_text(random, _doubling(random, workload.prompt_characters)) for _ in range(count)),
        new_tokens=_evenly(random, workload.new_tokens),
        seed=random.randrange(2**31),
        stream=stream,
        cancelled=stream and random.random() < workload.cancel,
        bad=random.random() < workload.bad,
    )


def _evenly(random: Random, lengths: Lengths) -> int:
    return random.randint(lengths.least, lengths.most)


def _doubling(random: Random, lengths: Lengths) -> int:
    drawn = math.exp(random.uniform(math.log(lengths.least), math.log(lengths.most)))
    return min(max(round(drawn), lengths.least), lengths.most)


@cache
def _code() -> tuple[str, list[int]]:
    """Return Python code, and the offsets of its definitions."""
    text = "\n".join(inspect.getsource(importlib.import_module(name)) for name in SOURCES)
    lines = text.splitlines(keepends=True)
    starts, at = [], 0
    for line in lines:
        if line.lstrip().startswith(("def ", "class ")):
            starts.append(at)
        at += len(line)
    return text, starts


def _text(random: Random, characters: int) -> str:
    """Return this many characters of code, from the start of a definition."""
    text, starts = _code()
    last = max(1, bisect.bisect_right(starts, len(text) - characters))
    start = starts[random.randrange(last)]
    return text[start : start + characters]


def _without_middle(text: str) -> tuple[str, str]:
    return text[: (len(text) + 1) // 2], text[3 * len(text) // 4 :]
