"""Azure AI Content Safety behind five protocols and in batch: a service that is down, hangs, is late, fails or blocks."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from llama_serving.batch import runner
from llama_serving.batch.inputs import InputFile
from llama_serving.hosts import azureml_batch
from llama_serving.service.guards import configuration
from llama_serving.service.guards.azure_content_safety import MOST, AzureContentSafety, Policy, by_key
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.guards import Guards
from tests.conftest import Answer, post
from tests.support.calls import get
from tests.support.content_safety import KEY, ContentSafety, content_safety
from tests.support.in_process import LocalServer, serving
from tests.support.scripted import scripted

GOOD = "def double(x):\n    return 2 * x\n"
EVIL = f"{GOOD}{GOOD}# EVIL\n{GOOD}{GOOD}"
CODE = f"{GOOD}{GOOD}# PROTECTED\n{GOOD}"
WINDOWS = {"window": 24, "overlap": 12, "max_delay_s": 30}
BODIES: dict[str, dict[str, Any]] = {
    "/score": {"input_data": {"input_string": ["PROMPT"], "parameters": {"max_new_tokens": 200}}},
    "/invocations": {"inputs": {"input_string": ["PROMPT"], "parameters": {"max_new_tokens": 200}}},
    "/v1/completions": {"prompt": "PROMPT", "max_tokens": 200},
    "/api/generate": {"prompt": "PROMPT", "raw": True, "options": {"num_predict": 200}, "stream": False},
    "/completion": {"prompt": "PROMPT", "n_predict": 200},
}
FAULTS = ("hang", "late", "500", "429", "cut", "not json", "no category", "odd severity", "redirect")


@pytest.fixture(scope="module")
def azure() -> Iterator[ContentSafety]:
    with content_safety() as service:
        yield service


@pytest.fixture(autouse=True)
def fresh(azure: ContentSafety) -> None:
    azure.released.set()  # those that hang from an earlier test
    azure.released.clear()
    azure.fault, azure.after = None, 0
    azure.seen.clear()


def guards_at(url: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Guards:
    monkeypatch.setenv("SAFETY_KEY", KEY)
    entry = {"type": "azure-content-safety", "endpoint": url, "key_env": "SAFETY_KEY", "timeout_s": 30, **more}
    return configuration.of({**WINDOWS, "guards": [entry]}, Path())


class Door:
    """A server whose model says `text`; `safety` answers its guard."""

    def __init__(self, azure: ContentSafety, server: LocalServer) -> None:
        self.azure, self.server = azure, server

    def ask(self, path: str, *, stream: bool, prompt: str = "def f") -> Answer:
        body = json.loads(json.dumps(BODIES[path]).replace("PROMPT", prompt))
        if stream:
            inner = next(iter(body.values())) if path in ("/score", "/invocations") else body
            (inner["parameters"] if inner is not body else body)["stream"] = True
        return post(self.server.url + path, body)


@pytest.fixture
def door(
    azure: ContentSafety, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Door]:
    text, more = request.param
    url = "http://127.0.0.1:9" if more.get("down") else azure.url
    options = {"pieces": (2,), "pause_s": 0.005} if more.get("slow") else {}
    given = {name: value for name, value in more.items() if name not in ("down", "slow")}
    guards = guards_at(url, monkeypatch, **given)
    with serving(load=lambda settings: scripted(text, guards=guards, settings=settings, **options)) as server:
        yield Door(azure, server)


def lines_of(answer: Answer) -> list[Any]:
    """Return the JSON values of an answer: of its events, of its lines, or the only one."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line and line != "[DONE]"]


def words(value: Any) -> str:
    """Return the text in an answer, whatever the protocol's shape is."""
    if isinstance(value, Answer):
        return words(lines_of(value))
    if isinstance(value, list):
        return "".join(map(words, value))
    if not isinstance(value, dict):
        return ""
    own = [one for name, one in value.items() if name in ("0", "text", "response", "content")]
    return "".join(one for one in own if isinstance(one, str)) + words(list(value.values()))


STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
SHAPES: dict[str, Any] = {
    "/score": lambda last: last["details"][-1]["finish_reason"],
    "/invocations": lambda last: last["details"][-1]["finish_reason"],
    "/v1/completions": lambda last: last["choices"][0]["finish_reason"],
    "/api/generate": lambda last: last["done_reason"],
    "/completion": lambda last: last["stop_type"],
}


def last_of(answer: Answer) -> Any:
    last = lines_of(answer)[-1]
    last = last.get("predictions", last) if isinstance(last, dict) else last
    return last[-1] if isinstance(last, list) else last


@pytest.mark.parametrize("door", [(GOOD * 3, {})], indirect=True)
@STREAMS
def test_what_passes_is_whole_in_each_protocol(door: Door, stream: bool) -> None:
    for path in BODIES:
        answer = door.ask(path, stream=stream)
        assert answer.status == 200
        assert words(answer) == GOOD * 3
        assert "content_filter" not in answer.text
    assert all("text" in body for _, body in door.azure.seen)


