"""The catalog of models: one frozen row each, with a source for each fact. Nothing is derived from a name.

Shapes come from the `config.json` and parameter counts that Meta publishes (arXiv 2307.09288 table 1,
arXiv 2308.12950 section 2); the counts are derived here from the shapes and agree with them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

PAPER: Final = "arXiv 2308.12950"
LLAMA_2_PAPER: Final = "arXiv 2307.09288"
CARD_70B: Final = "codellama/CodeLlama-70b-Instruct-hf model card"
META_ON_70B: Final = "Meta's staff on github.com/meta-llama/codellama/issues/188"


class DialogFormat(StrEnum):
    """How a dialog becomes a prompt; `prompts/chat.py` builds both formats."""

    INST = "inst"  # [INST] … [/INST]: Llama-2-chat, Code Llama Instruct 7B to 34B
    SOURCE = "source"  # Source: … <step>: Code Llama 70B Instruct


class InfillOrder(StrEnum):
    """Order of the parts of an infilling prompt. PSM is the better one (arXiv 2308.12950, section 3.3)."""

    PSM = "psm"
    SPM = "spm"


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """A value and its source."""

    value: T
    source: str


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama.

    Attributes:
        own_head_dim: width of a head, where it is not `hidden / heads`.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    tied_embeddings: bool = False
    own_head_dim: int | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.own_head_dim or self.hidden // self.heads

    @property
    def linear_parameters(self) -> int:
        """Number of weights in the linear layers: those that quantization applies to."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        norms = (2 * self.layers + 1) * self.hidden
        return embeddings + self.linear_parameters + norms

    def weight_bytes(self, bytes_per_weight: int = 2) -> int:
        """Bytes of all weights; two bytes a weight is bf16."""
        return self.parameters * bytes_per_weight

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values for one token of context."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """Special ids of an infilling prompt, and the id that ends the middle."""

    prefix: int
    suffix: int
    middle: int
    eot: int
    order: InfillOrder = InfillOrder.PSM


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of a checkpoint are quantized.

    Attributes:
        method: `awq`, `gptq` or `compressed-tensors`, as config.json's `quant_method` has it.
        bits: of a weight.
        number: `int` or `float`: the type of those bits.
        group_size: weights that share a scale; None means a whole row, a block or the whole matrix.
        activations: type that a linear layer's input is rounded to, such as `int8` or `fp8`; None means not rounded.
    """

    method: str
    bits: int
    number: str = "int"
    group_size: int | None = None
    activations: str | None = None

    @property
    def weights(self) -> str:
        """Type of a weight: `int4`, `int8` or `fp8`."""
        return f"{'fp' if self.number == 'float' else 'int'}{self.bits}"

    def __str__(self) -> str:
        """Return a short description: `gptq int4 in groups of 128`."""
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        activations = f", activations {self.activations}" if self.activations else ""
        return f"{self.method} {self.weights}{groups}{activations}"


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """One model: its prompt formats, context and default sampling.

    Attributes:
        name: the hub's name, such as `codellama/CodeLlama-7b-Instruct-hf`.
        trained_positions: tokens of context that it was trained on.
        max_context: tokens of context that it can be configured for.
        infill: the infilling ids, or None where the model has no infilling.
        step_id: the id that ends a message in the SOURCE dialog format.
        instruct: the variant of the same size to use for dialogs, where this one has no dialog format.
        dtype: type that the weights are served in by default.
        quantization: of the packaged checkpoint's weights; None where they are plain numbers of `dtype`.
    """

    name: str
    shape: Shape
    source: str
    rope_theta: float
    trained_positions: Fact[int]
    max_context: Fact[int]
    dialog: DialogFormat | None
    infill: Fact[InfillTokens | None]
    temperature: float
    top_p: float
    bos_id: int = 1
    eos_id: int = 2
    step_id: int | None = None
    instruct: str | None = None
    dtype: str = "bfloat16"
    quantization: Quantization | None = None

    @property
    def title(self) -> str:
        """The name, and the quantization if there is one."""
        return self.name if self.quantization is None else f"{self.name} ({self.quantization})"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the model was trained for: `completion`, and `infilling` and `chat` where it has their formats."""
        infilling = ("infilling",) if self.infill.value is not None else ()
        return ("completion", *infilling, *(("chat",) if self.dialog is not None else ()))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a completion or a dialog turn."""
        return frozenset({self.eos_id} | ({self.step_id} if self.step_id is not None else set()))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that never stand for text, whatever the tokenizer's file says."""
        tokens = self.infill.value
        infill = (tokens.prefix, tokens.suffix, tokens.middle, tokens.eot) if tokens else ()
        return self.stop_ids | {self.bos_id, *infill}

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON, as packaging records it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "ModelVariant":
        """Return the row that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: the record was not written by this version.
        """
        infill = row["infill"]
        tokens = infill["value"]
        if tokens is not None:
            tokens = InfillTokens(**{**tokens, "order": InfillOrder(tokens["order"])})
        quantization = row.get("quantization")  # (records of before 0.2 have none)
        return cls(
            **{
                **row,
                "shape": Shape(**row["shape"]),
                "trained_positions": Fact(**row["trained_positions"]),
                "max_context": Fact(**row["max_context"]),
                "dialog": None if row["dialog"] is None else DialogFormat(row["dialog"]),
                "infill": Fact(tokens, infill["source"]),
                "quantization": None if quantization is None else Quantization(**quantization),
            }
        )


