"""Addresses of servers, as options give them: what no connection could be made to is refused with one sentence."""

import httpx2
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli.main import main
from llama_endpoints.connection.address import checked
from llama_serving.errors import SetupError

HOSTLESS = [
    "http://a..b",
    "http://.a",
    f"http://{'a' * 64}.example",
    "http://☃.example",
    "http://1.2.3.999",
    "http://a b",
    "http://a:99999",
    "http://",
    "ftp://a",
    "http://u:p@a",
    "http://[::1",
]


@pytest.mark.parametrize("url", HOSTLESS)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="URL must be an address"):
        checked(url, name="URL")


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://a.example.",
        "http://127.0.0.1:8453",
        "http://[::1]:1",
        "http://ä.example",
        "http://a_b",
    ],
)
def test_an_address_loses_what_is_behind_the_server(url: str) -> None:
    assert checked(f"{url}/v1/", name="URL") == url


@given(st.text(max_size=20), st.sampled_from(["http://", "https://", ""]))
def test_every_other_text_can_be_asked(host: str, scheme: str) -> None:
    try:
        url = checked(f"{scheme}{host}", name="URL")
    except SetupError:
        return
    httpx2.URL(url).raw_host.decode().encode("idna")


@pytest.mark.parametrize(
    "command",
    [
        ["top", "--once", "http://a..b"],
        ["chat", "--url", "http://a..b"],
        ["evaluate", "humaneval", "--url", "http://a..b", "--variant", "codellama/CodeLlama-7b-hf", "--output"],
    ],
)
def test_each_client_says_so(command: list[str], tmp_path: object) -> None:
    done = CliRunner().invoke(main, [*command, str(tmp_path)] if command[-1] == "--output" else command)
    assert (done.exit_code, done.exception.__class__) == (2, SystemExit), done.output
    assert "must be an address such as" in done.output