@pytest.mark.parametrize("door", [(EVIL, {})], indirect=True)
@STREAMS
def test_what_is_blocked_ends_in_each_protocols_own_shape(door: Door, stream: bool) -> None:
    for path, finish_reason in SHAPES.items():
        answer = door.ask(path, stream=stream)
        assert answer.status == 200
        assert "EVIL" not in answer.text
        assert finish_reason(last_of(answer)) == "content_filter"
        assert '"hate": {"filtered": true, "detected": true, "severity": "medium"}' in answer.text
        assert ("def double" in answer.text) is stream  # what had passed before, and nothing of a whole text
    metrics = get(f"{door.server.url}/metrics").text
    assert f'llama_guard_blocks_total{{guard="azure-content-safety"}} {len(SHAPES)}.0' in metrics


@pytest.mark.parametrize("door", [(GOOD, {})], indirect=True)
@STREAMS
def test_a_blocked_prompt_is_a_400(door: Door, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llama_serving")
    for path in BODIES:
        answer = door.ask(path, stream=stream, prompt="be EVIL")
        assert answer.status == 400
        said = answer.json["error"] if isinstance(answer.json["error"], dict) else answer.json
        assert said["code"] == "content_filter"
        assert "hate" in answer.text
        assert "EVIL" not in answer.text
    assert "EVIL" not in caplog.text


def no_text(answer: Answer) -> None:
    assert answer.status == 503
    assert 5 <= int(answer.headers["Retry-After"]) <= 15
    assert "guard_unavailable" in answer.text
    assert "double" not in answer.text


@pytest.mark.parametrize("door", [(GOOD, {"down": True})], indirect=True)
@STREAMS
def test_a_service_that_is_down_refuses(door: Door, stream: bool) -> None:
    for path in BODIES:
        no_text(door.ask(path, stream=stream))


@pytest.mark.parametrize("door", [(GOOD, {"timeout_s": 0.3})], indirect=True)
@STREAMS
@pytest.mark.parametrize("fault", FAULTS)
def test_a_service_that_fails_refuses(
    door: Door, fault: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """At the prompt, or at the text. (A check of the prompt that takes longer than 0.3 s fails too, and that is as well.)"""
    caplog.set_level(logging.DEBUG, "llama_serving")
    for after in (0, 1):
        for path in BODIES if fault != "hang" else ("/score", "/v1/completions"):
            door.azure.seen.clear()
            door.azure.fault, door.azure.after = fault, after
            no_text(door.ask(path, stream=stream))
    assert "double" not in caplog.text


@pytest.mark.parametrize(
    ("door", "fault"),
    [
        ((GOOD * 8, {"stages": ["text"], "slow": True, "timeout_s": 1}), "hang"),
        ((GOOD * 8, {"stages": ["text"], "slow": True}), "500"),
        ((GOOD * 8, {"stages": ["text"], "slow": True}), "cut"),
    ],
    indirect=["door"],
)
def test_a_service_that_fails_in_the_middle_of_a_stream(door: Door, fault: str) -> None:
    for path in BODIES:
        door.azure.seen.clear()
        door.azure.fault, door.azure.after = fault, 2
        answer = door.ask(path, stream=True)
        assert answer.status == 200
        assert "guard_unavailable" in [line for line in answer.text.splitlines() if line][-1]
        assert "[DONE]" not in answer.text
        checked = max(door.azure.texts()[:2], key=len)
        assert 0 < words(answer).count("double") <= checked.count("double")


@pytest.mark.parametrize("door", [(GOOD, {"on_error": "allow", "timeout_s": 1})], indirect=True)
@pytest.mark.parametrize("fault", ["hang", "500", "not json"])
def test_on_error_allow_serves(door: Door, fault: str) -> None:
    door.azure.fault = fault
    answer = door.ask("/v1/completions", stream=False)
    assert (answer.status, answer.json["choices"][0]["text"]) == (200, GOOD)
    assert (
        'llama_guard_errors_total{guard="azure-content-safety"} 2.0' in get(f"{door.server.url}/metrics").text
    )


@pytest.mark.parametrize("door", [(CODE, {"protected_code": "block", "severities": {}})], indirect=True)
@STREAMS
def test_protected_code_blocks_with_its_source(door: Door, stream: bool) -> None:
    answer = door.ask("/v1/completions", stream=stream)
    assert "PROTECTED" not in answer.text
    choice = last_of(answer)["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    found = choice["content_filter_results"]["protected_material_code"]
    assert found["citation"] == {"URL": "https://example.org/copied.py", "license": "GPL-3.0"}
    assert {path.rpartition(":")[2] for path, _ in door.azure.seen} == {"detectProtectedMaterialForCode"}


@pytest.mark.parametrize("door", [(CODE, {"protected_code": "annotate"})], indirect=True)
@STREAMS
def test_protected_code_as_an_annotation(door: Door, stream: bool) -> None:
    choice = last_of(door.ask("/v1/completions", stream=stream))["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["content_filter_results"]["protected_material_code"]["filtered"] is False


@pytest.mark.parametrize("door", [(EVIL, {})], indirect=True)
@STREAMS
def test_a_server_in_front_tells_what_the_one_behind_it_blocks(door: Door, stream: bool) -> None:
    with serving({"LLAMA_ENGINE": "upstream", "LLAMA_UPSTREAM_URL": door.server.url}) as front:
        answer = post(f"{front.url}/v1/completions", {"prompt": "def f", "max_tokens": 200, "stream": stream})
    assert answer.status == 200
    assert last_of(answer)["choices"][0]["finish_reason"] == "content_filter"
    assert "EVIL" not in answer.text


# --- batch ----------------------------------------------------------------------------------------


def records(folder: Path, guards: Guards, *texts: str) -> list[dict[str, Any]]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "input_string": "def f"}) + "\n" for n in range(len(texts))))
    service = scripted(*texts, guards=guards)
    try:
        return [json.loads(line) for line in azureml_batch.records(service, [InputFile(rows, rows.name)])]
    finally:
        service.close()


