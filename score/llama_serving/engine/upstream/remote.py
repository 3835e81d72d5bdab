"""Which server is behind us, and what a sequence is asked of it with. Pure."""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from llama_serving.errors import BadRequest, SetupError
from llama_serving.sampling_params import SamplingParams

_VERSION: Final = re.compile(r"[0-9A-Za-z.+-]{1,64}")
_SHOWN: Final = 5
"""Names of models that a message lists."""


TOKENS_PER_EVENT: Final = 8
"""Of an answer that nobody reads before its end: an event costs the server behind us and us the more time, the smaller the model is.

At a deadline up to 7 tokens that are computed have not come yet."""


@dataclass(frozen=True, slots=True)
class RemoteKind:
    """A server whose `/v1/completions` takes token ids, gives them back, and samples as it is told.

    Attributes:
        min_tokens: its name of `min_new_tokens`.
        lowest_temperature: a lower one, other than 0, would be sampled with as if it were this one.
        stream_interval: it can be asked for several tokens in one event.
    """

    name: str
    min_tokens: str
    lowest_temperature: float = 0.0
    stream_interval: bool = False


KINDS: Final[Mapping[str, RemoteKind]] = {
    # vllm/sampling_params.py: _MAX_TEMP, by which temperatures above 0 are raised.
    "vllm": RemoteKind("vLLM", min_tokens="min_tokens", lowest_temperature=0.01, stream_interval=True),
    "llama-endpoints": RemoteKind("llama-endpoints", min_tokens="min_new_tokens"),
}
"""By what they call themselves: `owned_by` in `/v1/models`."""


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """A server with the model that we ask.

    Attributes:
        version: empty where it does not say.
        context: tokens of prompt and completion; None where it does not say.
    """

    kind: RemoteKind
    version: str
    model: str
    context: int | None

    @classmethod
    def of(cls, listed: Any, version: str, *, model: str) -> "RemoteServer":
        """From what `/v1/models` and `/version` say.

        Raises:
            SetupError: it has another model, or is none whose sampling is known.
        """
        try:
            cards = {str(card["id"]): card for card in listed["data"]}
        except (TypeError, KeyError) as error:
            raise SetupError("it answers /v1/models with no list of models") from error
        card = cards.get(model)
        if card is None:
            others = ", ".join(list(cards)[:_SHOWN]) or "none"
            raise SetupError(
                f"its models are {others}, and not {model}. Start it with that model and under that name (vLLM: "
                f"--served-model-name {model})"
            )
        kind = KINDS.get(str(card.get("owned_by")))
        if kind is None:
            raise SetupError(
                f"it is none that takes token ids and is known to sample as it is told: "
                f"{' or '.join(kind.name for kind in KINDS.values())}"
            )
        context = card.get("max_model_len")
        return cls(
            kind,
            version if _VERSION.fullmatch(version) else "",
            model,
            context if isinstance(context, int) and context > 0 else None,
        )

    @property
    def name(self) -> str:
        """Kind and version."""
        return f"{self.kind.name} {self.version}".strip()

    def body(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, streamed: bool = True
    ) -> dict[str, Any]:
        """The body of `/v1/completions` for one sequence: every field decided, so that no default takes part.

        Its own end of text is ignored: `stop_token_ids` are all that ends a sequence.

        Args:
            prompt_ids: of the prompt.
            params: how to sample.
            streamed: its tokens are read as they come; otherwise `TOKENS_PER_EVENT` may come together.

        Raises:
            BadRequest: it would be sampled otherwise than asked for.
        """
        lowest = self.kind.lowest_temperature
        if 0 < params.temperature < lowest:
            raise BadRequest(
                f"`temperature` must be 0 or at least {lowest:g} on this server, not {params.temperature:g}.",
                code="invalid_value",
                param="temperature",
            )
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "max_tokens": params.max_new_tokens,
            self.kind.min_tokens: params.min_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "stop_token_ids": sorted(params.stop_ids),
            "ignore_eos": True,
            "seed": _seed(params),
        }
        if params.logprobs is not None:
            body |= {"logprobs": params.logprobs, "return_tokens_as_token_ids": True}
        if self.kind.stream_interval and not streamed:
            body["stream_interval"] = TOKENS_PER_EVENT  # (a vLLM of before August 2026 ignores it)
        return body


def _seed(params: SamplingParams) -> int:
    """One number for what we make from two: 0 to 2^63 - 1."""
    if params.index == 0:
        return params.seed
    digest = blake2b(struct.pack("<QQ", params.seed, params.index), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