_7B: Final = Shape(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, vocab=32000)
_13B: Final = Shape(layers=40, hidden=5120, ffn=13824, heads=40, kv_heads=40, vocab=32000)
_34B: Final = Shape(layers=48, hidden=8192, ffn=22016, heads=64, kv_heads=8, vocab=32000)
_70B: Final = Shape(layers=80, hidden=8192, ffn=28672, heads=64, kv_heads=8, vocab=32000)

_HAS_INFILL: Final[Fact[InfillTokens | None]] = Fact(
    InfillTokens(prefix=32007, suffix=32008, middle=32009, eot=32010), f"{PAPER} section 2.3"
)
_NO_INFILL: Final[Fact[InfillTokens | None]] = Fact(None, f"{PAPER} table 1")
_INFILL_70B: Final[Fact[InfillTokens | None]] = Fact(
    None, f"sources disagree ({PAPER} says yes, the README and {CARD_70B} say no): off"
)
_CODE_CONTEXT: Final = Fact(16384, f"{PAPER} section 2.4")
_CODE_REACH: Final = Fact(100_000, f"{PAPER} section 3.4, by extrapolation")
_70B_SHORT: Final = Fact(4096, META_ON_70B)


def _with_vocab(shape: Shape, vocab: int) -> Shape:
    return replace(shape, vocab=vocab)


def _code_llama(  # noqa: PLR0913  (a row is wide)
    size: str,
    tuning: str,
    shape: Shape,
    *,
    infill: Fact[InfillTokens | None] = _NO_INFILL,
    short: bool = False,
    dialog: DialogFormat | None = None,
    step_id: int | None = None,
) -> ModelVariant:
    def hub(kind: str) -> str:
        return f"codellama/CodeLlama-{size}-{kind}hf"

    return ModelVariant(
        name=hub(tuning),
        shape=shape,
        source=f"{PAPER} and the config.json of the hub's {hub(tuning)}",
        rope_theta=1e4 if short else 1e6,
        trained_positions=_70B_SHORT if short else _CODE_CONTEXT,
        max_context=_70B_SHORT if short else _CODE_REACH,
        dialog=dialog,
        infill=infill,
        temperature=0.2,
        top_p=0.9,
        step_id=step_id,
        instruct=None if dialog else hub("Instruct-"),
    )


def _llama_2(size: str, tuning: str, shape: Shape) -> ModelVariant:
    chat = f"meta-llama/Llama-2-{size}-chat-hf"
    return ModelVariant(
        name=f"meta-llama/Llama-2-{size}-{tuning}hf",
        shape=shape,
        source=f"{LLAMA_2_PAPER} table 1",
        rope_theta=1e4,
        trained_positions=Fact(4096, f"{LLAMA_2_PAPER} table 1"),
        max_context=Fact(4096, f"{LLAMA_2_PAPER} table 1"),
        dialog=DialogFormat.INST if tuning else None,
        infill=Fact(None, "Llama-2 was not trained to infill"),
        temperature=0.8,
        top_p=0.7,
        instruct=None if tuning else chat,
    )


NANO: Final = ModelVariant(
    name="nano",
    shape=Shape(layers=5, hidden=384, ffn=1032, heads=6, kv_heads=2, vocab=4096, tied_embeddings=True),
    source="deployment/llama_endpoints/nano/config.json",
    rope_theta=1e6,
    trained_positions=Fact(2048, "deployment/llama_endpoints/nano/config.json"),
    max_context=Fact(2048, "deployment/llama_endpoints/nano/config.json"),
    dialog=DialogFormat.INST,
    # A model this small continues a prefix well but rarely joins it to a suffix; its card has the figures.
    infill=Fact(
        InfillTokens(4091, 4092, 4093, 4094, order=InfillOrder.SPM),
        "deployment/llama_endpoints/nano/tokenizer.json",
    ),
    temperature=0.2,
    top_p=0.9,
    dtype="float32",
)

_INST: Final = DialogFormat.INST

CATALOG: Final[Mapping[str, ModelVariant]] = {
    row.name: row
    for row in (
        _code_llama("7b", "", _with_vocab(_7B, 32016), infill=_HAS_INFILL),
        _code_llama("7b", "Python-", _7B),
        _code_llama("7b", "Instruct-", _with_vocab(_7B, 32016), infill=_HAS_INFILL, dialog=_INST),
        _code_llama("13b", "", _with_vocab(_13B, 32016), infill=_HAS_INFILL),
        _code_llama("13b", "Python-", _13B),
        _code_llama("13b", "Instruct-", _with_vocab(_13B, 32016), infill=_HAS_INFILL, dialog=_INST),
        _code_llama("34b", "", _34B),
        _code_llama("34b", "Python-", _34B),
        _code_llama("34b", "Instruct-", _34B, dialog=_INST),
        _code_llama("70b", "", _with_vocab(_70B, 32016), infill=_INFILL_70B),
        _code_llama("70b", "Python-", _with_vocab(_70B, 32016), short=True),
        _code_llama(
            "70b",
            "Instruct-",
            _with_vocab(_70B, 32016),
            infill=_INFILL_70B,
            short=True,
            dialog=DialogFormat.SOURCE,
            step_id=32015,
        ),
        _llama_2("7b", "", _7B),
        _llama_2("7b", "chat-", _7B),
        _llama_2("13b", "", _13B),
        _llama_2("13b", "chat-", _13B),
        _llama_2("70b", "", _70B),
        _llama_2("70b", "chat-", _70B),
        NANO,
    )
}
