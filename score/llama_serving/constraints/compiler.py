"""Constraints -> matchers over a tokenizer's bytes, by llguidance. Compiled once, kept, and copied for each sequence."""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

import numpy as np

from llama_serving.constraints import grammars, patterns
from llama_serving.constraints.constraint import Constraint, refused
from llama_serving.constraints.matcher import Mask, Matcher
from llama_serving.errors import BadRequest

MOST_KEPT: Final = 32
"""Compiled constraints; the one that was used longest ago goes first."""
LIMITS: Final[Mapping[str, Any]] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 600,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""llguidance's bounds of time and memory. An ambiguous grammar takes up to 10 ms a token before it is too complex."""
STACK: Final = 256 << 20
"""Bytes. What a constraint of 65,536 characters needs is far below; pages that are not reached take no memory."""
OPTIONS: Final = '%llguidance {"no_forcing": true}'
"""Where one text alone is possible, the model chooses its tokens too; llguidance would choose them by the tokenizer."""
SPACE: Final = r"[\x20\x09\x0A\x0D]{1,40}"
"""White space between the parts of a JSON text. Without an end, a model that is not sure writes nothing else."""
WORDS: Final = ("[a-z_]{1,30}", "[a-zA-Z0-9_ ]{1,30}")
"""Sets of tokens, beside llguidance's own for JSON, that are allowed or not at once: most patterns have such a class of characters,
and a mask then takes a tenth of the time."""
_PLACE: Final = re.compile(r"(?:line |at |^)(\d+)[:(](\d+)")


_REASONS: Final = {
    "oneOf": "the options of `oneOf` may overlap. Send `anyOf`, or options that a `const` property tells apart",
    "disjoint": "names may match several `patternProperties`, or objects with further properties are combined by `allOf`, or by `anyOf` or `$ref` "
    "beside `properties`. Put the properties into one object",
    "maxProperties": "`minProperties` and `maxProperties` are held only where `required` names all of `properties`",
    "circular": "a `$ref` with keywords beside it leads back to itself",
    "nsatisfiable": "nothing meets it",
    "NoExtension": "nothing meets it",
}
"""Parts of llguidance's messages, and what they mean for a client."""


class Compiled:
    """A compiled constraint, from which the matcher of each sequence is copied."""

    def __init__(self, state: Any, ordinary: Mask, eos: int) -> None:
        self._state, self._ordinary, self._eos = state, ordinary, eos

    def matcher(self, stop_ids: frozenset[int]) -> Matcher:
        """Return the matcher of a sequence that `stop_ids` end."""
        return Matcher(self._state.deep_copy(), self._ordinary, self._eos, stop_ids)


class Compiler:
    """Compiles constraints for one tokenizer. Thread-safe; never called on an engine's thread.

    Args:
        pieces: of each id the bytes that it adds to a text; empty for special ids.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._kept: OrderedDict[Constraint, Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self._vocabulary: _Vocabulary | None = None

    def compile(self, constraint: Constraint, at: str) -> Compiled:
        """Return the compiled constraint; `at` is its path in the body, for messages.

        Raises:
            BadRequest: it can't be held, or is too large.
        """
        with self._lock:  # (one at a time: who asks for the same waits for it)
            compiled = self._kept.pop(constraint, None) or _with_stack(lambda: self._compiled(constraint, at))
            self._kept[constraint] = compiled
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _compiled(self, constraint: Constraint, at: str) -> Compiled:
        import llguidance

        if self._vocabulary is None:
            self._vocabulary = _Vocabulary(self._pieces)
        vocabulary = self._vocabulary
        try:
            grammar = _grammar(constraint)
            state = llguidance.LLMatcher(
                vocabulary.tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**LIMITS)
            )
            fault = state.get_error()
        except Exception as error:
            raise refused(at, _reason(constraint, str(error))) from None
        if fault:
            raise refused(at, _reason(constraint, fault))
        compiled = Compiled(state, vocabulary.ordinary, vocabulary.eos)
        try:
            compiled.matcher(frozenset()).allowed(len(self._pieces))
        except BadRequest:
            raise refused(at, "nothing meets it, or it is too large") from None
        return compiled


def _with_stack(work: Callable[[], Compiled]) -> Compiled:
    """Do some work in a thread with a large stack: llguidance compiles by recursion, and an overflow would end the process."""
    done: Future[Compiled] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # (raised by `result`)
            done.set_exception(error)

    before = threading.stack_size(STACK)
    try:
        thread = threading.Thread(target=run, name="constraint", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return done.result()


class _Vocabulary:
    """The tokenizer's bytes as llguidance takes them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        import llguidance

        specials = [number for number, piece in enumerate(pieces) if not piece]
        # (llguidance knows special tokens by a name behind 0xFF, which no text has.)
        tokens = [piece or b"\xff<special %d>" % number for number, piece in enumerate(pieces)]
        tokens.append(b"\xff<end>")
        self.eos = len(pieces)
        self.ordinary = np.array([bool(piece) for piece in pieces], np.bool_)
        self.tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Bytes(tokens, [*specials, self.eos], self.eos)),
            slices=[*WORDS, *llguidance.LLTokenizer.general_slices()],
        )


class _Bytes:
    """A tokenizer for `TokenizerWrapper`. Its ids of a text are not used: no token is forced."""

    def __init__(self, tokens: Sequence[bytes], special_token_ids: Sequence[int], eos: int) -> None:
        self.tokens, self.special_token_ids = list(tokens), list(special_token_ids)
        self.eos_token_id, self.bos_token_id = eos, None
        self._single = {token: number for number, token in enumerate(tokens) if len(token) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [self._single[raw[i : i + 1]] for i in range(len(raw))]


def _grammar(constraint: Constraint) -> str:
    """Return a constraint in llguidance's Lark notation."""
    match constraint.kind:
        case "json":
            grammar = f"start: {grammars.JSON} {json.dumps(_with_options(json.loads(constraint.text)))}"
        case "regex":
            grammar = f"start: /(?:{constraint.text})/"
        case "choice":
            choices = "|".join(map(patterns.literal, json.loads(constraint.text)))
            grammar = f"start: /(?:{choices})/"
        case "grammar":
            grammar = _in_lark(constraint.text)
    return f"{OPTIONS}\n{grammar}\n"


def _with_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "x-guidance": {"whitespace_pattern": SPACE, "coerce_one_of": False, "lenient": False}}


def _in_lark(grammar: str) -> str:
    """Return a grammar in Lark's notation."""
    if not grammars.is_gbnf(grammar):
        return grammars.with_schemas(grammar, _with_options)
    from llguidance.gbnf_to_lark import gbnf_to_lark

    return str(gbnf_to_lark(grammar))


def _reason(constraint: Constraint, fault: str) -> str:
    """Return why llguidance refuses a constraint, without its text."""
    fault = fault.partition("\n")[0]  # (behind it stands the grammar)
    for sign, why in _REASONS.items():
        if sign in fault:
            return why
    if constraint.kind == "grammar":
        place = _PLACE.search(fault)
        where = f" (line {int(place[1]) - 1}, column {place[2]})" if place else ""  # (ours is the first line)
        return f"the grammar is not valid{where}, or it is too large"
    return "its combination of keywords is not supported, or it is too large"
