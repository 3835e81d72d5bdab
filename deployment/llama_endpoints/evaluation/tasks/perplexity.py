"""Perplexity of a packaged model, here or behind an endpoint, over the files of a folder. Each file is a problem.

A file longer than the window is read in windows that overlap by half, so that each token but the first ones has at least half
a window before it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np

from llama_endpoints.evaluation.metrics.metric import Array, Metric, quotient
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score
from llama_endpoints.evaluation.targets.endpoint_key import endpoint_key
from llama_endpoints.evaluation.tasks.code_task import CodeRunning
from llama_endpoints.evaluation.tasks.task import PromptStyle, Row, Sampling
from llama_serving.errors import SetupError

WINDOW: Final = 2048
Logprobs = Callable[[Sequence[int]], list[float]]
"""Returns the log-probability of each token but the first."""


class Model:
    """A packaged model, loaded when it is first needed.

    Args:
        name: folder of the model, an azureml: URI, or nano.
        window: most tokens at a time.
        url: address of an endpoint that computes it; empty for this process. The tokenizer is that of the folder.
    """

    def __init__(self, name: str, window: int, url: str = "") -> None:
        self.name, self.window, self.url = name, window, url
        self.computing = Lock()  # (a backend has one cache)

    @cached_property
    def files(self) -> Any:
        """The model's files."""
        from llama_endpoints.download.resolve import model_files

        return model_files(self.name)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        from llama_serving.prompts.tokenizer import Tokenizer

        return Tokenizer.from_folder(self.files.checkpoint, self.files.variant.special_ids)

    @cached_property
    def logprobs(self) -> Logprobs:
        """What computes log-probabilities.

        Raises:
            SetupError: the model does not fit into memory, or cannot be used.
        """
        from llama_serving.engine.batching.logits import dtype_that_fits, token_logprobs

        if self.url:
            return self._endpoint()
        variant = self.files.variant
        dtype = dtype_that_fits(variant.shape.parameters)
        if dtype is None:
            raise SetupError(f"{variant.name} does not fit into this machine's free memory.")
        return token_logprobs(self.files.checkpoint, self.window, dtype)

    def _endpoint(self) -> Logprobs:
        from llama_endpoints.evaluation.targets.endpoint_client import EndpointClient, http_client
        from llama_endpoints.evaluation.targets.protocols import Protocol

        protocol, key = Protocol.COMPLETIONS, endpoint_key()

        def logprobs(ids: Sequence[int]) -> list[float]:
            with http_client(self.url, key, None) as http:
                client = EndpointClient(http, protocol.address(self.url), protocol, "default")
                return client.token_logprobs(ids)

        return logprobs


@dataclass(frozen=True, slots=True)
class Perplexity:
    """See `Task`. It has no rows: nothing is generated."""

    data: Path
    pattern: str
    model: Model = field(compare=False)
    name: str = "perplexity"
    runs_code: bool = False

    @classmethod
    def create(cls, _: str, options: Mapping[str, Any], running: CodeRunning) -> "Perplexity":
        """Make the task from its options."""
        del running
        folder = Path(options["data"])
        model = Model(options["model"], int(options.get("window") or WINDOW), options.get("url") or "")
        return cls(folder, str(options.get("pattern") or "*"), model)

    @property
    def options(self) -> Mapping[str, Any]:
        """See `Task`."""
        return {
            "data": str(self.data), "pattern": self.pattern, "model": self.model.name, "window": self.model.window,
            "url": self.model.url,
        }  # fmt: skip

    @property
    def metrics(self) -> Sequence[Metric]:
        """See `Task`. Both are over all tokens, not means over files."""
        return (
            Metric("perplexity", _terms("tokens"), _exponential, higher_is_better=False),
            Metric("bits per byte", _terms("bytes"), _bits, higher_is_better=False),
        )

    def problems(self) -> Sequence[Problem]:
        """See `Task`."""
        if not self.data.is_dir():
            raise SetupError(f"{self.data} is not a folder. Give a folder of text files as --data.")
        found = [
            path for path in sorted(self.data.rglob(self.pattern)) if path.is_file() and path.stat().st_size
        ]
        if not found:
            raise SetupError(f"{self.data} has no file that matches {self.pattern} and is not empty.")
        return [Problem(path.relative_to(self.data).as_posix(), None, {"path": path}) for path in found]

    def samples(self, problems: Iterable[Problem]) -> Iterator[Sample]:
        """Yield one sample a file, without a text: the file is the text."""
        return (Sample(problem.id, 0, None, None) for problem in problems)

    def rows(self, problem: Problem, style: PromptStyle, sampling: Sampling) -> Iterable[Row]:
        """See `Task`."""
        del problem, style, sampling
        return ()

    def completion(self, problem: Problem, text: str, style: PromptStyle) -> str:
        """See `Task`."""
        del problem, style
        return text

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        """See `Task`. One thread computes at a time."""
        path: Path = problem.data["path"]
        raw = path.read_bytes()
        try:
            ids = self.model.tokenizer.encode(raw.decode())
        except UnicodeDecodeError as error:
            raise SetupError(f"{path} is not UTF-8. Remove it, or leave it out with --pattern.") from error
        with self.model.computing:
            bos = self.model.files.variant.bos_id
            values = [-one for one in windowed(ids, bos, self.model.window, self.model.logprobs)]
        measured = {"nll": math.fsum(values), "tokens": float(len(values)), "bytes": float(len(raw))}
        return [Score(problem.id, sample.sample, problem.group, measured) for sample in samples]


def windowed(ids: Sequence[int], bos: int, window: int, logprobs: Logprobs) -> list[float]:
    """Return the log-probability of each token of a text, in windows that begin with BOS and overlap by half."""
    room, found = window - 1, list[float]()
    for start in range(0, len(ids), max(1, room // 2)):
        part = logprobs([bos, *ids[start : start + room]])
        found += part[len(found) - start :]
        if start + room >= len(ids):
            break
    return found


def _terms(per: str) -> Callable[[Sequence[Score]], Sequence[float]]:
    return lambda scores: (scores[0].values["nll"], scores[0].values[per])


def _exponential(sums: Array) -> Array:
    return np.asarray(np.exp(quotient(sums)))


def _bits(sums: Array) -> Array:
    return np.asarray(quotient(sums) / math.log(2))
