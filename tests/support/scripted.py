"""A service whose engine says what a test wants, in pieces of the test's choice; tokenizer and service are real."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import Any

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.engine.base import EngineStats
from llama_serving.engine.handle import Handle, Token, publish
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.guards.guards import Guards
from llama_serving.service.service import Service
from llama_serving.settings import Settings


@cache
def nano_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(NANO_FOLDER, NANO.special_ids)


class ScriptedEngine:
    """Generates the next of its texts for each sequence, over and over.

    Args:
        texts: what sequences say.
        pieces: numbers of tokens that arrive together, over and over.
        pause_s: seconds between arrivals.
    """

    capacity = None

    def __init__(
        self, tokenizer: Tokenizer, texts: Sequence[str], pieces: Sequence[int] = (1,), pause_s: float = 0.0
    ) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        self._pieces, self._pause_s = pieces, pause_s
        self._numbers = count()
        self.handles: list[Handle] = []

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        stop: Callable[[int], bool] | None = None,
        **_: Any,
    ) -> Handle:
        handle = Handle()
        self.handles.append(handle)
        text = self._texts[next(self._numbers) % len(self._texts)]
        ids = [*self._tokenizer.encode_continuation(text), min(params.stop_ids, default=2)]
        ids = ids[: max(params.max_new_tokens, 1)]
        threading.Thread(target=self._run, args=(handle, ids, params, stop), daemon=True).start()
        return handle

    def _run(
        self, handle: Handle, ids: list[int], params: SamplingParams, stop: Callable[[int], bool] | None
    ) -> None:
        at = 0
        for number in count():
            if handle.cancelled:
                return handle.finish("cancelled")
            new = ids[at : at + self._pieces[number % len(self._pieces)]]
            at += len(new)
            if not new:
                return handle.finish("stop" if ids[-1] in params.stop_ids else "length")
            tokens = [Token(one, -1.0 if params.logprobs is not None else None) for one in new]
            publish([(handle, token) for token in tokens])
            if stop is not None and any(list(map(stop, new))):
                return handle.finish("stop")
            time.sleep(self._pause_s)
        return None

    def stats(self) -> EngineStats:
        return EngineStats("scripted", 0, 0, len(self.handles), 0, 0, alive=True)

    def drain(self) -> None:
        pass

    def close(self) -> None:
        for handle in self.handles:
            handle.cancel()


def scripted(
    *texts: str,
    guards: Guards | None = None,
    pieces: Sequence[int] = (1,),
    pause_s: float = 0.0,
    settings: Settings | None = None,
) -> Service:
    """Return a service that says these texts."""
    tokenizer = nano_tokenizer()
    engine = ScriptedEngine(tokenizer, texts, pieces, pause_s)
    return Service(NANO, tokenizer, engine, settings or Settings(), guards=guards)
