"""The roll-out as a state machine: whoever dies whenever, the traffic is whole, moves step by step, and ends new or as it was."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.endpoints.rollout import (
    MOST_MIRRORED,
    Rollout,
    Stage,
    TrafficState,
    back,
    begin,
    forward,
    from_tags,
    is_done,
    position,
    shared,
    summary,
)
from llama_endpoints.endpoints.rollout_gates import Limits, Measured, Probe, is_lost, objection, quantile
from llama_serving.errors import SetupError

BLUE = TrafficState({"blue": 100}, {}, {"team": "search"})
NAMES = ("blue", "red", "old")


@st.composite
def splits(draw: st.DrawFn) -> Mapping[str, int]:
    """Traffic to one, two or three deployments, the new one's among them or not; or none."""
    names = draw(st.lists(st.sampled_from((*NAMES, "green")), unique=True, max_size=3))
    cuts = (
        sorted(
            draw(st.lists(st.integers(1, 99), min_size=len(names) - 1, max_size=len(names) - 1, unique=True))
        )
        if names
        else []
    )
    shares = [after - before for before, after in pairwise((0, *cuts, 100))]
    return dict(zip(names, shares, strict=True)) if names else {}


steps_of = st.lists(st.integers(1, 99), unique=True, max_size=4).map(lambda some: (*sorted(some), 100))


def whole(state: TrafficState) -> None:
    """What Azure takes, and nobody's tags are lost."""
    assert sum(state.traffic.values()) in {0, 100}
    assert all(state.traffic.values())
    assert len(state.mirror) <= 1
    assert sum(state.mirror.values()) <= MOST_MIRRORED
    assert not set(state.mirror) & set(state.traffic)
    assert all(len(value) <= 256 for value in state.tags.values())
    assert state.tags["team"] == "search"


@given(
    was=splits().filter(lambda was: was.get("green") != 100),
    steps=steps_of,
    mirrored=st.integers(0, MOST_MIRRORED),
    gates=st.lists(st.booleans() | st.just(value=True), max_size=12),
    deaths=st.lists(st.sampled_from(["none", "before", "after"]), max_size=12),
)
def test_it_ends_new_or_as_it_was(
    was: Mapping[str, int], steps: tuple[int, ...], mirrored: int, gates: list[bool], deaths: list[str]
) -> None:
    azure = TrafficState(was, {}, BLUE.tags)
    stages, verdicts, dies = [], iter(gates), iter(deaths)
    current = begin(azure, "green", steps, mirrored)
    for _ in range(60):
        at = position(current, azure)
        good = next(verdicts, True)
        if not good and at < 0:
            assert azure == TrafficState(was, {}, BLUE.tags), "what never began has changed nothing"
            return
        ahead = forward(current, at, azure) if good else back(current, azure, "slow")
        whole(ahead)
        death = next(dies, "none")
        if death != "before":
            azure = ahead
            if from_tags(azure.tags) is None:
                break
            stages.append(position(current, azure))
        if death != "none":  # another machine, which knows nothing but the endpoint
            current = begin(azure, "green", (100,), 0)
    assert stages == list(range(len(stages))), "one step at a time, none twice, none left out"
    assert azure.mirror == {}
    if is_done(azure):
        assert azure.traffic == {"green": 100}
        assert len(stages) == len(current.stages)
    else:
        assert azure.traffic == was


@given(was=splits(), steps=steps_of, mirrored=st.integers(0, MOST_MIRRORED))
def test_its_share_only_rises(was: Mapping[str, int], steps: tuple[int, ...], mirrored: int) -> None:
    shares = [stage.traffic.get("green", 0) for stage in Rollout("green", was, steps, mirrored).stages]
    assert all(
        before < after for before, after in pairwise([was.get("green", 0) - 1, *shares] if mirrored else shares)
    )
    assert not shares or shares[-1] == 100


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 100), min_size=1, max_size=6), st.integers(0, 100))
def test_shares_are_whole_and_as_near_as_can_be(weights: Mapping[str, int], total: int) -> None:
    found = shared(weights, total)
    assert sum(found.values()) == total
    assert all(
        abs(found.get(name, 0) - total * weight / sum(weights.values())) < 1 for name, weight in weights.items()
    )


