"""The plan of a deployment: what is there against what the files say."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.endpoints.diff import Change, changes, flat
from llama_endpoints.endpoints.plan import Act, Asset, Noun, Step, There, Thing, Wanted, missing, plan

MODEL = Asset(Noun.MODEL, "m:1", None, "Package it.")
IMAGE = Asset(Noun.ENVIRONMENT, "e:1", "environments/e", "")
ENDPOINT = Thing("ep", {"auth_mode": "key"})
BLUE = Thing("blue", {"instance_count": "1"}, code="abc")
WANTED = Wanted(ENDPOINT, BLUE, (MODEL, IMAGE))
THERE = There(frozenset({"m:1", "e:1"}), ENDPOINT, BLUE, {"blue": 100})

things = st.none() | st.builds(
    Thing, st.just("x"), st.dictionaries(st.sampled_from("ab"), st.sampled_from("12")),
    st.sampled_from(["Succeeded", "Failed", "Updating"]), st.sampled_from([None, "abc", "def"]),
)  # fmt: skip
theres = st.builds(
    There, st.frozensets(st.sampled_from(["m:1", "e:1"])), things, things,
    st.sampled_from([{}, {"blue": 100}, {"red": 100}, {"blue": 10, "red": 90}]),
)  # fmt: skip


def acts(wanted: Wanted, there: There) -> str:
    return "".join(step.act.value for step in plan(wanted, there))


def test_nothing_is_done_to_what_is_as_it_should_be() -> None:
    assert acts(WANTED, THERE) == "====="


def test_all_of_it() -> None:
    assert acts(replace(WANTED, assets=(IMAGE,)), There()) == "+++?>"


@given(wanted=st.builds(replace, st.just(WANTED), to_default=st.booleans(), online=st.booleans()), there=theres)
def test_behind_a_plan_there_is_nothing_left_to_do(wanted: Wanted, there: There) -> None:
    steps = plan(wanted, there)
    if any(step.act is Act.WAIT for step in steps):
        assert {step.act for step in steps} == {Act.WAIT}, "nothing is touched that is under way"
        return
    moved = any(step.act is Act.MOVE for step in steps)
    after = There(
        frozenset({"m:1", "e:1"}), wanted.endpoint, wanted.deployment, {"blue": 100} if moved else there.traffic
    )
    assert {step.act for step in plan(wanted, after)} == {Act.KEEP}


@given(theres)
def test_traffic_moves_only_where_nobody_has_any(there: There) -> None:
    moves = [step for step in plan(WANTED, there) if step.act is Act.MOVE]
    assert not moves or not there.traffic


def test_all_traffic_is_moved_where_that_is_said() -> None:
    there = replace(THERE, traffic={"red": 100})
    assert acts(replace(WANTED, to_default=True), there) == "====?>"
    assert acts(replace(WANTED, to_default=True), THERE) == "====="


def test_a_batch_endpoint_has_a_default() -> None:
    steps = plan(replace(WANTED, assets=(), online=False), replace(THERE, traffic={}))
    assert [str(step) for step in steps][2:] == ["> default ep: make it blue"]
    assert (
        str(plan(replace(WANTED, online=False), replace(THERE, traffic={"red": 100}))[-1])
        == "= default ep: is red"
    )


def test_what_failed_is_done_again_and_other_code_is_a_change() -> None:
    failed = replace(THERE, deployment=replace(BLUE, state="Failed"))
    assert plan(WANTED, failed)[3] == Step(Act.UPDATE, Noun.DEPLOYMENT, "ep/blue", "it is Failed")
    by_hand = replace(THERE, deployment=replace(BLUE, code=None))
    assert plan(WANTED, by_hand)[3].why == "other code"


def test_what_is_missing() -> None:
    assert missing(WANTED, There()) == (MODEL,)
    assert missing(WANTED, THERE) == ()


def test_a_long_list_of_changes_is_cut() -> None:
    fields = {f"f{number}": "1" for number in range(6)}
    step = plan(replace(WANTED, deployment=Thing("blue", fields, code="abc")), THERE)[3]
    assert step.why.endswith("f3 not set -> 1 and 2 more")


def test_fields_are_flat_and_references_short() -> None:
    home = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    there = flat({
        "name": "blue", "model": f"azureml:{home}/models/m.x/versions/1", "compute": f"azureml:{home}/computes/c",
        "probe": {"period": 10, "none": None}, "properties": {"x": 1}, "code_configuration": {"code": "a", "scoring_script": "s.py"},
    })  # fmt: skip
    assert there == {
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
    there = {"a": "1", "azures": "x", "environment_variables.OLD": "1"}
    assert changes({"a": "2"}, there) == (Change("a", "1", "2"), Change("environment_variables.OLD", "1", None))
    assert str(Change("a", None, "2")) == "a not set -> 2"
