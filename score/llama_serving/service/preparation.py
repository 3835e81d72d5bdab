"""Request -> inputs for an engine. Validates everything that can be refused, without an engine."""

import logging
from dataclasses import dataclass, replace

from llama_serving.catalog import ModelVariant
from llama_serving.constraints.compiler import Compiled, Compiler
from llama_serving.contract.request import Dialog, Request
from llama_serving.engine.seeded_random import fresh_seed
from llama_serving.errors import BadRequest
from llama_serving.prompts.builder import Prompt, PromptBuilder, located
from llama_serving.sampling_params import DEFAULT_MAX_NEW_TOKENS, SamplingParams
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """One input of a request, ready for the engine; `params` has one entry for each returned sequence.

    Attributes:
        compiled: the request's constraint, if it has one.
    """

    prompt: Prompt
    params: tuple[SamplingParams, ...]
    compiled: Compiled | None = None


class RequestPreparer:
    """Prepares requests for one model.

    Args:
        variant: the model, with its defaults.
        builder: of the model's prompts.
        settings: for the limit of prompts in a request, and whether to log prompts.
    """

    def __init__(self, variant: ModelVariant, builder: PromptBuilder, settings: Settings) -> None:
        self.builder = builder
        self._compiler = Compiler(builder.tokenizer.pieces(builder.variant.shape.vocab))
        self._variant, self._settings = variant, settings

    def prepare(self, request: Request) -> tuple[PreparedInput, ...]:
        """Validate and prepare all inputs of a request before any of them runs.

        Raises:
            BadRequest: a parameter or an input is invalid; the error has the input's index.
        """
        limit = self._settings.max_prompts
        if len(request.inputs) > limit:
            raise BadRequest(f"The request has {len(request.inputs)} prompts; at most {limit} are taken. "
                             "Send several requests.", code="too_many_prompts")  # fmt: skip
        if request.parameters.continue_final_message and not all(
            isinstance(one, Dialog) for one in request.inputs
        ):
            raise self._bad(request, "continue_final_message", "there is no message to continue. Leave it out, or send a "
                            "dialog that ends with the assistant's message")  # fmt: skip
        compiled = self._compiled(request)
        return tuple(self._prepare_one(request, index, compiled) for index in range(len(request.inputs)))

    def _compiled(self, request: Request) -> Compiled | None:
        constraint, name = request.parameters.response_format, "response_format"
        if constraint is None:
            return None
        if request.parameters.ignore_eos and not request.stop_token_ids & self._variant.special_ids:
            raise self._bad(
                request,
                "ignore_eos",
                f"the text ends where `{request.called(name)}` has it end. Leave one of them out",
            )
        return self._compiler.compile(constraint, request.path(name))

    def _prepare_one(self, request: Request, index: int, compiled: Compiled | None) -> PreparedInput:
        prompt = self.builder.build_one(request, index)
        if self._settings.log_prompts:
            _log.info("prompt: %r", prompt.text)
        try:
            if request.parameters.editor_stops and not prompt.infill:
                raise self._bad(request, "editor_stops", "there is no gap to stop in. Leave it out, or send an infilling "
                                "prompt")  # fmt: skip
            return PreparedInput(prompt, self._resolve(request, prompt), compiled)
        except BadRequest as error:
            raise located(error, request, index) from None

    def _resolve(self, request: Request, prompt: Prompt) -> tuple[SamplingParams, ...]:
        """Return the sampling parameters of each returned sequence, with the model's defaults filled in."""
        given, variant = request.parameters, self._variant
        temperature = variant.temperature if given.temperature is None else given.temperature
        greedy = given.do_sample is False or temperature == 0
        count = given.num_return_sequences or 1
        if greedy and count > 1:
            raise self._bad(request, "num_return_sequences", "greedy sequences would all be the same text: "
                            "let it sample (do_sample true, temperature above 0), or ask for one")  # fmt: skip
        max_new = self._max_new_tokens(request, prompt)
        params = SamplingParams(
            max_new_tokens=max_new,
            min_new_tokens=self._min_new_tokens(request, max_new),
            temperature=0.0 if greedy else temperature,
            top_p=variant.top_p if given.top_p is None else given.top_p,
            top_k=given.top_k or 0,
            min_p=given.min_p or 0.0,
            repetition_penalty=_or(given.repetition_penalty, 1.0),
            presence_penalty=given.presence_penalty or 0.0,
            frequency_penalty=given.frequency_penalty or 0.0,
            stop_ids=(frozenset() if given.ignore_eos else prompt.stop_ids) | request.stop_token_ids,
            seed=fresh_seed() if given.seed is None else given.seed,
            logprobs=given.logprobs,
            prompt_logprobs=self._prompt_logprobs(request),
            logit_bias=self._logit_bias(request),
            constraint=given.response_format,
        )
        # One sequence reads the prompt for all of them; the others reuse what it computes.
        others = replace(params, prompt_logprobs=None)
        return (params, *(replace(others, index=index) for index in range(1, count)))

    def _max_new_tokens(self, request: Request, prompt: Prompt) -> int:
        max_new = request.parameters.max_new_tokens
        room = self.builder.context - len(prompt.token_ids)
        if max_new is None:
            return min(DEFAULT_MAX_NEW_TOKENS, room)
        if max_new > room and not request.ceiling:
            raise self.builder.too_long(len(prompt.token_ids), max_new, request.called("max_new_tokens"))
        return min(max_new, room)

    def _prompt_logprobs(self, request: Request) -> int | None:
        """Return how many alternatives to report with each token of the prompt; None if it is not requested."""
        given = request.parameters
        wanted = (given.prompt_logprobs, given.logprobs if request.echo_logprobs else None)
        return max((number for number in wanted if number is not None), default=None)

    def _logit_bias(self, request: Request) -> tuple[tuple[int, float], ...]:
        biases, vocab = request.parameters.logit_bias or (), self._variant.shape.vocab
        outside = next((token for token, _ in biases if not 0 <= token < vocab), None)
        if outside is not None:
            raise self._bad(request, "logit_bias", f"the token id {outside} is outside the vocabulary, which has the ids 0 to "
                            f"{vocab - 1}")  # fmt: skip
        return biases

    def _min_new_tokens(self, request: Request, max_new: int) -> int:
        min_new = request.parameters.min_new_tokens or 0
        limit = max_new if not request.ceiling else (request.parameters.max_new_tokens or max_new)
        if min_new > limit:
            raise self._bad(request, "min_new_tokens", f"it is {min_new} and {request.called('max_new_tokens')} is {limit}: "
                            "raise the one or lower the other")  # fmt: skip
        return min(min_new, max_new)

    def _bad(self, request: Request, name: str, why: str) -> BadRequest:
        path = request.path(name)
        return BadRequest(f"`{path}` can't be met: {why}.", code="invalid_value", param=path)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
