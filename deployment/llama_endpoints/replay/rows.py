"""Replays the rows of a batch job, many at a time."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llama_endpoints.replay.records import RecordedRow
from llama_endpoints.replay.replay import Replayer
from llama_endpoints.replay.verdict import Difference, Place, Verdict, first_difference
from llama_serving.contract.request import Generation
from llama_serving.service.service import Service


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """The outcome of one row.

    Attributes:
        verdicts: one for each of its receipts, or one of its outputs; none if it can't be replayed.
        skipped: why it can't be; empty if it was.
    """

    name: str
    verdicts: tuple[Verdict, ...] = ()
    skipped: str = ""

    @property
    def identical(self) -> bool:
        """Whether it was replayed, and gave the same bytes."""
        return not self.skipped and all(one.identical for one in self.verdicts)


async def replay_rows(
    service: Service, rows: Sequence[RecordedRow], on_row: Callable[[], object] = lambda: None
) -> list[RowVerdict]:
    """Replay rows beside each other, and return their outcomes in the order of the rows.

    Raises:
        ServingError: a row can't be run here.
    """
    replayer, left = Replayer(service), enumerate(rows)
    found: dict[int, RowVerdict] = {}

    async def work(left: Iterator[tuple[int, RecordedRow]]) -> None:
        for number, row in left:
            found[number] = await _replayed(service, replayer, row)
            on_row()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(service.settings.max_num_seqs):
                group.create_task(work(left))
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return [found[number] for number in range(len(rows))]


async def _replayed(service: Service, replayer: Replayer, row: RecordedRow) -> RowVerdict:
    if row.claims:
        verdicts = await replayer.areplay_all((row.request, claim) for claim in row.claims)
        return RowVerdict(row.name, tuple(verdicts))
    (prepared,) = await asyncio.to_thread(service.prepare, row.request)
    if row.request.parameters.seed is None and prepared.params[0].temperature > 0:
        return RowVerdict(row.name, skipped="it was sampled without a seed, and has no receipt")
    if None in row.texts:
        return RowVerdict(row.name, skipped="it is a call, and has no receipt")
    (sequences,) = await service.agenerate(row.request)
    return RowVerdict(row.name, tuple(_compared(row, sequences)))


def _compared(row: RecordedRow, sequences: Sequence[Generation]) -> Iterator[Verdict]:
    """Yield a verdict for each output of a row without receipts."""
    texts = [one.full_text for one in sequences]
    if len(texts) != len(row.texts):
        yield Verdict(row.name, (Difference("outputs", len(row.texts), len(texts)),))
        return
    for index, (expected, found) in enumerate(zip(row.texts, texts, strict=True)):
        place = first_difference(expected or "", found)
        differs = () if place is None else (Difference("text", "another text", "the replay's"),)
        first = None if place is None else Place(place, None)
        yield Verdict(f"sequence {index}", differs, first=first)
