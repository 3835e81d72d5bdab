"""`make house`: the rooms of both packages, the floors that they stand on, and the arrows between them.

A room is a direct child of a package. An arrow says that a module in one room imports a module in another. Rooms that import each
other, directly or by way of others, form a circle. A room's floor is the length of the longest way down from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import click
import grimp

PACKAGES: Final = ("llama_endpoints", "llama_serving")

Arrows = Mapping[str, frozenset[str]]
"""Room -> the rooms that it imports."""


@dataclass(frozen=True, slots=True)
class House:
    """The rooms of one package."""

    arrows: Arrows

    @classmethod
    def read(cls, package: str) -> "House":
        """The package as its source files are."""
        graph = grimp.build_graph(package, cache_dir=None)
        rooms = graph.find_children(package)
        for room in rooms:
            graph.squash_module(room)
        return cls(
            {room: frozenset(graph.find_modules_directly_imported_by(room)) & rooms - {room} for room in rooms}
        )

    @property
    def circles(self) -> list[frozenset[str]]:
        """Groups of rooms that import each other."""
        below = {room: self._below(room) for room in self.arrows}
        groups = {frozenset(b for b in below[a] if a in below[b]) for a in self.arrows if a in below[a]}
        return sorted(groups, key=sorted)

    @property
    def floors(self) -> list[list[str]]:
        """Rooms by their floor, from the lowest up; a circle stands on one floor."""
        circles = {room: circle for circle in self.circles for room in circle}
        floors: dict[str, int] = {}

        def floor(room: str) -> int:
            if room not in floors:
                mine = circles.get(room, frozenset({room}))
                below = {other for one in mine for other in self.arrows[one]} - mine
                height = 1 + max(map(floor, below), default=-1)
                floors.update(dict.fromkeys(mine, height))
            return floors[room]

        height = 1 + max(map(floor, self.arrows), default=-1)
        return [sorted(room for room in floors if floors[room] == level) for level in range(height)]

    def _below(self, room: str) -> set[str]:
        found: set[str] = set()
        ahead = set(self.arrows[room])
        while ahead:
            one = ahead.pop()
            found.add(one)
            ahead |= self.arrows[one] - found
        return found


@click.command()
def main() -> None:
    """Print the rooms of both packages, floor by floor from the top."""
    for package in PACKAGES:
        house = House.read(package)
        arrows = sum(map(len, house.arrows.values()))
        click.echo(
            f"{package}: {len(house.arrows)} rooms on {len(house.floors)} floors, {arrows} arrows, {len(house.circles)} circles"
        )
        for number, rooms in reversed(list(enumerate(house.floors))):
            click.echo(f"  {number}  {', '.join(room.rpartition('.')[2] for room in rooms)}")
        for circle in house.circles:
            click.echo(f"  circle: {', '.join(sorted(circle))}")


if __name__ == "__main__":
    main()
