"""Speculation by prompt lookup: the next tokens are guessed from what followed the last ones earlier in the same text.

Guessed tokens are further rows of the sequence's step. Each row's logits are drawn from as ever, and a guess is accepted while it
equals what was drawn, so the tokens are those of one row a step. It sees ids and counts, never tensors.
"""

import math
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import Final

LENGTHS: Final = (8, 4, 2)
"""Numbers of last tokens that are looked up, the longest first."""
KEPT: Final = 0.9
"""Weight of older steps against the next one, in a sequence's share of accepted guesses."""
PROBE: Final = 16
"""Steps without a guess after which one token is guessed, since the text may have changed. As many times more as sequences
generate, so that a full step has no more such rows than one of a single sequence."""
OLDER: Final = 0.98
"""Weight of older steps against the next one, in the cost of a row."""
ROW: Final = 1 / 32
"""Cost of a further row, in steps of one row, until it is measured."""
CHEAPEST: Final = 1 / 256
"""Least cost of a further row: a measured one may be below 0 by chance."""
MARGIN: Final = 1.5
"""Times its cost that a guess must be expected to bring: looking it up and drawing from it take time too."""
OUTLIER: Final = 3.0
"""Times the mean duration above which a step was interrupted, and says nothing about its rows."""


class PromptLookup:
    """Where each run of tokens in a sequence's ids was last followed by another token.

    Args:
        ids: of the sequence; the list grows.
    """

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids
        self._next: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def guess(self, count: int) -> tuple[int, ...]:
        """Return `count` tokens that may follow; none if the last tokens are new."""
        self._index()
        ids = self._ids
        for length in LENGTHS:
            found = self._next.get(tuple(ids[-length:])) if length < len(ids) else None
            if found is not None:
                # Past the end the text goes on with what was guessed.
                return tuple(ids[found + n % (len(ids) - found)] for n in range(count))
        return ()

    def _index(self) -> None:
        """Index the ids that are new. (A prompt has thousands, so no step of it is interpreted.)"""
        ids, end = self._ids, len(self._ids)
        for length in (one for one in LENGTHS if one < end):
            first = max(self._indexed, length)
            runs = zip(*(ids[first - length + n : end - length + n] for n in range(length)), strict=True)
            self._next.update(zip(runs, range(first, end), strict=True))
        self._indexed = end


@dataclass(slots=True)
class Guesses:
    """One sequence's lookup, and how many of its guesses were accepted."""

    lookup: PromptLookup
    accepted: float = 1.0
    tried: float = 3.0
    steps_without: int = 0

    @property
    def share(self) -> float:
        """Probability that a guess is accepted if those before it were."""
        return self.accepted / self.tried

    def observe(self, guessed: int, accepted: int) -> None:
        """Record one step's guesses; those after the first wrong one were not tried."""
        self.accepted = self.accepted * KEPT + accepted
        self.tried = self.tried * KEPT + min(accepted + 1, guessed)
        self.steps_without = 0


@dataclass(slots=True)
class StepCost:
    """The duration of a step as a line over its rows: a decayed least-squares fit."""

    _weight: float = 0.0
    _rows: float = 0.0
    _seconds: float = 0.0
    _rows_squared: float = 0.0
    _products: float = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Record the duration of one step."""
        if self._weight and seconds > OUTLIER * self._seconds / self._weight:
            seconds = OUTLIER * self._seconds / self._weight
        for name, value in (
            ("_weight", 1), ("_rows", rows), ("_seconds", seconds), ("_rows_squared", rows * rows), ("_products", rows * seconds),
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) * OLDER + value)

    def row(self, rows: int) -> float:
        """Return the cost of a further row, as a share of the duration of a step with `rows` rows."""
        spread = self._rows_squared * self._weight - self._rows * self._rows
        if spread <= 1e-6 * self._rows_squared * self._weight:  # all steps had as many rows
            return ROW / (1 + ROW * (rows - 1))
        slope = (self._products * self._weight - self._rows * self._seconds) / spread
        step = (self._seconds - slope * self._rows) / self._weight + slope * rows
        return max(slope / step, CHEAPEST) if step > 0 else CHEAPEST


@dataclass(slots=True)
class Speculation:
    """Decides how many tokens are guessed.

    A guess costs a row. It pays while the chance that it is accepted is above what the row costs, in the time that the step
    takes for a token: at 16 sequences a step makes 16 tokens, so that a row must be likelier to pay than at one.

    Attributes:
        most: guesses of a sequence in a step; 0 is none.
        guessed: tokens so far; `accepted` of them were right.
    """

    most: int
    cost: StepCost = field(default_factory=StepCost)
    guessed: int = 0
    accepted: int = 0

    def guess(self, guesses: Guesses, generating: int, left: int) -> tuple[int, ...]:
        """Return the tokens to guess for one sequence.

        Args:
            guesses: of the sequence.
            generating: sequences in the step.
            left: most tokens.
        """
        most = min(self.most, left)
        if most < 1:
            return ()
        count = min(most, self._count(guesses.share, MARGIN * self.cost.row(generating) * generating))
        guesses.steps_without += 1
        if guesses.steps_without > PROBE * generating:
            count = max(count, 1)
        return guesses.lookup.guess(count) if count else ()

    def observe(self, guesses: Guesses, guessed: int, accepted: int) -> None:
        """Record what became of one sequence's guesses."""
        self.guessed += guessed
        self.accepted += accepted
        guesses.observe(guessed, accepted)

    def _count(self, share: float, least: float) -> int:
        """Return how many guesses pay, if each is accepted with probability `share` and must be with `least`."""
        if share <= least:
            return 0
        return self.most if share >= 1 else int(math.log(least) / math.log(share))


def accepted(guessed: Ids[int], drawn: Ids[int]) -> int:
    """Return how many guesses equal what was drawn, up to the first that does not."""
    return next(
        (n for n, (guess, token) in enumerate(zip(guessed, drawn, strict=False)) if guess != token),
        len(guessed),
    )
