"""A row is the same request by each route as in a batch job, and its answer the same text; cuts are prefixes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.targets.endpoint_target import EndpointTarget
from llama_endpoints.evaluation.targets.protocols import Protocol, body, text_in
from llama_endpoints.evaluation.tasks import cuts
from llama_endpoints.evaluation.tasks.task import Row, Sampling, row
from llama_serving.contract import azure, openai, rows
from llama_serving.contract.request import Dialog, Parameters, Request

TEXT = st.text(min_size=1, max_size=40).filter(lambda text: "<FILL_ME>" not in text and max(text) < "\ud800")
DIALOG = TEXT.filter(lambda text: not {"[", "<"} & set(text) and text.strip())
PARAMETERS = st.builds(
    lambda samples, greedy, stops, tokens: Sampling(samples, 0.0 if greedy else 0.8, 0.95, tokens, 3).parameters(samples - 1, stops),
    st.integers(1, 9), st.booleans(), st.lists(TEXT, max_size=4, unique=True), st.integers(1, 900),
)  # fmt: skip
GIVEN = (
    st.builds(lambda text: {"prompt": text}, TEXT)
    | st.builds(lambda a, b: {"prefix": a, "suffix": b}, TEXT, TEXT)
    | st.builds(lambda text: {"messages": [{"role": "user", "content": text}]}, DIALOG)
)
ROWS = st.builds(lambda given, parameters: row(Problem("T/0"), 0, given, parameters), GIVEN, PARAMETERS)


def as_batch(one: Row) -> Request:
    return rows.request(rows.split(one), Parameters())


def asked(request: Request) -> tuple[Any, ...]:
    """What is computed. (Details belong to the answer's form. A dialog that is no whole prompt is not unfolded on any route.)"""
    used = request.parameters
    inputs = [replace(one, unfold=False) if isinstance(one, Dialog) else one for one in request.inputs]
    return (
        inputs, used.max_new_tokens, used.temperature, used.top_p, used.seed, used.stop, used.do_sample,
    )  # fmt: skip


@given(ROWS)
def test_each_route_has_the_same_request(one: Row) -> None:
    expected = asked(as_batch(one))
    assert asked(azure.parse(body(Protocol.SCORE, one, "m"))) == expected
    protocol = Protocol.CHAT if "messages" in one else Protocol.COMPLETIONS
    assert asked(openai.parse(body(protocol, one, "m"))) == expected


@pytest.mark.parametrize(
    "answer", [{}, [], None, "x", {"choices": []}, {"choices": [{}]}, [{"0": "x"}], {"output": "x"}, 1]
)
@pytest.mark.parametrize("protocol", list(Protocol))
def test_another_answer_is_refused(protocol: Protocol, answer: Any) -> None:
    with pytest.raises(ValueError, match="another form"):
        text_in(protocol, answer)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1", "http://h:1/v1/completions"),
        ("http://h:1/", "http://h:1/v1/completions"),
        ("http://h:1/v1", "http://h:1/v1/completions"),
        ("http://h:1/v1/completions", "http://h:1/v1/completions"),
        (
            "https://e.region.inference.ml.azure.com/v1/",
            "https://e.region.inference.ml.azure.com/v1/completions",
        ),
    ],
)
def test_an_address_may_have_its_route(url: str, address: str) -> None:
    assert EndpointTarget(url, Protocol.COMPLETIONS, "m").address == address


def test_a_key_is_not_shown() -> None:
    target = EndpointTarget("http://h:1", Protocol.SCORE, "m", key="secret-1")
    assert "secret-1" not in repr(target) + str(target.described)


@given(st.text("ab\n#", max_size=30), st.lists(st.text("ab\n#", min_size=1, max_size=3), max_size=3))
def test_a_cut_is_the_longest_beginning_without_a_stop(text: str, stops: list[str]) -> None:
    found = cuts.before_stop(text, stops)
    assert text.startswith(found)
    assert not any(stop in found for stop in stops)
    assert found == text or any(text.startswith(stop, len(found)) for stop in stops)


@given(st.text("ab \n", max_size=20), st.sampled_from(["", "python", "py3"]), st.text("ab \n", max_size=9))
def test_code_in_a_fence_is_found(code: str, language: str, around: str) -> None:
    block = code if code.endswith("\n") or not code else code + "\n"
    assert cuts.first_fence(f"{around}\n```{language}\n{block}```\n{around}") == block
