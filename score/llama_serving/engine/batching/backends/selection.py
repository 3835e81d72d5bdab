"""Which backend computes a model here, and why not the fastest."""

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
class Wanted:
    """What an operator says.

    Attributes:
        dtype: of the weights, and of keys and values: `float32` or `bfloat16`.
        backend: `native`, `portable`, or `auto`: native where it can compute the model, else portable.
        quantization: `int8`, which are half the bytes of bfloat16 weights, or `none`.
    """

    dtype: str
    backend: str = "auto"
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend that computes a model here.

    Attributes:
        wanted: by the operator.
        kernels: of the native one; None is the portable one.
        why_not: why it is not the native one; empty where it is.
    """

    wanted: Wanted
    kernels: "Kernels | None"
    why_not: str = ""

    @property
    def block_tokens(self) -> int:
        """Tokens in a block of its cache."""
        from llama_serving.engine.batching.backends.native import Native
        from llama_serving.engine.batching.backends.portable import Portable

        return Portable.block_tokens if self.kernels is None else Native.block_tokens

    def make(
        self, config: LlamaConfig, weights: Tensors, num_blocks: Callable[[LlamaConfig], int]
    ) -> "Backend":
        """Load a model.

        Raises:
            SetupError: the checkpoint can't be used.
        """
        from llama_serving.engine.batching.backends.native import Native
        from llama_serving.engine.batching.backends.portable import Portable

        if self.kernels is None:
            return Portable(
                config, weights, dtype=self.wanted.dtype, num_blocks=num_blocks, why_not=self.why_not
            )
        int8 = self.wanted.quantization == "int8"
        return Native(config, weights, self.kernels, int8=int8, num_blocks=num_blocks)


def choose(config: LlamaConfig, wanted: Wanted) -> Choice:
    """The fastest that can compute a model here.

    Raises:
        SetupError: the operator wants what only the native one has, and it can't.
    """
    kernels = _kernels(config, wanted)
    if not isinstance(kernels, str):
        return Choice(wanted, kernels)
    for setting, value, free in (
        ("QUANTIZATION", wanted.quantization, "none"),
        ("BACKEND", wanted.backend, "auto"),
    ):
        if value not in {free, "portable"}:
            raise SetupError(
                f"LLAMA_{setting}={value} needs the native backend, which can't be used: {kernels}. "
                f"Set it to {free}, or mend that."
            )
    return Choice(wanted, None, kernels)


def _kernels(config: LlamaConfig, wanted: Wanted) -> "Kernels | str":
    """The kernels, or why they can't be used."""
    from llama_serving.engine.batching.native.bindings import Kernels

    if refused := _refused(config, wanted):
        return refused
    try:
        return Kernels(build.found_or_made())
    except build.BuildError as error:
        return f"there is no compiled library: {error}"
    except (OSError, AttributeError) as error:  # (the second: it lacks a symbol)
        return f"its library can't be loaded: {error}"


def _refused(config: LlamaConfig, wanted: Wanted) -> str | None:
    from llama_serving.engine.batching.backends.native import refusal

    if wanted.backend == "portable":
        return "LLAMA_BACKEND is portable"
    if wanted.dtype != NATIVE_DTYPE:
        return f"it computes in {NATIVE_DTYPE}, not {wanted.dtype} (LLAMA_DTYPE)"
    if without := cpu.missing():
        return f"this CPU has no {', '.join(without)}"
    return refusal(config)
