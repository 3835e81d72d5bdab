"""Guards that need no service: rules, keys in texts, and a function of the operator's."""

import base64
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_serving.contract.content_filter import Finding, results
from llama_serving.errors import SetupError
from llama_serving.service.guards.callables import CallableGuard
from llama_serving.service.guards.growing_pattern import GrowingPattern, Subject
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.guards import Guards, Installed, Verdict
from llama_serving.service.guards.held_stream import HeldStream, Windows
from llama_serving.service.guards.rules import Rules
from llama_serving.service.guards.secret_detection import NO_DEFAULT, PIECE, SecretDetection


def found(guard: Any, text: str, *, start: int = 0, final: bool = True) -> list[str]:
    said = guard.check(Passage(Stage.TEXT, text, start, final))
    return [one.name for one in said if isinstance(one, Finding)]


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
        ("falkland\u0131", True),
        ("", False),
    ],
)
def test_deny_lists_match_whole_words_in_either_case(text: str, is_denied: bool) -> None:
    rules = Rules("deny", deny=["falcon", "straße", "rm -rf /", "c++", "FALKLANDI"], patterns={})
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


@given(st.text(min_size=1).filter(str.strip), st.data())
def test_an_entry_is_found_in_any_case(entry: str, data: st.DataObject) -> None:
    entry = entry.strip()
    text = "".join(
        data.draw(st.sampled_from((one, one.upper(), one.lower(), one.casefold(), one.title())))
        for one in entry
    )
    pattern = regex.compile(regex.escape(entry), regex.IGNORECASE | regex.FULLCASE)
    if pattern.fullmatch(text):  # (a final sigma's upper case is not one's lower case)
        assert found(Rules("deny", deny=[entry], patterns={}), text) == ["deny"]


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


SLOW = "sk-" * 4000 + "T3BlbkFJ"


