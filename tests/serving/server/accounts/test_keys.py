"""The file of keys: what it may hold, which key a request has, and that no message quotes a key."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.errors import SetupError, Unauthorized
from llama_serving.server.accounts.accounts import Accounts
from llama_serving.server.accounts.keys import MOST_BYTES, MOST_KEYS, KeyRing, read
from llama_serving.server.accounts.quotas import Limits
from tests.support.paths import ROOT

SECRET = "sk-very-secret"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()


def file(folder: Path, content: object) -> Path:
    path = folder / "keys.yml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_keys_have_names_and_limits(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        f"""
        # comments are possible
        - name: team-a
          key: {SECRET}
          requests_per_minute: 60
          tokens_per_day: 1000000
        - {{name: b.2_c, sha256: {hashlib.sha256(b"other").hexdigest().upper()}, tokens_per_minute: null}}
        """,
    )
    ring = KeyRing.of(("plain", "second"), str(path))
    assert [key.name for key in ring.keys] == ["key-1", "key-2", "team-a", "b.2_c"]
    found = ring.find(SECRET.encode())
    assert found is not None
    assert found.limits == Limits(requests_per_minute=60, tokens_per_day=1_000_000)
    other = ring.find(b"other")
    assert other is not None
    assert other.name == "b.2_c"
    assert not other.limits
    assert ring.find(DIGEST.encode()) is None  # what is in the file opens nothing
    assert SECRET not in repr(ring)


REFUSED = {
    "": "holds no keys",
    "[]": "holds no keys",
    f"name: a\nkey: {SECRET}": "must be a list",
    f"- {SECRET}": "must be an object",
    f"- {{name: a, key: {SECRET}, {SECRET}: 1}}": "unknown field",
    f"- {{key: {SECRET}}}": "name must be",
    f"- {{name: a b, key: {SECRET}}}": "name must be",
    f"- {{name: .a, key: {SECRET}}}": "name must be",
    f"- {{name: {'a' * 65}, key: {SECRET}}}": "name must be",
    f"- {{name: 7, key: {SECRET}}}": "name must be",
    f"- {{name: other, key: {SECRET}}}": "name must be",
    f"- {{name: anonymous, key: {SECRET}}}": "name must be",
    f'- {{name: "a\\n", key: {SECRET}}}': "name must be",
    "- {name: a}": "either key or sha256",
    f"- {{name: a, key: {SECRET}, sha256: {DIGEST}}}": "either key or sha256",
    f"- {{name: a, sha256: {SECRET}}}": "64 hexadecimal digits",
    "- {name: a, key: 123456}": "in quotes",
    f"- {{name: a, key: {SECRET} b}}": "one word",
    '- {name: a, key: "sk-very-secreté"}': "one word",
    '- {name: a, key: ""}': "one word",
    f"- {{name: a, key: {SECRET}}}\n- {{name: a, key: b}}": "the name a is taken",
    f"- {{name: key-1, key: {SECRET}}}": "the name key-1 is taken",
    f"- {{name: a, key: {SECRET}}}\n- {{name: b, sha256: {DIGEST}}}": "is there already",
    "- {name: a, key: plain}": "is there already",
    f"- {{name: a, key: {SECRET}, requests_per_minute: 0}}": "requests_per_minute must be an integer from 1",
    f"- {{name: a, key: {SECRET}, tokens_per_day: 1.5}}": "tokens_per_day must be an integer from 1",
    f"- {{name: a, key: {SECRET}, tokens_per_minute: true}}": "tokens_per_minute must be an integer from 1",
    f'- {{name: a, key: {SECRET}, requests_per_day: "7"}}': "requests_per_day must be an integer from 1",
    f"- {{name: a, key: {SECRET}, requests_per_day: {10**13}}}": "requests_per_day must be an integer from 1",
    f"- {{name: a, key: {SECRET}, key: b}}": "a field is there twice",
    f"- {{name: a, key: {SECRET}": "it is not YAML",
    f"- !!python/object/apply:os.system [{SECRET}]": "it is not YAML",
    "\x00": "it is not YAML",
    "[" * 5000: "it is not",
    f"# {'x' * MOST_BYTES}": "bytes",
}


@pytest.mark.parametrize("content", list(REFUSED), ids=range(len(REFUSED)))
def test_what_cannot_be_used_is_told_without_quoting_a_key(tmp_path: Path, content: str) -> None:
    with pytest.raises(SetupError) as refusal:
        KeyRing.of(("plain",), str(file(tmp_path, content)))
    assert REFUSED[content] in str(refusal.value)
    assert SECRET not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("path", ["missing.yml", ".", "latin.yml"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, path: str) -> None:
    (tmp_path / "latin.yml").write_bytes(b"- {name: a, key: \xe9}")
    with pytest.raises(SetupError, match="can't be"):
        read(tmp_path / path)


def test_there_is_a_most_number_of_keys(tmp_path: Path) -> None:
    entries = [{"name": f"n{number}", "key": f"k{number}"} for number in range(MOST_KEYS + 1)]
    assert len(read(file(tmp_path, entries[:-1]))) == MOST_KEYS
    with pytest.raises(SetupError, match=f"at most {MOST_KEYS}"):
        read(file(tmp_path, entries))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "key", "sha256", "requests_per_minute", "tokens_per_day"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
)


@given(anything)
def test_any_file_is_keys_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        keys = read(path)
    except SetupError:
        return
    assert keys


def test_a_key_comes_in_either_header(tmp_path: Path) -> None:
    accounts = Accounts(KeyRing.of((), str(file(tmp_path, [{"name": "a", "key": SECRET}]))))
    for good in (
        {"authorization": f"Bearer {SECRET}"},
        {"authorization": f"bearer  {SECRET} "},
        {"api-key": SECRET},
    ):
        assert accounts.authenticate(good).name == "a"
    for bad in (
        {},
        {"authorization": SECRET},
        {"authorization": f"Basic {SECRET}"},
        {"api-key": f"{SECRET}x"},
        {"api-key": ""},
        {"api-key": "\xe9"},
        {"api-key": DIGEST},
    ):
        with pytest.raises(Unauthorized):
            accounts.authenticate(bad)
    assert Accounts(KeyRing()).authenticate({}).name == "anonymous"


def test_the_file_in_the_documentation_can_be_used(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "accounts.md").read_text(encoding="utf-8")
    example = page.partition("```text\n- name")[2].partition("```")[0]
    assert [key.name for key in read(file(tmp_path, f"- name{example}"))] == ["team-a", "nightly"]
