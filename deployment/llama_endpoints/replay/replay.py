"""Runs a request again and compares the results with its receipts."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama_endpoints.replay.claims import Claim
from llama_endpoints.replay.messages import Message
from llama_endpoints.replay.requests import one_of
from llama_endpoints.replay.verdict import Difference, Place, Verdict, first_difference, split
from llama_serving.contract import receipt as receipts
from llama_serving.contract import tools
from llama_serving.contract.request import Generation, Request
from llama_serving.errors import SetupError
from llama_serving.prompts.tokenizer import TextDecoder, Tokenizer
from llama_serving.service.service import Service


class Replayer:
    """Replays on one service.

    Args:
        service: the model.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._shared = service.receipts.shared()

    def replay(self, request: Request, claim: Claim) -> Verdict:
        """Replay one receipt; see `replay_all`."""
        (verdict,) = self.replay_all([(request, claim)])
        return verdict

    def replay_all(self, asked: Iterable[tuple[Request, Claim]]) -> list[Verdict]:
        """Replay receipts, each with the request that was answered with it; what is the same runs once.

        Raises:
            ServingError: a request can't be run here.
            SetupError: a request has no prompt of the receipt's index.
        """
        made: dict[Request, Sequence[Generation]] = {}
        verdicts: list[Verdict] = []
        for request, claim in asked:
            alone = self.asked(request, claim)
            told = self.before(alone, claim)
            if told is None and alone not in made:
                (made[alone],) = self._service.generate(alone)
            verdicts.append(self.compare(alone, claim, made[alone]) if told is None else told)
        return verdicts

    async def areplay_all(self, asked: Iterable[tuple[Request, Claim]]) -> list[Verdict]:
        """Do as `replay_all` for an event loop."""
        made: dict[Request, Sequence[Generation]] = {}
        verdicts: list[Verdict] = []
        for request, claim in asked:
            alone = self.asked(request, claim)
            told = await asyncio.to_thread(self.before, alone, claim)
            if told is None and alone not in made:
                (made[alone],) = await self._service.agenerate(alone)
            if told is None:
                told = await asyncio.to_thread(self.compare, alone, claim, made[alone])
            verdicts.append(told)
        return verdicts

    def asked(self, request: Request, claim: Claim) -> Request:
        """Return the request for the receipt's prompt alone.

        Raises:
            SetupError: the request has no such prompt.
        """
        index, number = claim.receipt["prompt"]["index"], len(request.inputs)
        if index >= number:
            raise SetupError(
                f"The receipt is of prompt {index}, from 0, and the request has {number}. Give the request that it belongs to."
            )
        return one_of(request, index, claim.receipt["seed"])

    def before(self, alone: Request, claim: Claim) -> Verdict | None:
        """Return the verdict if the request is not the receipt's: nothing is to be run then."""
        receipt = claim.receipt
        (prepared,) = self._service.prepare(alone)
        params = prepared.params[min(receipt["index"], len(prepared.params) - 1)]
        ids = prepared.prompt.token_ids
        found = {
            **receipt,
            "protocol": receipts.protocol_of(alone),
            **self._shared,
            "prompt": {"index": receipt["prompt"]["index"], "tokens": len(ids), "sha256": receipts.of_ids(ids)},
            "parameters": receipts.effective(alone, params),
            "seed": params.seed if params.temperature > 0 else None,
            "index": params.index,
        }
        claimed, environment = split(receipt, found)
        of_request = [one for one in claimed if not one.what.startswith("model.")]
        return Verdict(claim.name, claimed, environment, reason=receipt["reason"]) if of_request else None

    def compare(self, alone: Request, claim: Claim, sequences: Sequence[Generation]) -> Verdict:
        """Return the verdict of a receipt whose request has run."""
        receipt, generation = claim.receipt, sequences[claim.receipt["index"]]
        assert generation.receipt is not None  # noqa: S101  (requested)
        found = generation.receipt.to_dict()
        found["prompt"]["index"] = receipt["prompt"]["index"]
        claimed, environment = split(receipt, found)
        claimed += tuple(_said_otherwise(alone, claim, generation))
        if claim.token_ids not in (None, generation.token_ids):
            claimed += (Difference("token_ids", "other ids", "the replay's"),)
        first = self._place(alone, claim, generation)
        return Verdict(claim.name, claimed, environment, first, receipt["reason"])

    def _place(self, alone: Request, claim: Claim, generation: Generation) -> Place | None:
        """Return where the answer first differs from the replay, as far as the claim has the answer."""
        token = character = None
        if claim.token_ids is not None:
            token = first_difference(claim.token_ids, generation.token_ids)
        if claim.text is not None:
            character = first_difference(claim.text, generation.full_text)
        if character is not None and token is None:
            (prepared,) = self._service.prepare(alone)
            before = len(prepared.prompt.before) if alone.parameters.return_full_text else 0
            token = _token_at(generation.token_ids, self._service.tokenizer, character - before)
        return None if character is None and token is None else Place(character, token)


def _said_otherwise(alone: Request, claim: Claim, generation: Generation) -> Iterator[Difference]:
    """Yield what the claim's answer says and the replay does not: its text, and its calls where it is a chat's."""
    found = Message(generation.full_text)
    if claim.calls is None:
        if claim.text is None:
            return
    elif alone.tools is not None:
        found = Message.of(tools.message(generation, alone.tools), "message")
    if claim.text != found.content:
        yield Difference("text", "another text", "the replay's")
    if (claim.calls or ()) != found.calls:
        yield Difference("tool_calls", "other calls", "the replay's")


def _token_at(ids: Sequence[int], tokenizer: Tokenizer, character: int) -> int | None:
    """Return the token that the character is of; the number of tokens if it is behind all of them."""
    if character < 0:
        return None
    decoder, end = TextDecoder(tokenizer), 0
    for number, token in enumerate(ids):
        end += len(decoder.push(token))
        if character < end:
            return number
    return len(ids)


def settings_of(receipt: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that decide the bytes, as variables of the environment, from a receipt."""
    engine = receipt["engine"]
    found = {"LLAMA_CONTEXT": str(engine["context"])}
    if engine["name"] in ("batching", "pipeline"):
        found["LLAMA_ENGINE"] = engine["name"]
        found["LLAMA_DTYPE"] = engine["dtype"] or "auto"
        if engine["quantization"] != "none":
            found["LLAMA_QUANTIZATION"] = engine["quantization"]
    return found