def test_batch_records_say_what_is_blocked(
    azure: ContentSafety, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = records(tmp_path, guards_at(azure.url, monkeypatch), EVIL)
    assert [(one["output"], one["finish_reason"]) for one in lines] == [("", "content_filter")]
    assert lines[0]["content_filter_results"]["hate"]["filtered"] is True


@pytest.mark.parametrize("fault", ["500", "hang", "not json"])
def test_batch_rows_fail_and_the_job_goes_on(
    azure: ContentSafety, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    monkeypatch.setattr(runner, "GUARD_S", 0.01)
    azure.fault = fault
    lines = records(tmp_path, guards_at(azure.url, monkeypatch, timeout_s=0.1), GOOD, GOOD)
    assert [(one["output"], one["error"]["code"]) for one in lines] == [(None, "guard_unavailable")] * 2
    assert "double" not in json.dumps(lines)


def test_a_batch_row_is_tried_again(
    azure: ContentSafety, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "GUARD_S", 0.01)
    faults = chain(["500", "500"], repeat(None))
    monkeypatch.setattr(azure, "faulty", lambda: next(faults))
    (line,) = records(tmp_path, guards_at(azure.url, monkeypatch, stages=["text"]), GOOD)
    assert line["output"] == GOOD


# --- the client -----------------------------------------------------------------------------------


@pytest.fixture
def client() -> Iterator[Callable[..., AzureContentSafety]]:
    with ExitStack() as opened:

        def at(azure: ContentSafety, policy: Policy | None = None, key: str = KEY) -> AzureContentSafety:
            made = AzureContentSafety(azure.url, by_key(key), policy or Policy(), timeout_s=10)
            opened.callback(made.close)
            return made

        yield at


def test_long_texts_are_sent_in_parts_that_overlap(azure: ContentSafety, client: Any) -> None:
    guard = client(azure)
    for at in (0, MOST - 2, MOST + 5, 3 * MOST - 4):
        text = "é" * at + "EVIL" + "é" * (3 * MOST - at)
        names = [one.name for one in guard.check(Passage(Stage.PROMPT, text))]
        assert set(names) == {"hate"}
        assert all(len(one) <= MOST for one in azure.texts())
        azure.seen.clear()
    assert guard.check(Passage(Stage.TEXT, "EVIL", start=4)) == []  # nothing new: it is not sent again
    assert not azure.seen


def test_blocklists_and_severities_are_the_operators(azure: ContentSafety, client: Any) -> None:
    policy = Policy({"Hate": 6, "Violence": 2}, blocklists=("listed",))
    guard = client(azure, policy)
    assert guard.check(Passage(Stage.PROMPT, "EVIL")) == []  # 4 is below 6
    (found,) = guard.check(Passage(Stage.PROMPT, "it is listed"))
    assert (found.name, found.detail) == ("custom_blocklists", {"details": ["listed"]})
    assert azure.seen[0][1]["categories"] == ["Hate", "Violence"]


def test_a_wrong_key_refuses(azure: ContentSafety, client: Any) -> None:
    guard = client(azure, key="another")
    with pytest.raises(Exception, match="401"):
        guard.check(Passage(Stage.PROMPT, "a"))


def test_a_machines_identity_is_asked_once(azure: ContentSafety, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", azure.url)
    monkeypatch.setenv("IDENTITY_HEADER", "secret")
    azure.tokens.clear()
    entry = {"type": "azure-content-safety", "endpoint": azure.url, "managed_identity": "1234", "timeout_s": 30}
    guards = configuration.of({"guards": [entry]}, Path())
    for _ in range(2):
        ((found,),) = guards.check([Passage(Stage.PROMPT, "EVIL")])
        assert found.name == "hate"
    assert [(one["resource"], one["client_id"]) for one in azure.tokens] == [
        ("https://cognitiveservices.azure.com", "1234")
    ]
    guards.close()
