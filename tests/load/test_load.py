"""The load test's pure parts: what is drawn, what an answer must be, what the report says."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests import report
from load_tests.protocols import ROUTES, Reply, Verdict, verdict
from load_tests.samples import Sample, read
from load_tests.workload import DEFAULT, KINDS, Asked, Lengths, RequestMix, WorkloadError, draw

ASKED = Asked("completion", ("def f(",), 8, 1, stream=False, cancelled=False, bad=False)
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
DETAILS = [{"finish_reason": "stop", "usage": USAGE, "logprobs": None}]


# --- the workload -----------------------------------------------------------------------------------


def test_the_committed_file_says_what_is_sent_without_one() -> None:
    assert RequestMix.read(DEFAULT) == RequestMix()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stream: 1.5", "stream: 1.5 is greater than the maximum of 1"),
        ("streams: 1", "'streams' was unexpected"),
        ("new_tokens: {least: 9, most: 8}", "new_tokens: least is above most"),
        ("new_tokens: {least: 0, most: 8}", "new_tokens.least"),
        ("new_tokens: {most: 8}", "'least' is a required"),
        ("prompts: 3", "prompts: 3 is not of type 'object'"),
        ("requests_per_second: 0", "requests_per_second"),
        ("kinds: {completion: 0}", "kinds: no weight"),
        ("kinds: {chat: 1}", "'chat' was unexpected"),
        ("- 1", "the file"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_file_that_cant_be_used_is_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "w.yml"
    file.write_text(text)
    with pytest.raises(WorkloadError, match=says) as refused:
        RequestMix.read(file)
    assert str(file) in str(refused.value)


@given(
    seed=st.integers(0, 2**32),
    least=st.integers(1, 300),
    more=st.integers(0, 2000),
    kinds=st.sampled_from([route.kinds for route in ROUTES.values()]),
    streams=st.booleans(),
)
def test_what_is_drawn_is_within_what_was_said(
    seed: int, least: int, more: int, kinds: Any, streams: bool
) -> None:
    workload = RequestMix(
        prompt_characters=Lengths(least, least + more),
        new_tokens=Lengths(2, 5),
        prompts=Lengths(1, 3),
        cancel=0.5,
    )
    asked = draw(workload, Random(seed), kinds, streams=streams)
    assert asked == draw(workload, Random(seed), kinds, streams=streams)
    assert asked.kind in kinds
    assert all(least <= len(text) <= least + more for text in asked.texts)
    assert 1 <= len(asked.texts) <= (1 if asked.stream or asked.kind == "dialog" else 3)
    assert 2 <= asked.new_tokens <= 5
    assert streams or not asked.stream
    assert asked.stream or not asked.cancelled
    for text, (before, behind) in zip(asked.texts, asked.holes, strict=True):
        assert before
        assert text.startswith(before)
        assert text.endswith(behind)
        assert len(before) + len(behind) <= len(text) + 1


def test_the_shares_are_kept() -> None:
    random, workload = (
        Random(5),
        RequestMix(stream=0.25, cancel=0.5, bad=0.1, kinds=(("infill", 1), ("dialog", 3))),
    )
    drawn = [draw(workload, random, KINDS, streams=True) for _ in range(4000)]
    assert Counter(asked.kind for asked in drawn).keys() == {"infill", "dialog"}
    for share, count in (
        (0.25, sum(asked.kind == "infill" for asked in drawn)),
        (0.25, sum(asked.stream for asked in drawn)),
        (0.125, sum(asked.cancelled for asked in drawn)),
        (0.1, sum(asked.bad for asked in drawn)),
    ):
        assert abs(count / 4000 - share) < 0.03


# --- verdicts ---------------------------------------------------------------------------------------


def reply(body: object, status: int = 200, **more: Any) -> Reply:
    return Reply(status, body if isinstance(body, bytes) else json.dumps(body).encode(), **more)


def events(*values: object, end: str = "[DONE]") -> bytes:
    return "".join(f"data: {value}\n\n" for value in (*map(json.dumps, values), end)).encode()


def row(**more: Any) -> dict[str, Any]:
    return {"0": "x", "details": DETAILS, **more}


ERROR = {"error": {"code": "invalid_value", "message": "no", "param": "top_p"}}
CHUNK = {"choices": [{"index": 0, "text": "x", "delta": {"content": "x"}}]}
LAST = {"choices": [], "usage": USAGE}
GOOD = [
    ("ScoreUser", {}, reply([row()])),
    ("ScoreUser", {"texts": ("a", "b")}, reply([row(), row()])),
    ("ScoreUser", {"kind": "dialog"}, reply({"output": "x", "details": DETAILS})),
    ("ScoreUser", {"stream": True}, reply(events({"0": "x"}, {"details": DETAILS}))),
    ("StockInvocationsUser", {}, reply({"predictions": [row()]})),
    ("CompletionsUser", {}, reply({"choices": [{"text": "x"}], "usage": USAGE})),
    ("CompletionsUser", {"stream": True}, reply(events(CHUNK, CHUNK, LAST))),
    ("ChatUser", {"kind": "dialog"}, reply({"choices": [{"message": {"content": "x"}}], "usage": USAGE})),
    ("ChatUser", {"kind": "dialog", "stream": True}, reply(events(CHUNK, LAST))),
]


@pytest.mark.parametrize(("user", "asked", "came"), GOOD)
def test_a_right_answer(user: str, asked: dict[str, Any], came: Reply) -> None:
    tokens = 5 * len(asked.get("texts", "1"))
    assert verdict(ROUTES[user], replace(ASKED, **asked), came) == Verdict("answered", tokens)


WRONG = [
    ("ScoreUser", {}, reply([row(), row()]), "2 rows for 1 prompts"),
    ("ScoreUser", {}, reply([{"0": "x"}]), "keys"),
    ("ScoreUser", {}, reply({"error": {}}), "not the shape"),
    ("ScoreUser", {}, reply(b""), "not the shape"),
    ("ScoreUser", {}, reply(b"<html>"), "not the shape"),
    ("ScoreUser", {"kind": "dialog"}, reply([row()]), "not the shape"),
    ("ScoreUser", {"stream": True}, reply(events({"0": "x"}, {"details": DETAILS}, end="{}")), "DONE"),
    ("ScoreUser", {"stream": True}, reply(events({"1": "x"}, {"details": DETAILS})), "no piece"),
    ("ScoreUser", {"stream": True}, reply(events({"0": "x"})), "keys"),
    ("StockInvocationsUser", {}, reply([row()]), "not the shape"),
    ("CompletionsUser", {}, reply({"choices": [], "usage": USAGE}), "0 choices for 1"),
    ("CompletionsUser", {}, reply({"choices": [{"text": None}], "usage": USAGE}), "choices"),
    ("CompletionsUser", {}, reply({"choices": [{"text": "x"}]}), "usage"),
    ("CompletionsUser", {"stream": True}, reply(events(CHUNK, CHUNK)), "usage"),
    (
        "ChatUser",
        {"kind": "dialog"},
        reply({"choices": [{"message": {"content": None}}], "usage": USAGE}),
        "text",
    ),
    ("ScoreUser", {}, reply(ERROR, 500), "status 500: invalid_value"),
    ("ScoreUser", {}, reply(b"gone", 503), "status 503: no error object"),
    ("ScoreUser", {}, reply(ERROR, 429), "429 that does not say"),
    ("ScoreUser", {"bad": True}, reply([row()]), "status 200 for a bad request"),
    ("ScoreUser", {"bad": True}, reply({"error": "no"}, 400), "without an error"),
    ("ScoreUser", {"bad": True}, reply({"error": {"code": "c", "message": "m"}}, 400), "does not name top_p"),
]


@pytest.mark.parametrize(("user", "asked", "came", "says"), WRONG)
def test_a_wrong_answer(user: str, asked: dict[str, Any], came: Reply, says: str) -> None:
    found = verdict(ROUTES[user], replace(ASKED, **asked), came)
    assert found.outcome == "wrong"
    assert says in (found.fault or "")


@pytest.mark.parametrize(
    ("asked", "came", "outcome"),
    [
        ({"bad": True}, reply(ERROR, 400), "refused"),
        ({}, reply(ERROR, 429, retry_after="5"), "busy"),
        ({"bad": True}, reply({"error": {"retry_after": 5}}, 429), "busy"),
        ({"stream": True, "cancelled": True}, reply(events({"0": "x"}, end="{}"), cut=True), "cancelled"),
    ],
)
def test_what_is_right_without_an_answer(asked: dict[str, Any], came: Reply, outcome: str) -> None:
    found = verdict(ROUTES["ScoreUser"], replace(ASKED, **asked), came)
    assert (found.outcome, found.fault) == (outcome, None)


def test_a_bad_request_is_bad_in_every_protocol() -> None:
    for route in ROUTES.values():
        for kind in route.kinds:
            body = json.dumps(route.body(replace(ASKED, kind=kind, bad=True)))
            assert '"top_p": 7' in body
            assert "top_p" not in json.dumps(route.body(replace(ASKED, kind=kind)))


# --- samples and the report -------------------------------------------------------------------------


def sample(**more: Any) -> Sample:
    given = {
        "at": 0.0,
        "route": "/score",
        "stream": False,
        "status": 200,
        "outcome": "answered",
        "seconds": 1.0,
    }
    return Sample(**{**given, **more})


def test_samples_come_back_and_a_torn_line_does_not() -> None:
    some = [sample(), sample(status=0, outcome="wrong", fault="no answer"), sample(stream=True, first_s=0.5)]
    lines = [one.line() for one in some]
    assert list(read(lines)) == some
    assert list(read([*lines, '{"at": 1'])) == some


def test_the_figures() -> None:
    samples = [sample(at=float(n), seconds=n / 100, tokens=10) for n in range(1, 101)]
    samples += [sample(stream=True, seconds=2.0, first_s=1.0, tokens=11), sample(status=429, outcome="busy")]
    whole, streamed, everything = (dict(zip(report.COLUMNS, row, strict=True)) for row in report.rows(samples))
    assert (whole["route"], whole["requests"], whole["answered"], whole["busy"]) == (
        "/score",
        "101",
        "100",
        "1",
    )
    assert (whole["p50 s"], whole["p90 s"], whole["p99 s"], whole["first p50 s"]) == (
        "0.51",
        "0.90",
        "0.99",
        "–",
    )
    assert (streamed["first p50 s"], streamed["token p50 ms"]) == ("1.00", "100.0")
    assert (everything["route"], everything["requests"]) == ("all", "102")
    assert report.rates(samples) == "1.0 requests/s, 10.0 tokens/s, over 101.0 s"


def test_late_sending_is_told_and_faults_are_counted() -> None:
    samples = [sample(late_s=0.05), sample(late_s=3.0)] + 2 * [sample(outcome="wrong", fault="f")]
    assert "25% of the requests were sent" in (report.lateness(samples) or "")
    assert report.lateness(samples[:1]) is None
    assert report.faults(samples) == [(2, "/score: f")]


def test_the_page_holds_everything_and_escapes_what_it_quotes() -> None:
    samples = [
        sample(tokens=3), sample(at=3.2, stream=True, first_s=0.2, tokens=4), sample(status=429, outcome="busy"),
        sample(status=0, outcome="wrong", fault="<script>"), sample(stream=True, outcome="cancelled"),
    ]  # fmt: skip
    page = report.html(report.Run("own", 3, "stream: 1", 7, interrupted=True), samples)
    assert page.count("<svg") == 4
    assert "interrupted" in page
    assert "1 busy" in page
    assert "/score: &lt;script&gt;" in page
    assert "<script>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ), "the page needs nothing beside it"


@pytest.mark.parametrize(("event", "outcome"), [({"0": "error"}, "cancelled"), ({"error": ERROR}, "wrong")])
def test_a_left_stream_is_wrong_only_if_it_began_with_an_error(event: Any, outcome: str) -> None:
    asked = replace(ASKED, stream=True, cancelled=True)
    came = Reply(200, f"data: {json.dumps(event)}\n\n".encode(), cut=True)
    assert verdict(ROUTES["ScoreUser"], asked, came).outcome == outcome