def test_the_usual_way() -> None:
    current = begin(BLUE, "green", (10, 50, 100), 10)
    assert current.stages == (
        Stage({"blue": 100}, {"green": 10}),
        Stage({"blue": 90, "green": 10}, {}),
        Stage({"blue": 50, "green": 50}, {}),
        Stage({"green": 100}, {}),
    )
    state = forward(current, -1, BLUE)
    assert summary(state.tags) == "A roll-out to green is in progress, from blue 100 %."
    assert begin(state, "green", (100,), 0) == current, "the steps are those that it began with"
    assert (
        summary(back(current, state, "slow").tags)
        == "The last roll-out, to green from blue 100 %: taken back: slow."
    )


@pytest.mark.parametrize(
    ("state", "to", "steps", "mirrored", "said"),
    [
        (BLUE, "blue", (100,), 10, "already has all traffic"),
        (BLUE, "green", (50, 10, 100), 10, "percentages must increase"),
        (BLUE, "green", (10, 50), 10, "end with 100"),
        (BLUE, "green", (0, 100), 10, "from at least 1"),
        (BLUE, "green", (100,), 60, "Azure mirrors 1 to 50"),
        (
            forward(Rollout("red", BLUE.traffic), -1, BLUE),
            "green",
            (100,),
            0,
            "A roll-out to red is in progress",
        ),
    ],
    ids=["all", "falling", "not all", "zero", "mirror", "another"],
)
def test_what_can_not_begin(
    state: TrafficState, to: str, steps: tuple[int, ...], mirrored: int, said: str
) -> None:
    with pytest.raises(SetupError, match=said):
        begin(state, to, steps, mirrored)


def test_traffic_that_somebody_moved_is_not_moved_on() -> None:
    current = begin(BLUE, "green", (10, 50, 100), 10)
    state = forward(current, -1, BLUE)
    with pytest.raises(SetupError, match=r"The traffic is blue 70 %, green 30 %, which is not a step"):
        position(current, TrafficState({"blue": 70, "green": 30}, {}, state.tags))


def test_twenty_deployments_and_a_hundred_steps_fit_into_tags() -> None:
    """Azure takes 256 characters a value, names of 32 and 20 deployments."""
    was = {f"{number:02}-{'n' * 29}": 5 for number in range(20)}
    azure = TrafficState(was, {}, BLUE.tags)
    current = begin(azure, "green", tuple(range(1, 101)), 10)
    for at in range(-1, 3):
        azure = forward(current, at, azure)
        whole(azure)
        assert from_tags(azure.tags) == current, "another machine knows all of it"
    taken = back(current, azure, "slow")
    whole(taken)
    assert (taken.traffic, from_tags(taken.tags, ended=True)) == (was, current)
    again = forward(begin(taken, "green", (100,), 10), -1, taken)
    assert again.tags["rollout-steps"] == "10 100"
    assert "rollout-steps-2" not in again.tags, "nothing is left of the steps before"


def test_gates_that_were_passed_are_known_everywhere() -> None:
    passed = replace(begin(BLUE, "green", (10, 100), 0), passed=("humaneval=0.02", "text-generation=0"))
    azure = forward(passed, -1, BLUE)
    whole(azure)
    assert from_tags(azure.tags) == begin(azure, "green", (100,), 0) == passed
    assert "which passed humaneval=0.02, text-generation=0" in summary(azure.tags)
    ended = back(passed, azure, "slow")
    again = forward(begin(ended, "green", (100,), 0), -1, ended)
    assert "rollout-gates" not in again.tags, "the next roll-out has its own"


