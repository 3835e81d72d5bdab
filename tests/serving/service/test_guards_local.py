"""Guards that need no service: rules, keys in texts, and a function of the operator's."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.contract.content_filter import Finding, results
from llama_serving.errors import SetupError
from llama_serving.service.guards.callables import CallableGuard
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.rules import Rules
from llama_serving.service.guards.secret_detection import NO_DEFAULT, SecretDetection


def found(guard: Any, text: str, *, start: int = 0, final: bool = True) -> list[str]:
    return [one.name for one in guard.check(Passage(Stage.TEXT, text, start, final))]


@pytest.mark.parametrize(
    ("text", "is_denied"),
    [
        ("the Falcon project", True),
        ("FALCON", True),
        ("falcon.", True),
        ("falconry", False),
        ("a_falcon", False),
        ("strasse", True),
        ("STRAẞE", True),
        ("rm -rf /tmp", True),
        ("farm -rf /", False),
        ("C++", True),
        ("c++11", True),
        ("", False),
    ],
)
def test_deny_lists_match_whole_words_in_either_case(text: str, is_denied: bool) -> None:
    rules = Rules("deny", deny=["falcon", "straße", "rm -rf /", "c++"], patterns={})
    assert found(rules, text) == (["deny"] if is_denied else [])


def test_a_word_that_may_go_on_is_not_denied_yet() -> None:
    rules = Rules("deny", deny=["class"], patterns={})
    assert found(rules, "the class", final=False) == []
    assert found(rules, "the class", final=True) == ["deny"]
    assert found(rules, "the class ", start=9, final=False) == ["deny"]
    assert found(rules, "the classical", start=9, final=False) == []


@given(st.text(min_size=1).filter(str.strip), st.text(), st.text())
def test_every_entry_of_a_deny_list_is_found(entry: str, before: str, after: str) -> None:
    entry = entry.strip()
    assert found(Rules("deny", deny=[entry], patterns={}), f"{before} {entry} {after}") == ["deny"]


def test_patterns_are_found_by_name_also_over_the_border_of_what_is_new() -> None:
    rules = Rules("rules", patterns={"host": r"\b\w+\.corp\.example\b", "ticket": r"(?i)abc-\d+"})
    assert found(rules, "see db1.corp.example and ABC-12") == ["host", "ticket"]
    assert found(rules, "see db1.corp.example", start=10) == ["host"]
    assert found(rules, "nothing") == []


def test_a_pattern_that_backtracks_for_ever_is_given_up() -> None:
    rules = Rules("rules", patterns={"slow": r"(a|aa)+\d"}, timeout_s=0.05)
    with pytest.raises(TimeoutError):
        found(rules, "a" * 5000)


@pytest.mark.parametrize(
    ("pattern", "why"), [("(", "invalid"), ("a*", "empty text"), (r"\p{Nowhere}", "invalid")]
)
def test_a_pattern_that_can_not_be_used_stops_the_start(pattern: str, why: str) -> None:
    with pytest.raises(SetupError, match=why):
        Rules("rules", patterns={"p": pattern})


# --- keys -----------------------------------------------------------------------------------------

KEYS = {
    "AWS Access Key": "AKIA" + "IOSFODNN7" + "EXAMPLE",
    "GitHub Token": "ghp_" + "a1B2" * 9,
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Stripe Access Key": "sk_live_" + "a1B2c3D4" * 3,
    "Slack Token": "xoxb-" + "123456789012-123456789012-" + "a1B2c3D4e5F6",
    "JSON Web Token": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJl",
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_are_found_wherever_they_are(kind: str) -> None:
    text = f'import os\n\nKEY = "{KEYS[kind]}"\nprint(KEY)\n'
    (finding,) = SecretDetection("secrets").check(Passage(Stage.TEXT, text))
    assert kind in finding.detail["kinds"]
    assert KEYS[kind] not in str(results([finding]))


def test_code_without_keys_passes() -> None:
    """Every file of the service itself: names, hashes, addresses and passwords that are none."""
    guard = SecretDetection("secrets")
    sources = Path(__file__).parents[3] / "score" / "llama_serving"
    texts = {path.name: path.read_text() for path in sorted(sources.rglob("*.py"))[:60]}
    assert [name for name, text in texts.items() if found(guard, text)] == []


def test_only_the_named_detectors_run() -> None:
    guard = SecretDetection("secrets", detectors=["AWSKeyDetector"])
    assert found(guard, KEYS["AWS Access Key"]) == ["secrets"]
    assert found(guard, KEYS["Slack Token"]) == []
    with pytest.raises(SetupError, match=r"AwsKey.*AWSKeyDetector"):
        SecretDetection("secrets", detectors=["AwsKey"])


def test_the_detectors_that_are_off_exist() -> None:
    for name in NO_DEFAULT:
        SecretDetection("secrets", detectors=[name])


# --- functions ------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "house_guard.py").write_text(
        "def check(stage, text):\n    return {'no': False, 'yes': True, 'why': 'because', 'odd': 1}.get(text)\n"
        "async def later(stage, text):\n    return None\n"
        "NUMBER = 1\n"
    )
    (tmp_path / "broken_guard.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "house_guard"


def test_a_functions_answers(module: str) -> None:
    guard = CallableGuard("house", f"{module}:check")

    def said(text: str) -> list[Finding]:
        return guard.check(Passage(Stage.PROMPT, text))

    assert said("no") == said("another") == []
    assert said("yes") == [Finding("house", filtered=True)]
    assert said("why") == [Finding("house", True, {"reason": "because"})]
    with pytest.raises(TypeError):
        said("odd")


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nowhere_at_all:check", "ModuleNotFoundError"),
        ("house_guard:absent", "AttributeError"),
        ("broken_guard:check", "ZeroDivisionError"),
        ("house_guard:later", "plain function"),
        ("house_guard:NUMBER", "plain function"),
    ],
)
def test_a_function_that_can_not_be_used_stops_the_start(module: str, place: str, why: str) -> None:
    with pytest.raises(SetupError, match=re.escape(why)):
        CallableGuard("house", place)
