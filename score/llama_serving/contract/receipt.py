"""A receipt: what one sequence was made from and what it is, in digests, so that it can be made again and compared.

It holds no text of the prompt or the answer. See docs/receipts.md.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from llama_serving.constraints.constraint import Constraint
from llama_serving.contract.request import Generation, ReplyShape, Request
from llama_serving.sampling_params import FinishReason, SamplingParams

FORMAT: Final = 1
DIGEST_OF_MODEL: Final = "config, tokenizer and samples of the weights"

_PROTOCOLS: Final[Mapping[ReplyShape, str]] = {
    ReplyShape.COMPLETION: "openai",
    ReplyShape.CHAT: "openai",
    ReplyShape.GENERATE: "ollama",
    ReplyShape.MESSAGE: "ollama",
    ReplyShape.CONTENT: "llama.cpp",
}
_APART: Final = frozenset(("stop_ids", "seed", "index", "constraint", "prompt_logprobs"))
"""Sampling parameters that a receipt has under another name, or from the request: not every sequence has them."""


@dataclass(frozen=True, slots=True)
class PromptDigest:
    """One prompt.

    Attributes:
        index: of the prompt in its request.
        tokens: number of its ids.
        sha256: of its ids; see `of_ids`.
    """

    index: int
    tokens: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OutputDigest:
    """What was generated.

    Attributes:
        tokens: number of generated ids, with the one that ended the sequence.
        ids_sha256: of them; see `of_ids`.
        text_sha256: of the text in UTF-8, without the prompt and without the stop string.
    """

    tokens: int
    ids_sha256: str
    text_sha256: str
    finish_reason: FinishReason

    @classmethod
    def of(cls, generation: Generation) -> "OutputDigest":
        """Return the digest of a result."""
        text = hashlib.sha256(generation.text.encode()).hexdigest()
        ids = generation.token_ids
        return cls(len(ids), of_ids(ids), text, generation.finish_reason)


@dataclass(frozen=True, slots=True)
class Computed:
    """What computed the sequence.

    Attributes:
        name, backend, instructions: of the engine; see `EngineStats`.
        dtype: that it computes in; None if another server decides.
        quantization: of the weights at the start.
        context: most tokens of prompt and completion.
        batch_invariant: see `EngineStats`.
        torch: version of torch, if it is used in this process.
    """

    name: str
    backend: str
    instructions: str
    dtype: str | None
    quantization: str
    context: int
    batch_invariant: bool | None
    torch: str | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """See the module.

    Attributes:
        protocol: of the request's body.
        model: name of the model.
        model_digest: None if another server has the weights.
        parameters: the effective ones, as JSON; see `effective`.
        seed: None where nothing was drawn.
        index: of the sequence among those returned for the prompt.
        version, commit: of this software.
        reason: why the same bytes can't be promised; empty if they can.
    """

    protocol: str
    model: str
    model_digest: str | None
    prompt: PromptDigest
    parameters: Mapping[str, Any]
    seed: int | None
    index: int
    output: OutputDigest
    engine: Computed
    version: str
    commit: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON, as `schema/receipt.json` describes it."""
        return {
            "format": FORMAT,
            "reproducible": not self.reason,
            "reason": self.reason or None,
            "protocol": self.protocol,
            **shared(self.model, self.model_digest, self.engine, self.version, self.commit),
            "prompt": _members(self.prompt),
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "index": self.index,
            "output": _members(self.output),
        }


def shared(model: str, digest: str | None, engine: Computed, version: str, commit: str) -> dict[str, Any]:
    """Return the part that all receipts of a running service share."""
    kind = None if digest is None else DIGEST_OF_MODEL
    return {
        "model": {"name": model, "sha256": digest, "digest_of": kind},
        "engine": _members(engine),
        "version": version,
        "commit": commit or None,
    }


def field(generation: Generation) -> dict[str, Any]:
    """Return the member `receipt` of a sequence in an answer; nothing where none was requested."""
    return {} if generation.receipt is None else {"receipt": generation.receipt.to_dict()}


def protocol_of(request: Request) -> str:
    """Return the name of the protocol that the request came in."""
    return _PROTOCOLS.get(request.reply, "azure")


def of_ids(ids: Iterable[int]) -> str:
    """Return SHA-256 of token ids, each written as 4 bytes, the lowest first."""
    listed = list(ids)
    return hashlib.sha256(struct.pack(f"<{len(listed)}I", *listed)).hexdigest()


def effective(request: Request, params: SamplingParams) -> dict[str, Any]:
    """Return every parameter that took part, with the defaults filled in, as JSON."""
    given = request.parameters
    sampled = {f.name: _plain(getattr(params, f.name)) for f in fields(params) if f.name not in _APART}
    return {
        **sampled,
        "num_return_sequences": given.num_return_sequences or 1,
        "prompt_logprobs": _prompt_logprobs(request),
        "truncate_prompt_tokens": request.truncate_prompt_tokens,
        "stop": list(given.stop or ()),
        "stop_token_ids": sorted(params.stop_ids),
        "return_full_text": bool(given.return_full_text),
        "editor_stops": bool(given.editor_stops),
        "min_indent": request.min_indent,
        "constraint": _constraint(params.constraint),
    }


def _prompt_logprobs(request: Request) -> int | None:
    given = request.parameters
    wanted = (given.prompt_logprobs, given.logprobs if request.echo_logprobs else None)
    return max((number for number in wanted if number is not None), default=None)


def _constraint(constraint: Constraint | None) -> dict[str, str] | None:
    return None if constraint is None else {"kind": constraint.kind, "text": constraint.text}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(one) for one in value)
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def _members(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}
