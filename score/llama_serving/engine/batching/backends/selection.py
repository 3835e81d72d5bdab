"""Selects the backend for a model on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llama_serving.engine.batching.checkpoint import Tensors
from llama_serving.engine.batching.native import build, cpu
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig

if TYPE_CHECKING:
    from llama_serving.engine.batching.backends.base import Backend
    from llama_serving.engine.batching.native.bindings import Kernels

NATIVE_DTYPE: Final = "bfloat16"


@dataclass(frozen=True, slots=True)
class BackendRequest:
    """The backend that the operator requests.

    Attributes:
        dtype: `float32` or `bfloat16`, of weights, keys and values.
        backend: `native`, `portable`, or `auto`: native if it supports the model here, else portable.
        quantization: `int8`, with half the bytes of bfloat16 weights, or `none`.
    """

    dtype: str
    backend: str = "auto"
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class BackendSelection:
    """A backend that can run the model here.

    Attributes:
        request: of the operator.
        kernels: of the native backend; None is the portable one.
        fallback_reason: why it is not the native backend; empty if it is.
    """

    request: BackendRequest
    kernels: "Kernels | None"
    fallback_reason: str = ""

    @property
    def block_tokens(self) -> int:
        """Tokens in a block of its cache."""
        from llama_serving.engine.batching.backends.native import Native
        from llama_serving.engine.batching.backends.portable import Portable

        return Portable.block_tokens if self.kernels is None else Native.block_tokens

    def load(
        self, config: LlamaConfig, weights: Tensors, num_blocks: Callable[[LlamaConfig], int]
    ) -> "Backend":
        """Load a model.

        Raises:
            SetupError: the checkpoint cannot be used.
        """
        from llama_serving.engine.batching.backends.native import Native
        from llama_serving.engine.batching.backends.portable import Portable

        if self.kernels is None:
            return Portable(
                config,
                weights,
                dtype=self.request.dtype,
                num_blocks=num_blocks,
                fallback_reason=self.fallback_reason,
            )
        int8 = self.request.quantization == "int8"
        return Native(config, weights, self.kernels, int8=int8, num_blocks=num_blocks)


def select_backend(config: LlamaConfig, request: BackendRequest) -> BackendSelection:
    """Return the fastest backend that supports the model here.

    Raises:
        SetupError: the request needs the native backend, which cannot be used.
    """
    kernels = _kernels(config, request)
    if not isinstance(kernels, str):
        return BackendSelection(request, kernels)
    for setting, value, free in (
        ("QUANTIZATION", request.quantization, "none"),
        ("BACKEND", request.backend, "auto"),
    ):
        if value not in {free, "portable"}:
            raise SetupError(
                f"LLAMA_{setting}={value} needs the native backend, which can't be used: {kernels}. "
                f"Set it to {free}, or fix the cause."
            )
    return BackendSelection(request, None, kernels)


def _kernels(config: LlamaConfig, request: BackendRequest) -> "Kernels | str":
    """Return the kernels, or why they cannot be used."""
    from llama_serving.engine.batching.native.bindings import Kernels

    if refused := _refused(config, request):
        return refused
    try:
        return Kernels(build.found_or_made())
    except build.BuildError as error:
        return f"there is no compiled library: {error}"
    except (OSError, AttributeError) as error:  # (AttributeError: a symbol is missing)
        return f"its library can't be loaded: {error}"


def _refused(config: LlamaConfig, request: BackendRequest) -> str | None:
    from llama_serving.engine.batching.backends.native import refusal

    if request.backend == "portable":
        return "LLAMA_BACKEND is portable"
    if request.dtype != NATIVE_DTYPE:
        return f"it computes in {NATIVE_DTYPE}, not {request.dtype} (LLAMA_DTYPE)"
    if without := cpu.missing():
        return f"this CPU has no {', '.join(without)}"
    return refusal(config)
