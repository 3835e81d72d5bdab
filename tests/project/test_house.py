"""The house as it is counted: floors, arrows and circles."""

from tests.support.house import PACKAGES, House


def house(**arrows: str) -> House:
    return House({room: frozenset(below) for room, below in arrows.items()})


def test_floors_are_the_longest_ways_down() -> None:
    found = house(a="bc", b="c", c="", d="")
    assert found.floors == [["c", "d"], ["b"], ["a"]]
    assert found.circles == []


def test_a_circle_is_found_whatever_is_between() -> None:
    found = house(a="b", b="c", c="a", d="a", e="")
    assert found.circles == [frozenset("abc")]
    assert found.floors == [["a", "b", "c", "e"], ["d"]]


def test_no_rooms_are_a_circle_here() -> None:
    for package in PACKAGES:
        found = House.read(package)
        assert found.circles == []
        assert len(found.arrows) > 10