def test_a_long_line_costs_what_its_length_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search is longer than a piece, and a text twice as long is searched twice as often."""
    searched: list[int] = []
    search = GrowingPattern.search

    def counting(self: GrowingPattern, subject: Subject, start: int, timeout_s: float, *, settled: bool) -> Any:
        searched.append(len(subject.text))
        return search(self, subject, start, timeout_s, settled=settled)

    monkeypatch.setattr(GrowingPattern, "search", counting)
    guard, counts = SecretDetection("secrets"), []
    for size in (1 << 19, 1 << 20):
        line = base64.b64encode(random.Random(size).randbytes(size))[:size].decode()
        assert found(guard, line) == []
        counts.append(len(searched))
        searched.clear()
    assert 1.9 < counts[1] / counts[0] < 2.1
    found(guard, "a" * PIECE * 3)
    assert 0 < max(searched) <= PIECE + 1


def test_a_slow_search_is_given_up_in_time() -> None:
    with pytest.raises(TimeoutError):
        found(SecretDetection("secrets", timeout_s=0.05), SLOW)


@given(st.integers(0, 3 * PIECE), st.sampled_from(sorted(KEYS)))
def test_keys_are_found_wherever_they_are_in_a_long_line(before: int, kind: str) -> None:
    line = "=" * before + f" {KEYS[kind]} " + "=" * PIECE
    assert found(SECRETS, line) == ["secrets"]


def test_a_piece_shares_more_with_the_next_one_than_the_longest_key_of_a_fixed_form() -> None:
    agent = "glagent-" + "a" * 1024
    for before in range(PIECE - 2 * len(agent), PIECE + 1, 97):
        line = "=" * before + f" {agent} " + "=" * PIECE
        assert found(SECRETS, line) == ["secrets"]


@st.composite
def lines_with_keys(draw: st.DrawFn) -> str:
    """Lines in which something is like a key."""
    detector = draw(st.sampled_from(DETECTORS))
    patterns = [regex for regex in getattr(detector, "denylist", ()) if "(?<=" not in regex.pattern]
    like = [st.from_regex(re.compile(one.pattern, one.flags & ~re.UNICODE | re.ASCII)) for one in patterns]
    parts = st.lists(
        st.one_of(st.text(max_size=5), st.sampled_from(("\n", "\r\n", " ", '"', *KEYS.values())), *like)
    )
    return "".join(draw(parts))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(lines_with_keys())
def test_what_detect_secrets_finds_is_found(text: str) -> None:
    """And nothing else: its own patterns, line by line, on texts of one piece."""
    text = text[:PIECE]
    theirs = [
        one.secret_type for one in DETECTORS if any(any(one.analyze_string(line)) for line in text.splitlines())
    ]
    findings = SECRETS.check(Passage(Stage.TEXT, text))
    assert [kind for finding in findings for kind in finding.detail["kinds"]] == theirs


@pytest.mark.parametrize("detector", sorted(NO_DEFAULT))
@pytest.mark.parametrize(
    "text",
    ['password = "abc1d2e3f4"', 'password = ""', "api_key: 'a1b2\nc3d4'", "http://user:pass@host", "http://user:pa\nss@host",
     "at 8.8.8.8 and 10.0.0.1", "10.0.0.1", "1.2.3.4.5", "nothing"],
)  # fmt: skip
def test_the_detectors_that_are_off_find_the_same(detector: str, text: str) -> None:
    guard = SecretDetection("secrets", detectors=[detector])
    theirs = any(any(guard._kinds[0].detector.analyze_string(line)) for line in text.splitlines())
    assert bool(found(guard, text)) is theirs


# --- streams --------------------------------------------------------------------------------------

RULES = Rules(
    "deny",
    deny=["cat", "rm -rf /", "c++"],
    patterns={
        "word": r"\bdog\b", "start": "^top", "line": r"(?m)^#\d+$", "end": r"end$", "very end": r"stop\Z", "behind": r"(?<!x)y\d+",
        "case": r"(?i)owl\w*", "rest": "fox.*", "verbose": "(?x) hen \\d  # a hen", "ahead": "bee(?!s)",
    },
)  # fmt: skip
SECRETS = SecretDetection("secrets")
BOTH = Guards([Installed("rules", RULES), Installed("secrets", SECRETS)])
DETECTORS = [one.detector for one in SECRETS._kinds]
WORDS = (
    "cat",
    "rm -rf /",
    "c++",
    "dog",
    "top",
    "#1",
    "end",
    "stop",
    "xy1",
    "y22",
    "OWL",
    "fox",
    "hen5",
    "bee",
    "bees",
    *KEYS.values(),
)
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(" \n\r\t.s_-\"'7")), max_size=12).map(
    "".join
)
BEGINNINGS = tuple({word[:length] for word in WORDS for length in range(1, len(word))})
"""Where a pause would tear what is blocked: its beginning may leave."""


def first_match(text: str) -> int:
    """Where the first of what is blocked begins."""
    patterns = [
        *RULES._deny.values(),
        *RULES._patterns.values(),
        *(one for kind in SECRETS._kinds for one in kind.patterns),
    ]
    return min(match.start() for one in patterns if (match := one.whole.search(text)) is not None)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(1, 40), st.integers(0, 40), st.data())
def test_a_stream_is_judged_as_its_whole_text(text: str, window: int, more: int, data: st.DataObject) -> None:
    """However it is divided; and of what is blocked nothing leaves, also where the model makes a long pause behind it."""
    held, now = HeldStream(Windows(window, 100 + more, 1.0)), 0.0
    at, blocked, out = 0, False, ""
    whole = first_match(text) if judged(Passage(Stage.TEXT, text)).findings else len(text)
    while at < len(text) and not blocked:
        at += data.draw(st.integers(1, 20), "piece")
        held.see(text[:at], now)
        stalled = data.draw(st.booleans()) and not text[:at].endswith(BEGINNINGS)
        for later in (0.0, 1.0, 1.0) if stalled else (0.0,):
            now += later
            if not blocked and (passage := held.due(now)) is not None:
                verdict = judged(passage)
                blocked = bool(verdict.findings)
                if not blocked:
                    held.passed(passage, verdict.pending)
            out += "" if blocked else held.take(now)
        assert held.patience(now) != 0.0 or blocked or not stalled, "it would be asked without a pause"
    assert (blocked or bool(judged(held.last(text)).findings)) is bool(
        judged(Passage(Stage.TEXT, text)).findings
    )
    assert text.startswith(out)
    assert len(out) <= whole


def judged(passage: Passage) -> Verdict:
    return BOTH.judge([passage])[0]


@pytest.mark.parametrize(("rest", "is_denied"), [(" there", True), ("egory", False)])
def test_what_may_become_a_longer_word_stays_however_long_the_pause_is(rest: str, is_denied: bool) -> None:
    held = HeldStream(Windows(window=1, overlap=0, max_delay_s=1.0))
    held.see("the cat", 0.0)
    passage = held.due(0.0)
    assert passage is not None
    held.passed(passage, judged(passage).pending)
    assert (held.take(0.0), held.take(60.0), held.patience(60.0)) == ("the ", "", None)
    held.see("the cat" + rest, 60.0)
    passage = held.due(60.0)
    assert passage is not None
    verdict = judged(passage)
    assert [one.name for one in verdict.findings] == (["deny"] if is_denied else [])
    held.passed(passage, verdict.pending)
    assert held.take(60.0) == "cat" + rest


def test_a_verbose_pattern_may_end_with_a_comment() -> None:
    assert found(RULES, "hen7 x", final=False) == ["verbose"]


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
