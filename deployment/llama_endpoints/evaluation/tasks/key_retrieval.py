"""Key retrieval: one function among much Python code returns a number, and an `assert` at the end asks for it.

Built from its description in arXiv 2308.12950, section 3.4: "a large amount of syntactically valid Python code, with a function
returning a scalar inserted at a specified position". The code around it is made here, from a seed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

from llama_endpoints.evaluation.metrics.metric import Metric, mean_metric
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score, Verdict
from llama_endpoints.evaluation.tasks.code_task import CodeRunning, failure
from llama_endpoints.evaluation.tasks.task import PromptStyle, Row, Sampling, row
from llama_serving.errors import SetupError

LENGTHS: Final = (4_000, 8_000, 16_000)
DEPTHS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
LONGEST: Final = 100_000
FUNCTION: Final = "retrieve_the_key"
ASKED: Final = f"\n\nassert {FUNCTION}() =="
_FORMAT_TOKENS: Final = 24
"""Of a dialog's format, which stand around the message."""
_IN_WORDS: Final = "{}\n\nWhich number makes this assertion true? Answer with the number alone."
_CHARACTERS_A_TOKEN: Final = 3
"""Where no tokenizer is given: fewer than real code has, so that a context is not exceeded."""
_KEYS: Final = (10_000, 99_999)
"""Longer than every other number in the code."""
_VERBS: Final = ("load", "merge", "split", "count", "sort", "check", "find", "trim", "scale", "update")
_NOUNS: Final = ("rows", "words", "nodes", "pages", "scores", "edges", "items", "lines", "tokens", "values")
_BODIES: Final = (
    "    result = []\n    for item in {noun}:\n        if item > {number}:\n            result.append(item * {factor})\n    return result\n",
    "    total = {number}\n    for index, item in enumerate({noun}):\n        total += index * item\n    return total\n",
    "    seen = set()\n    while {noun}:\n        seen.add({noun}.pop() % {factor})\n    return sorted(seen)\n",
    "    if not {noun}:\n        return {number}\n    return max({noun}) - min({noun}) + {factor}\n",
    "    return {{item: item + {number} for item in {noun} if item % {factor}}}\n",
)

Count = Callable[[str], int]
"""Returns the number of tokens of a text."""


@dataclass(frozen=True, slots=True)
class KeyRetrieval:
    """See `Task`.

    Attributes:
        lengths: tokens of the prompts.
        depths: where the function stands: 0 is the beginning, 1 the end.
        repeats: prompts for each length and depth.
        tokenizer: folder of the tokenizer that lengths are counted with; empty for an estimate.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    repeats: int
    tokenizer: str
    name: str = "key-retrieval"
    data: Path | None = None
    runs_code: bool = False

    @classmethod
    def create(cls, _: str, options: Mapping[str, Any], running: CodeRunning) -> "KeyRetrieval":
        """Make the task from its options.

        Raises:
            SetupError: a length or a depth is out of range.
        """
        del running
        lengths, depths = tuple(options.get("lengths") or LENGTHS), tuple(options.get("depths") or DEPTHS)
        if not all(200 <= length <= LONGEST for length in lengths):
            raise SetupError(f"Lengths are from 200 to {LONGEST} tokens.")
        if not all(0 <= depth <= 1 for depth in depths):
            raise SetupError("Depths are from 0, the beginning, to 1, the end.")
        return cls(lengths, depths, int(options.get("repeats") or 10), str(options.get("tokenizer") or ""))

    @property
    def options(self) -> Mapping[str, Any]:
        """See `Task`."""
        return {
            "lengths": list(self.lengths), "depths": list(self.depths), "repeats": self.repeats, "tokenizer": self.tokenizer,
        }  # fmt: skip

    @property
    def metrics(self) -> Sequence[Metric]:
        """See `Task`. Each length and depth is a group."""
        return (mean_metric("accuracy", "found"),)

    def problems(self) -> Sequence[Problem]:
        """See `Task`."""
        found = list[Problem]()
        for length in dict.fromkeys(self.lengths):
            for depth in dict.fromkeys(self.depths):
                group = f"{length} tokens, depth {depth:g}"
                for number in range(self.repeats):
                    name = f"{length}/{depth:g}/{number}"
                    key = Random(name).randint(*_KEYS)  # noqa: S311  (no secret)
                    found.append(Problem(name, group, {"length": length, "depth": depth, "key": key}))
        return found

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """See `Task`."""
        text = prompt(problem, counter(self.tokenizer), style)
        dialog = {"messages": [{"role": "user", "content": text}]}
        given = dialog if style is PromptStyle.DIALOG else {"prompt": text}
        for number in range(sampling.samples):
            yield row(problem, number, given, sampling.parameters(number))

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:
        """See `Task`. The first number is the answer."""
        del problem, style
        found = re.search(r"-?\d[\d_]*+(?!\.\d)", text)
        return found[0].replace("_", "") if found else ""

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        """See `Task`."""
        for sample in samples:
            right = sample.completion == str(problem.data["key"])
            verdict, detail = (Verdict.PASSED, "") if right else (Verdict.FAILED, "another number")
            if sample.completion is None:
                verdict, detail = Verdict.NOT_RUN, failure(sample)
            yield Score(problem.id, sample.sample, problem.group, {"found": float(right)}, verdict, detail)


def prompt(problem: Problem, count: Count, style: PromptStyle = PromptStyle.COMPLETION) -> str:
    """Return a prompt of at most the problem's length, with the function at its depth."""
    data, in_words = problem.data, style is PromptStyle.DIALOG
    hidden = f"def {FUNCTION}() -> int:\n    return {data['key']}\n"
    most = data["length"] - (_FORMAT_TOKENS if in_words else 1)  # (one is the token before every text)

    def text(around: Sequence[str]) -> str:
        code = _joined(around, hidden, data["depth"])
        return _IN_WORDS.format(code) if in_words else code

    around, used = list[str](), count(text([]))
    for one in _code(Random(f"{problem.id} code")):  # noqa: S311
        used += count(one + "\n\n")
        if used > most:
            break
        around.append(one)
    while around and count(text(around)) > most:
        around.pop()
    return text(around)


def counter(tokenizer: str) -> Count:
    """Return what counts tokens: a checkpoint's tokenizer, or an estimate where `tokenizer` is empty."""
    if not tokenizer:
        return lambda text: -(-len(text) // _CHARACTERS_A_TOKEN)
    return _with_tokenizer(tokenizer)


@cache
def _with_tokenizer(folder: str) -> Count:
    from llama_endpoints.download.resolve import folder_of
    from llama_serving.prompts.tokenizer import Tokenizer

    found = Tokenizer.from_folder(folder_of(folder, weights=False))
    return lambda text: len(found.encode(text))


def _joined(around: Sequence[str], hidden: str, depth: float) -> str:
    at = round(depth * len(around))
    return "\n\n".join([*around[:at], hidden, *around[at:]]) + ASKED


def _code(random: Random) -> Iterator[str]:
    """Yield functions without end. Their names are all different."""
    number = 0
    while True:
        number += 1
        noun = random.choice(_NOUNS)
        body = random.choice(_BODIES).format(
            noun=noun, number=random.randint(2, 99), factor=random.randint(2, 9)
        )
        yield f"def {random.choice(_VERBS)}_{noun}_{number}({noun}):\n{body}"
