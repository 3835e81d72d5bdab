"""Free numbers, kept as contiguous extents, so that a long prompt can get contiguous blocks."""


class FreeExtents:
    """Allocates from the numbers 0 to `number` - 1, all free at first."""

    def __init__(self, number: int) -> None:
        self._lengths = {0: number} if number else {}
        self._starts = {number: 0} if number else {}
        self._free = number

    def __len__(self) -> int:
        return self._free

    def allocate(self, number: int) -> list[int]:
        """Return `number` free numbers in ascending order: contiguous if one extent is large enough.

        Raises:
            ValueError: fewer are free.
        """
        if number > self._free:
            raise ValueError(f"{number} requested, {self._free} free")
        taken: list[int] = []
        fitting = next((start for start, length in self._lengths.items() if length >= number), None)
        if fitting is not None:
            return self._cut(fitting, number) if number else taken
        while len(taken) < number:
            start, length = next(iter(self._lengths.items()))
            taken += self._cut(start, min(length, number - len(taken)))
        return sorted(taken)

    def free(self, one: int) -> None:
        """Free one number, and merge it with its neighbours."""
        start, end = one, one + 1
        if one in self._starts:
            start = self._starts.pop(one)
            del self._lengths[start]
        if end in self._lengths:
            length = self._lengths.pop(end)
            del self._starts[end + length]
            end += length
        self._put(start, end)
        self._free += 1

    def _cut(self, start: int, number: int) -> list[int]:
        length = self._lengths.pop(start)
        del self._starts[start + length]
        if length > number:
            self._put(start + number, start + length)
        self._free -= number
        return list(range(start, start + number))

    def _put(self, start: int, end: int) -> None:
        self._lengths[start] = end - start
        self._starts[end] = start
