"""Selects the backend for a model on this machine."""

import logging
import platform
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
    from llama_serving.engine.batching.packed_copy import PackedCopy

_log = logging.getLogger(__name__)

NATIVE_DTYPE: Final = "bfloat16"


@dataclass(frozen=True, slots=True)
class BackendRequest:
    """The backend that the operator requests.

    Attributes:
        dtype: `float32` or `bfloat16`, of weights, keys and values.
        backend: `native`, `portable`, or `auto`: native if it supports the model here, else portable.
        quantization: of the weights: `int8` with half the bytes of bfloat16, `int4` with 28 %, or `none`.
        instructions: name of the instruction set that native kernels use, or `auto`: the fastest that the CPU has.
    """

    dtype: str
    backend: str = "auto"
    quantization: str = "none"
    instructions: str = "auto"


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
        self,
        config: LlamaConfig,
        weights: Tensors,
        num_blocks: Callable[[LlamaConfig], int],
        copy: "PackedCopy | None" = None,
    ) -> "Backend":
        """Load a model; quantized weights are read from the copy, or kept there for the next start.

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
        saved = {} if copy is None else copy.read()
        native = Native(
            config,
            weights,
            self.kernels,
            quantization=self.request.quantization,
            saved=saved,
            num_blocks=num_blocks,
        )
        if copy is not None:
            copy.write(native.packed)
        return native


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
        ("CPU_INSTRUCTIONS", request.instructions, "auto"),
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
    if refused := _refused(config, request):
        return refused
    sets = _instruction_sets(request.instructions)
    if isinstance(sets, str):
        return sets
    reasons: list[str] = []
    for one in sets:
        kernels = _loaded(one)
        if not isinstance(kernels, str):
            for better, reason in zip(sets, reasons, strict=False):
                _log.warning(
                    "the kernels for %s can't be used, those for %s are: %s", better.name, one.name, reason
                )
            return kernels
        reasons.append(kernels)
    return reasons[0]


def _refused(config: LlamaConfig, request: BackendRequest) -> str | None:
    from llama_serving.engine.batching.backends.native import refusal

    if request.backend == "portable":
        return "LLAMA_BACKEND is portable"
    if request.dtype != NATIVE_DTYPE:
        return f"it computes in {NATIVE_DTYPE}, not {request.dtype} (LLAMA_DTYPE)"
    return refusal(config)


def _instruction_sets(name: str) -> "tuple[cpu.InstructionSet, ...] | str":
    """Return the requested instruction set or, for `auto`, all that this CPU has, or why there is none."""
    here, usable = cpu.of_machine(), cpu.usable()
    wanted = usable if name == "auto" else tuple(one for one in usable if one.name == name)
    if wanted:
        return wanted
    if not here:
        return f"there are no kernels for {platform.machine()}"
    lacks = next((cpu.missing(one) for one in cpu.SETS if one.name == name), cpu.missing(here[-1]))
    has = f". It has what {', '.join(one.name for one in usable)} need" if usable else ""
    return f"this CPU has no {', '.join(lacks)}{has}"


def _loaded(instructions: "cpu.InstructionSet") -> "Kernels | str":
    from llama_serving.engine.batching.native.bindings import Kernels

    try:
        return Kernels(build.found_or_made(instructions), instructions.name)
    except build.BuildError as error:
        return f"there is no compiled library: {error}"
    except (OSError, AttributeError) as error:  # (AttributeError: a symbol is missing)
        return f"its library can't be loaded: {error}"
