"""Errors of the real servers: what is refused, in which words, and that the server lives on.

Stock `mlflow models serve` parses JSON itself, before the model. What follows from it, and can't be mended from
inside a model: its own refusals have its own shape and repeat the prompt; of two equal keys the last one counts;
keys that it does not know are dropped; numpy makes a string of the number in `["x", 3]`; its `params` are checked
against a ParamSchema first, and so are fields of OpenAI's that bear the name of one of them.
"""

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from requests.structures import CaseInsensitiveDict

from llama_endpoints.devtools.servers import RunningServer, azmlinfsrv, mlflow_serve
from tests.conftest import ROOT, Answer, post
from tests.support.bad_bodies import (
    NOT_JSON,
    OPENAI_REFUSED_BY_THE_MODEL,
    REFUSED,
    REFUSED_BY_THE_MODEL,
    SECRET,
    WRONG_OPENAI,
    Bad,
    Stock,
    one_of_each,
    score,
    user,
)
from tests.support.shapes import shape

GOOD = score([SECRET], max_new_tokens=2, seed=1)
ROWS = [{"0": "text"}]
LIMIT = 4 * 1024 * 1024
BAD = (*NOT_JSON, *REFUSED, *REFUSED_BY_THE_MODEL)


def send(url: str, method: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """One request with exactly these headers: what is left out is not filled in."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=120)
    try:
        connection.putrequest(method, place.path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(), CaseInsensitiveDict(response.headers))
    finally:
        connection.close()


# Nothing here gets to an engine: one will do. What is answered is tested with both.
@pytest.fixture(scope="module")
def azure_server(nano_model: Path) -> Iterator[RunningServer]:
    with azmlinfsrv(nano_model, score=ROOT / "score") as server:
        yield server


@pytest.fixture(scope="module")
def mlflow_server(nano_model: Path) -> Iterator[RunningServer]:
    with mlflow_serve(nano_model) as server:
        yield server


@pytest.fixture
def url(azure_server: RunningServer) -> Iterator[str]:
    """The scoring route of azmlinfsrv; after each test it must still answer, and have logged no prompt."""
    before = azure_server.log.stat().st_size
    yield f"{azure_server.url}/score"
    good = post(f"{azure_server.url}/score", GOOD)
    assert (good.status, shape(good.json)) == (200, ROWS)
    assert SECRET.encode() not in azure_server.log.read_bytes()[before:]


# --- azmlinfsrv -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", one_of_each(BAD), ids=lambda bad: bad.name)
def test_azure_refuses(url: str, bad: Bad) -> None:
    answer = post(url, bad.raw)
    assert answer.status == 400
    assert bad.fault(answer.json) is None
    assert answer.json["error"]["request_id"] == answer.headers["x-ms-request-id"]
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("method", ["GET"])  # OPTIONS is a browser's question, and answered
def test_azure_takes_posts_only(url: str, method: str) -> None:
    answer = send(url, method, {})
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert Bad("", None, "method_not_allowed", says="Send POST").fault(answer.json) is None


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_methods_that_azmlinfsrv_refuses_itself(url: str, method: str) -> None:
    assert send(url, method, {}).status == 405


@pytest.mark.parametrize("path", ["/scores", "/score/", "/v1/completions", "/invocations", "/.."])
def test_azure_has_one_route(url: str, path: str) -> None:
    assert post(url.removesuffix("/score") + path, GOOD).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
    ids=str,
)
def test_azure_refuses_other_media(url: str, headers: dict[str, str]) -> None:
    body = json.dumps(GOOD).encode()
    answer = send(url, "POST", {**headers, "Content-Length": str(len(body))}, body)
    assert answer.status == 415
    assert Bad("", None, "unsupported_media_type", says="Send ").fault(answer.json) is None


@pytest.mark.parametrize("content_type", ["application/json; charset=UTF-8", "Application/JSON"])
def test_azure_reads_json_under_all_its_names(url: str, content_type: str) -> None:
    assert post(url, GOOD, Content_Type=content_type, Content_Encoding="identity").status == 200


TOO_LARGE = Bad("", None, "body_too_large", says=f"more than {LIMIT} bytes")
JSON = {"Content-Type": "application/json"}


def test_azure_refuses_a_body_by_its_declared_length(url: str) -> None:
    answer = send(url, "POST", {**JSON, "Content-Length": str(LIMIT + 1)}, b" " * (LIMIT + 1))
    assert answer.status == 413
    assert TOO_LARGE.fault(answer.json) is None


def test_azure_refuses_a_body_of_no_declared_length(url: str) -> None:
    refuses_a_long_chunked_body(url)


def refuses_a_long_chunked_body(url: str) -> None:
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (2 * LIMIT, b" " * (2 * LIMIT))
    answer = send(url, "POST", {**JSON, "Transfer-Encoding": "chunked"}, chunked)
    assert answer.status == 413
    assert TOO_LARGE.fault(answer.json) is None


def test_azure_reads_the_largest_body(url: str) -> None:
    body = json.dumps(GOOD).encode()
    answer = post(url, body + b" " * (LIMIT - len(body)))
    assert (answer.status, shape(answer.json)) == (200, ROWS)


def test_azure_tells_a_client_that_sends_first_and_reads_then(url: str) -> None:
    answer = post(url, b" " * (2 * LIMIT))
    assert answer.status == 413


# --- stock mlflow -----------------------------------------------------------------------------------


@pytest.fixture
def invocations(mlflow_server: RunningServer) -> Iterator[str]:
    """The scoring route of `mlflow models serve`, which must still answer after each test."""
    url = f"{mlflow_server.url}/invocations"
    yield url
    good = post(url, {"inputs": GOOD["input_data"]})
    assert (good.status, shape(good.json)) == (200, {"predictions": ROWS})


def of(stock: Stock, bads: tuple[Bad, ...]) -> list[Bad]:
    return one_of_each(bad for bad in bads if bad.stock is stock)


@pytest.mark.parametrize("bad", of(Stock.OURS, BAD), ids=lambda bad: bad.name)
def test_mlflow_refuses_in_our_words(mlflow_server: RunningServer, invocations: str, bad: Bad) -> None:
    before = mlflow_server.log.stat().st_size
    same = bad.for_mlflow()
    answer = post(invocations, same.raw)
    assert answer.status == 400
    assert same.fault(answer.json) is None
    assert SECRET.encode() not in mlflow_server.log.read_bytes()[before:]


@pytest.mark.parametrize(
    "bad",
    # Where the prompt is null, nothing says that the body would be OpenAI's.
    [
        bad
        for bad in of(Stock.OURS, (*WRONG_OPENAI, *OPENAI_REFUSED_BY_THE_MODEL))
        if bad.body != {"prompt": None}
    ],
    ids=lambda bad: bad.name,
)
def test_mlflow_refuses_openai_bodies_in_our_words(invocations: str, bad: Bad) -> None:
    answer = post(invocations, bad.raw)
    assert answer.status == 400
    assert bad.fault(answer.json) is None
    assert answer.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("bad", of(Stock.OWN, BAD), ids=lambda bad: bad.name)
def test_mlflow_refuses_itself(invocations: str, bad: Bad) -> None:
    answer = post(invocations, bad.for_mlflow().raw)
    assert answer.status in (400, 500)  # 500 for nesting that its parser can't follow
    assert not answer.text.startswith('{"error":')


@pytest.mark.parametrize("bad", of(Stock.OWN, WRONG_OPENAI), ids=lambda bad: bad.name)
def test_mlflow_refuses_openai_bodies_itself(invocations: str, bad: Bad) -> None:
    answer = post(invocations, bad.raw)
    assert answer.status == 400
    assert answer.json["error_code"] == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize("bad", of(Stock.LOST, BAD), ids=lambda bad: bad.name)
def test_mlflow_does_not_see(invocations: str, bad: Bad) -> None:
    assert post(invocations, bad.for_mlflow().raw).status == 200


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"custom_generate": "x", "trust_remote_code": True}, 200),  # dropped: the model never sees them
        ({"top_p": 2}, 400),
        ({"max_new_tokens": 8.0}, 400),  # its type check, not ours
        ({"seed": 2**63}, 400),
    ],
)
def test_params_beside_the_input_are_filtered_by_mlflow(
    invocations: str, params: dict[str, object], status: int
) -> None:
    body = {"inputs": [SECRET], "params": {"max_new_tokens": 2} | params}
    assert post(invocations, body).status == status


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": SECRET, "max_tokens": 1, "stop": ["a", "b"]},
        {"messages": [user()], "max_tokens": 1, "logprobs": True},
    ],
)
def test_mlflow_refuses_what_its_params_schema_types_otherwise(
    invocations: str, body: dict[str, object]
) -> None:
    """A limit of its server: one type a name, in any body. Without the name it would drop `params.stop` silently."""
    answer = post(invocations, body)
    assert (answer.status, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_mlflow_takes_posts_only(invocations: str, method: str) -> None:
    assert send(invocations, method, {}).status == 405


def test_mlflow_takes_json_only(invocations: str) -> None:
    assert post(invocations, b"x", Content_Type="text/plain").status == 415


def test_mlflow_refuses_what_is_nested_too_deep_for_python(invocations: str) -> None:
    deep = b"[" * 700 + b"]" * 700
    answer = post(invocations, b'{"prompt": "a", "x": %s}' % deep)
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_json")
