"""The page's document, its policy, and who gets it: browsers alone. (How it works: tests/page/.)"""

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.server.page import FOLDER, SCRIPTS, is_asked_for
from tests.support.calls import get
from tests.support.in_process import LocalServer, serving

BROWSERS = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "text/html",
    "TEXT/HTML; charset=utf-8",
    "application/json;q=0.5, text/html;q=0.6",
    "*/*;q=0.1 , text/html;q=1.0",
)
OTHERS = (
    None,
    "",
    "*/*",
    "text/*",
    "application/json",
    "application/json, text/html;q=0.9",
    "text/html;q=0",
    "text/html;q=0.0, */*",
    "text/html;q=high",
    "text/html;q=-1",
    "application/xhtml+xml",
)


def scope(accept: str | None, *, path: str = "/", method: str = "GET") -> dict[str, object]:
    headers = [] if accept is None else [(b"accept", accept.encode("latin-1"))]
    return {"type": "http", "path": path, "method": method, "headers": headers}


@pytest.mark.parametrize("accept", BROWSERS)
def test_browsers_ask_for_it(accept: str) -> None:
    assert is_asked_for(scope(accept))
    assert is_asked_for(scope(accept, method="HEAD"))


@pytest.mark.parametrize("accept", OTHERS)
def test_others_do_not(accept: str | None) -> None:
    assert not is_asked_for(scope(accept))


@pytest.mark.parametrize(("path", "method"), [("/v1/models", "GET"), ("//", "GET"), ("/", "POST"), ("", "GET")])
def test_it_is_at_one_path(path: str, method: str) -> None:
    assert not is_asked_for(scope("text/html", path=path, method=method))


@given(st.text(st.characters(max_codepoint=255)))
def test_any_header_is_read(accept: str) -> None:
    assert not is_asked_for(scope(accept.replace("html", "htm")))
    is_asked_for(scope(f"{accept},text/html;q={accept}"))


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """One with a key: the page needs none."""
    with serving({"LLAMA_API_KEYS": "sesame"}) as started:
        yield started


class Parts(HTMLParser):
    """What a document loads or runs."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str, str | None]] = []
        self._inside = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.attributes += [(tag, *one) for one in attrs]

    def handle_data(self, data: str) -> None:
        if self._inside in self.inline and data.strip():
            self.inline[self._inside].append(data)


def test_its_policy_allows_its_own_parts_alone(server: LocalServer) -> None:
    answer = get(f"{server.url}/", Accept=BROWSERS[0])
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert len(answer.text.encode()) < 100_000
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    parts = Parts(answer.text)
    for name, texts in parts.inline.items():
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    names = {(tag, name) for tag, name, _ in parts.attributes}
    assert not [
        name for _, name in names if name.startswith("on") or name in ("style", "src", "srcset", "action")
    ]
    assert {value.partition(":")[0] for tag, name, value in parts.attributes if name == "href" and value} == {
        "data"
    }
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|sessionStorage|cookie", answer.text
    )


def test_it_holds_every_script_once() -> None:
    assert sorted(SCRIPTS) == sorted(path.stem for path in FOLDER.glob("*.js"))


def test_who_is_no_browser_gets_what_there_is_without_it(server: LocalServer) -> None:
    with serving({"LLAMA_API_KEYS": "sesame", "LLAMA_PAGE": "false"}) as without:

        def told(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
            answer = get(f"{url}/", X_Request_Id="one", **headers)
            return (
                answer.status,
                answer.text,
                {name: value for name, value in answer.headers.items() if name != "date"},
            )

        for accept in filter(None, OTHERS):
            for key in ({}, {"api_key": "sesame"}):
                assert told(server.url, Accept=accept, **key) == told(without.url, Accept=accept, **key)
        browser = told(without.url, Accept=BROWSERS[0], api_key="sesame")
        assert browser == told(without.url, Accept="*/*", api_key="sesame")
        assert "text/html" not in browser[2]["content-type"]


def test_the_page_itself_needs_no_key_and_all_it_asks_for_does(server: LocalServer) -> None:
    assert get(f"{server.url}/", Accept="text/html").status == 200
    for path in ("/v1/models", "/openapi.json"):
        assert get(f"{server.url}{path}", Accept="text/html").status == 401
