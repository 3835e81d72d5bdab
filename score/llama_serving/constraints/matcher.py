"""Which tokens may come next in one constrained sequence."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llama_serving.errors import BadRequest

Mask = NDArray[np.bool_]

TOO_COMPLEX: Final = (
    "The constraint is too complex to follow further. Send a simpler schema, pattern or grammar."
)


class Matcher:
    """The state of one constrained sequence: advanced by its tokens, it says which may follow.

    Args:
        state: llguidance's matcher, at the start of a text.
        ordinary: (vocabulary,) ids that stand for text; no other is ever allowed inside of a text.
        eos: the id that llguidance allows where the text may end.
        stop_ids: ids of the sequence that end it.
    """

    def __init__(self, state: Any, ordinary: Mask, eos: int, stop_ids: frozenset[int]) -> None:
        self._state, self._ordinary, self._eos = state, ordinary, eos
        self._ends = np.array(
            sorted(i for i in stop_ids if i < len(ordinary) and not ordinary[i]), dtype=np.int64
        )
        self._stop_ids = stop_ids

    def allowed(self, vocab: int, ahead: Sequence[int] = ()) -> tuple[Mask, bool]:
        """Return the ids that may come next, (vocab,), and whether only the end may.

        Args:
            vocab: number of ids.
            ahead: guessed tokens, taken for this answer alone. Behind one that may not come, any may.

        Raises:
            BadRequest: the constraint has become too complex.
        """
        state = self._state
        if ahead:
            state = state.deep_copy()
            if state.try_consume_tokens(list(ahead)) < len(ahead):
                return np.ones(vocab, np.bool_), False
        raw = np.frombuffer(state.compute_bitmask(), np.uint8)
        if state.is_error():
            raise _too_complex()
        bits = np.unpackbits(raw, count=len(self._ordinary) + 1, bitorder="little").view(np.bool_)
        mask = bits[:-1] & self._ordinary
        over = not mask.any()
        may_end = bool(bits[self._eos])
        if over and not may_end:
            raise _too_complex()
        if vocab != len(mask):
            mask = np.resize(np.pad(mask, (0, max(0, vocab - len(mask)))), vocab)
        if may_end:
            mask[self._ends[self._ends < vocab]] = True
        return mask, over

    def advance(self, token_id: int) -> None:
        """Take the next token, which was allowed.

        Raises:
            BadRequest: the constraint has become too complex.
        """
        if token_id not in self._stop_ids and not self._state.consume_token(token_id):
            raise _too_complex()


def _too_complex() -> BadRequest:
    return BadRequest(TOO_COMPLEX, code="unsupported_constraint")
