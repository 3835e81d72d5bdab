"""The plan of a deployment: what is there against what the files say."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.endpoints.diff import FieldChange, changes, flat
from llama_endpoints.endpoints.plan import (
    Action,
    Actual,
    Asset,
    Desired,
    PlanStep,
    Resource,
    ResourceKind,
    missing,
    plan,
)

MODEL = Asset(ResourceKind.MODEL, "m:1", None, "Package it.")
IMAGE = Asset(ResourceKind.ENVIRONMENT, "e:1", "environments/e", "")
ENDPOINT = Resource("ep", {"auth_mode": "key"})
BLUE = Resource("blue", {"instance_count": "1"}, code="abc")
DESIRED = Desired(ENDPOINT, BLUE, (MODEL, IMAGE))
ACTUAL = Actual(frozenset({"m:1", "e:1"}), ENDPOINT, BLUE, {"blue": 100})

things = st.none() | st.builds(
    Resource, st.just("x"), st.dictionaries(st.sampled_from("ab"), st.sampled_from("12")),
    st.sampled_from(["Succeeded", "Failed", "Updating"]), st.sampled_from([None, "abc", "def"]),
)  # fmt: skip
actuals = st.builds(
    Actual, st.frozensets(st.sampled_from(["m:1", "e:1"])), things, things,
    st.sampled_from([{}, {"blue": 100}, {"red": 100}, {"blue": 10, "red": 90}]),
)  # fmt: skip


def acts(desired: Desired, actual: Actual) -> str:
    return "".join(step.action.value for step in plan(desired, actual))


def test_nothing_is_done_to_what_is_as_it_should_be() -> None:
    assert acts(DESIRED, ACTUAL) == "====="


def test_all_of_it() -> None:
    assert acts(replace(DESIRED, assets=(IMAGE,)), Actual()) == "+++?>"


@given(
    desired=st.builds(replace, st.just(DESIRED), to_default=st.booleans(), online=st.booleans()), actual=actuals
)
def test_behind_a_plan_there_is_nothing_left_to_do(desired: Desired, actual: Actual) -> None:
    steps = plan(desired, actual)
    if any(step.action is Action.WAIT for step in steps):
        assert {step.action for step in steps} == {Action.WAIT}, "nothing is touched that is under way"
        return
    moved = any(step.action is Action.MOVE for step in steps)
    after = Actual(
        frozenset({"m:1", "e:1"}),
        desired.endpoint,
        desired.deployment,
        {"blue": 100} if moved else actual.traffic,
    )
    assert {step.action for step in plan(desired, after)} == {Action.KEEP}


@given(actuals)
def test_traffic_moves_only_where_nobody_has_any(actual: Actual) -> None:
    moves = [step for step in plan(DESIRED, actual) if step.action is Action.MOVE]
    assert not moves or not actual.traffic


def test_all_traffic_is_moved_where_that_is_said() -> None:
    actual = replace(ACTUAL, traffic={"red": 100})
    assert acts(replace(DESIRED, to_default=True), actual) == "====?>"
    assert acts(replace(DESIRED, to_default=True), ACTUAL) == "====="


def test_a_batch_endpoint_has_a_default() -> None:
    steps = plan(replace(DESIRED, assets=(), online=False), replace(ACTUAL, traffic={}))
    assert [str(step) for step in steps][2:] == ["> default ep: set to blue"]
    assert (
        str(plan(replace(DESIRED, online=False), replace(ACTUAL, traffic={"red": 100}))[-1])
        == "= default ep: is red"
    )


def test_what_failed_is_done_again_and_other_code_is_a_change() -> None:
    failed = replace(ACTUAL, deployment=replace(BLUE, state="Failed"))
    assert plan(DESIRED, failed)[3] == PlanStep(
        Action.UPDATE, ResourceKind.DEPLOYMENT, "ep/blue", "state Failed"
    )
    by_hand = replace(ACTUAL, deployment=replace(BLUE, code=None))
    assert plan(DESIRED, by_hand)[3].why == "code changed"


def test_what_is_missing() -> None:
    assert missing(DESIRED, Actual()) == (MODEL,)
    assert missing(DESIRED, ACTUAL) == ()


def test_a_long_list_of_changes_is_cut() -> None:
    fields = {f"f{number}": "1" for number in range(6)}
    step = plan(replace(DESIRED, deployment=Resource("blue", fields, code="abc")), ACTUAL)[3]
    assert step.why.endswith("f3 not set -> 1 and 2 more")


def test_fields_are_flat_and_references_short() -> None:
    home = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    actual = flat({
        "name": "blue", "model": f"azureml:{home}/models/m.x/versions/1", "compute": f"azureml:{home}/computes/c",
        "probe": {"period": 10, "none": None}, "properties": {"x": 1}, "code_configuration": {"code": "a", "scoring_script": "s.py"},
    })  # fmt: skip
    assert actual == {
        "model": "m.x:1",
        "compute": "c",
        "probe.period": "10",
        "code_configuration.scoring_script": "s.py",
    }
    assert flat({"model": "azureml:m.x:1", "settings": {"retry_settings": {"timeout": 5}}}) == {
        "model": "m.x:1",
        "retry_settings.timeout": "5",
    }


def test_azure_may_set_what_the_file_leaves_out_but_no_variable() -> None:
    actual = {"a": "1", "azures": "x", "environment_variables.OLD": "1"}
    assert changes({"a": "2"}, actual) == (
        FieldChange("a", "1", "2"),
        FieldChange("environment_variables.OLD", "1", None),
    )
    assert str(FieldChange("a", None, "2")) == "a not set -> 2"
