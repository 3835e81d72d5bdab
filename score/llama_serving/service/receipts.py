"""Makes the receipts of a running service. See `contract/receipt.py`."""

import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from llama_serving.catalog import ModelVariant
from llama_serving.contract import receipt
from llama_serving.contract.receipt import Computed, OutputDigest, PromptDigest, Receipt
from llama_serving.contract.request import Generation, Request
from llama_serving.engine.base import Engine, EngineStats
from llama_serving.model_files import ModelFiles
from llama_serving.sampling_params import SamplingParams
from llama_serving.service import fingerprint
from llama_serving.service.engine_factory import dtype_of
from llama_serving.settings import Settings
from llama_serving.version import Build, build

REMOTE: Final = ("upstream", "vllm")
"""Engines that have another process draw the tokens."""


@dataclass(frozen=True, slots=True)
class _Origin:
    model_digest: str | None
    built: Build
    torch: str | None


class ReceiptWriter:
    """Writes the receipts of one service.

    Args:
        variant: the model.
        engine: that computes it.
        settings: of the operator.
        context: most tokens of prompt and completion.
        files: of the model; None if they are not known.
    """

    def __init__(
        self, variant: ModelVariant, engine: Engine, settings: Settings, context: int, files: ModelFiles | None
    ) -> None:
        self._variant, self._engine, self._settings = variant, engine, settings
        self._context, self._files = context, files
        self._lock = threading.Lock()
        self._known: _Origin | None = None

    def prepare(self) -> None:
        """Read what every receipt needs from the disk, the first time. Not to be called on an event loop.

        Raises:
            OSError: the model's files cannot be read.
        """
        with self._lock:
            if self._known is None:
                self._known = _Origin(self._digest(), build(), _version("torch"))

    def shared(self) -> dict[str, Any]:
        """Return the part that all receipts share.

        Raises:
            OSError: the model's files cannot be read.
        """
        origin = self._origin()
        built, engine = origin.built, self._computed(self._engine.stats(), origin)
        return receipt.shared(self._variant.name, origin.model_digest, engine, built.version, built.commit)

    def write(
        self, request: Request, position: tuple[int, int], params: SamplingParams, generation: Generation
    ) -> Receipt:
        """Return the receipt of a sequence that ended.

        Args:
            request: that it answers.
            position: index of its prompt in the request, and number of the prompt's ids.
            params: of the sequence.
            generation: its result.
        """
        origin, stats = self._origin(), self._engine.stats()
        index, tokens = position
        return Receipt(
            protocol=receipt.protocol_of(request),
            model=self._variant.name,
            model_digest=origin.model_digest,
            prompt=PromptDigest(index, tokens, receipt.of_ids(generation.prompt_token_ids)),
            parameters=receipt.effective(request, params),
            seed=params.seed if params.temperature > 0 else None,
            index=params.index,
            output=OutputDigest.of(generation),
            engine=self._computed(stats, origin),
            version=origin.built.version,
            commit=origin.built.commit,
            reason=_reason(request, params, generation, stats),
        )

    def _origin(self) -> _Origin:
        if self._known is None:
            self.prepare()
        assert self._known is not None  # noqa: S101  (prepared)
        return self._known

    def _digest(self) -> str | None:
        remote = self._settings.engine == "upstream"
        return None if remote or self._files is None else fingerprint.of_checkpoint(self._files.checkpoint)

    def _computed(self, stats: EngineStats, origin: _Origin) -> Computed:
        local = stats.engine not in REMOTE
        return Computed(
            name=stats.engine,
            backend=stats.backend.partition(" at ")[0],  # an upstream server's address is nobody's business
            instructions=stats.instructions,
            dtype=None if stats.engine == "upstream" else dtype_of(self._variant, self._settings),
            quantization=self._settings.quantization,
            context=self._context,
            batch_invariant=stats.batch_invariant,
            torch=origin.torch if local else None,
        )


def _reason(request: Request, params: SamplingParams, generation: Generation, stats: EngineStats) -> str:
    """Return why the same bytes can't be promised; empty if they can."""
    if generation.finish_reason in ("deadline", "cancelled"):
        return "the deadline ended the text"
    if generation.finish_reason == "content_filter":
        return "a guard ended the text"
    unfinished = generation.finish_reason == "length" and len(generation.token_ids) < params.max_new_tokens
    if request.patience_s is not None and unfinished:
        return "the request's time limit ended the text"
    if stats.engine in REMOTE:
        if params.temperature > 0:
            return "the server that generates draws with random numbers of its own"
        return (
            "the server that generates does not promise results that are independent of the rest of its batch"
        )
    return "" if stats.batch_invariant else "results of this engine depend on the rest of the batch"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
