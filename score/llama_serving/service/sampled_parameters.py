"""The parameters of a request that are numbers, for records of it."""

from typing import Any, Final

from llama_serving.contract.request import Request
from llama_serving.sampling_params import SamplingParams

_NUMBERS: Final = (
    "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logprobs", "prompt_logprobs",
)  # fmt: skip


def parameters_of(request: Request, params: SamplingParams) -> dict[str, Any]:
    """Return the parameters of a request's first sequence that are numbers. Of texts only their number is told."""
    given = request.parameters
    return {
        **{name: getattr(params, name) for name in _NUMBERS},
        "seed": params.seed if params.temperature > 0 else None,
        "num_return_sequences": given.num_return_sequences or 1,
        "stop": len(given.stop or ()),
        "logit_bias": len(params.logit_bias),
        "constrained": params.constraint is not None,
        "stream": bool(given.stream),
    }
