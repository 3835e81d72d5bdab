"""Kinds of upstream servers, and the request body for one sequence. Pure functions."""

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
"""Most model names in a message."""
TOKENS_PER_EVENT: Final = 8
"""In a response that is not streamed to the client. Each event costs time on both servers, relatively more with a small model.

At a deadline, up to 7 generated tokens may be missing."""


@dataclass(frozen=True, slots=True)
class RemoteKind:
    """A kind of server whose `/v1/completions` accepts and returns token ids, with the sampling that we request.

    Attributes:
        min_tokens: the server's name of `min_new_tokens`.
        lowest_temperature: lower temperatures, except 0, would be raised to this one.
        stream_interval: several tokens can be requested in one event.
        prompt_by_echo: in a stream, log-probabilities of the prompt come only before those of the text, with `echo`.
    """

    name: str
    min_tokens: str
    lowest_temperature: float = 0.0
    stream_interval: bool = False
    prompt_by_echo: bool = False


KINDS: Final[Mapping[str, RemoteKind]] = {
    # vllm/sampling_params.py: _MAX_TEMP, to which lower temperatures above 0 are raised.
    "vllm": RemoteKind(
        "vLLM", min_tokens="min_tokens", lowest_temperature=0.01, stream_interval=True, prompt_by_echo=True
    ),
    "llama-endpoints": RemoteKind("llama-endpoints", min_tokens="min_new_tokens"),
}
"""By `owned_by` in `/v1/models`."""


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """An upstream server with our model.

    Attributes:
        version: empty if unknown.
        context: tokens of prompt and completion; None if unknown.
    """

    kind: RemoteKind
    version: str
    model: str
    context: int | None

    @classmethod
    def of(cls, listed: Any, version: str, *, model: str) -> "RemoteServer":
        """Return the server that `/v1/models` and `/version` describe.

        Raises:
            SetupError: it lacks the model, or is of an unsupported kind.
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
                f"it is not one of the supported servers: {' or '.join(kind.name for kind in KINDS.values())}"
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
        """Name and version of the software."""
        return f"{self.kind.name} {self.version}".strip()

    def body(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, streamed: bool = True
    ) -> dict[str, Any]:
        """Return the body of `/v1/completions` for one sequence, with every field set, so that no default applies.

        The server's own end-of-text ids are ignored: only `stop_token_ids` end a sequence.

        Args:
            prompt_ids: ids of the prompt.
            params: how to sample.
            streamed: tokens are read one by one; otherwise `TOKENS_PER_EVENT` may come together.

        Raises:
            BadRequest: the server would sample differently.
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
            "max_tokens": max(params.max_new_tokens, 1),
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
        if params.constraint is not None:
            body["structured_outputs"] = params.constraint.structured_outputs
        if (logprobs := self._logprobs(params)) is not None:
            body |= {"logprobs": logprobs, "return_tokens_as_token_ids": True}
        if params.prompt_logprobs is not None:
            body |= {"echo": True} if self.kind.prompt_by_echo else {"prompt_logprobs": params.prompt_logprobs}
        if params.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
        if self.kind.stream_interval and not streamed:
            body["stream_interval"] = TOKENS_PER_EVENT  # (vLLM before August 2026 ignores it)
        return body

    def _logprobs(self, params: SamplingParams) -> int | None:
        """Return how many alternatives to request with each token of the text, and of a prompt that is echoed."""
        of_prompt = params.prompt_logprobs if self.kind.prompt_by_echo else None
        return max((number for number in (params.logprobs, of_prompt) if number is not None), default=None)


def _seed(params: SamplingParams) -> int:
    """Return one seed, 0 to 2^63 - 1, made from our seed and the sequence's index."""
    if params.index == 0:
        return params.seed
    digest = blake2b(struct.pack("<QQ", params.seed, params.index), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