TAGS = forward(begin(BLUE, "green", (10, 50, 100), 10), -1, BLUE).tags
EDITED: dict[str, dict[str, str | None]] = {
    "no steps": {"rollout-steps": None},
    "empty steps": {"rollout-steps": ""},
    "steps in words": {"rollout-steps": "10 ten 100"},
    "steps with a comma": {"rollout-steps": "10,50,100"},
    "steps that fall": {"rollout-steps": "10 50 10 100"},
    "steps without an end": {"rollout-steps": "10 10 50"},
    "only a mirror": {"rollout-steps": "10"},
    "a mirror of 60": {"rollout-steps": "60 10 100"},
    "other digits": {"rollout-steps": "10 ٥٠ 100"},
    "a huge number": {"rollout-steps": f"10 {'9' * 200} 100"},
    "no split": {"rollout-was": None},
    "a split in words": {"rollout-was": "blue=all"},
    "a split without shares": {"rollout-was": "blue"},
    "a split without a name": {"rollout-was": "=100"},
    "a split of 90": {"rollout-was": "blue=90"},
    "a split of 110": {"rollout-was": "blue=90 red=20"},
    "the same twice": {"rollout-was": "blue=50 blue=50"},
    "a share of nothing": {"rollout-was": "blue=100 red=0"},
    "a negative share": {"rollout-was": "blue=110 red=-10"},
    "a gate without a margin": {"rollout-gates": "humaneval"},
    "a gate in words": {"rollout-gates": "humaneval=0.02 mbpp=some"},
    "no name": {"rollout-to": ""},
    "two names": {"rollout-to": "green red"},
}


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("edited", EDITED.values(), ids=EDITED)
def test_tags_that_somebody_edited_are_told(edited: dict[str, str | None], *, ended: bool) -> None:
    tags = {name: value for name, value in {**TAGS, **edited}.items() if value is not None}
    if ended:
        tags["rollout-ended"] = "done"
    (name,) = edited
    said = f"{name}, which must hold"
    assert said in summary(tags)
    assert "remove the tags rollout-to, rollout-was, rollout-steps, rollout-gates, rollout-ended" in summary(
        tags
    )
    with pytest.raises(SetupError, match=said):
        from_tags(tags, ended=ended)
    if not ended:
        with pytest.raises(SetupError, match=said):
            begin(TrafficState({"blue": 100}, {}, tags), "green", (100,), 0)
        with pytest.raises(SetupError, match=said):
            position(begin(BLUE, "green", (100,), 0), TrafficState({"blue": 100}, {}, tags))


@given(
    st.dictionaries(st.sampled_from([*TAGS, "rollout-ended", "rollout-was-2", "rollout-steps-2"]), st.text())
)
def test_no_tags_bring_it_down(edited: dict[str, str]) -> None:
    assert isinstance(summary({**TAGS, **edited}), str)
    assert isinstance(summary(edited), str)


GOOD = Measured(20, 0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("limits", "new", "old", "said"),
    [
        (Limits(), GOOD, GOOD, None),
        (Limits(), GOOD, None, None),
        (Limits(), Measured(20, 1, 0.5, 1.0, "status 500"), GOOD, "5.0% of its probes failed, more than 1.0% (status 500)"),
        (Limits(error_rate=0.05), Measured(20, 1, 0.5, 1.0), GOOD, None),
        (Limits(p50_s=0.4), GOOD, GOOD, "p50 is 0.50 s, more than 0.40 s"),
        (Limits(p95_s=0.9), GOOD, GOOD, "p95 is 1.00 s, more than 0.90 s"),
        (Limits(p95_s=1.0), GOOD, GOOD, None),
        (Limits(), Measured(20, 0, 0.5, 1.6), GOOD, "p95 is 1.60 s, more than 1.5 times the previous deployment's 1.00 s"),
        (Limits(), Measured(20, 0, 0.01, 0.05), Measured(20, 0, 0.01, 0.01), None),
        (Limits(slowdown=None), Measured(20, 0, 0.5, 9.0), GOOD, None),
        (Limits(), GOOD, Measured.of([Probe(1.0, "status 500")]), None),
    ],
)  # fmt: skip
def test_gates(limits: Limits, new: Measured, old: Measured | None, said: str | None) -> None:
    assert objection(limits, new, old) == said


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@given(st.integers(1, 200), st.floats(0, 1), st.data())
def test_only_what_is_lost_ends_early(probes: int, rate: float, data: st.DataObject) -> None:
    failed = data.draw(st.integers(0, probes))
    refused = (
        objection(Limits(error_rate=rate, slowdown=None), Measured(probes, failed, 1, 1), None) is not None
    )
    assert is_lost(Limits(error_rate=rate), failed, probes) is refused
