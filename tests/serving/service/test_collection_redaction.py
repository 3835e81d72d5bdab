"""What redaction removes: every kind of key and address, wherever it stands; and what it leaves alone."""

import string
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.service.collection import redaction
from llama_serving.service.collection.redaction import RedactionError, Redactor, Span, merged

KEY = "the-operators-own-key"
REDACTOR = Redactor([KEY])
ALNUM = string.ascii_letters + string.digits
APART = st.sampled_from(["", " ", "\n", " (", '"', "'", "<", "\t", "é ", "🦙 ", "`", "=", ":", ", "])
"""What may stand beside a key."""


def redacted(text: str, *secrets: str) -> str:
    return REDACTOR.redacting(secrets)(text)


def of(alphabet: str, least: int, most: int | None = None) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most or least)


PRIVATE_KEY = st.builds(
    lambda kind, body: f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----",
    st.sampled_from(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "]),
    of(ALNUM + "+/=\n", 30, 300),
)
SECRETS = {
    "email": st.builds(
        lambda name, host, end: f"{name}x@{host}.{end}",
        of(ALNUM + "._+-", 1, 80), of(string.ascii_lowercase, 1, 30), st.sampled_from(["com", "co.uk", "example"]),
    ),
    "aws": of(string.ascii_uppercase + string.digits, 16).map(lambda rest: f"AKIA{rest}"),
    "github": st.builds(
        lambda kind, rest: f"gh{kind}_{rest}", st.sampled_from("pousr"), of(ALNUM, 36, 60)
    ),
    "gitlab": of(ALNUM + "_", 20, 90).map(lambda rest: f"glpat-{rest}0"),
    "openai": st.builds(
        lambda kind, rest: f"sk-{kind}{rest}0", st.sampled_from(["", "proj-", "ant-api03-"]), of(ALNUM + "_", 20, 150)
    ),
    "hugging face": of(ALNUM, 34).map(lambda rest: f"hf_{rest}"),
    "stripe": of(ALNUM, 24).map(lambda rest: f"sk_live_{rest}0"),
    "storage": of(ALNUM + "+/", 86).map(lambda rest: f"AccountKey={rest}=="),
    "token": st.builds(
        lambda head, body, end: f"eyJ{head}.eyJ{body}.{end}",
        of(ALNUM + "_-", 10, 60), of(ALNUM + "_-", 10, 3000), of(ALNUM + "_-", 20, 90),
    ),
    "private key": PRIVATE_KEY,
    "own": st.just(KEY),
}  # fmt: skip
ANY_SECRET = st.one_of(*SECRETS.values())


@given(st.text(max_size=50), APART, ANY_SECRET, APART, st.text(max_size=50))
@settings(max_examples=100, deadline=None)
def test_a_secret_is_gone_whatever_stands_around_it(
    before: str, left: str, secret: str, right: str, after: str
) -> None:
    clean = redacted(f"{before} {left}{secret}{right} {after}")
    assert secret not in clean
    assert "[REDACTED:" in clean
    assert secret[-20:] not in clean.replace(before, "").replace(after, "")


@given(st.lists(st.one_of(ANY_SECRET, st.text(ALNUM, max_size=9)), max_size=6), st.sampled_from(" \n,"))
@settings(max_examples=30, deadline=None)
def test_several_secrets_are_gone(parts: list[str], between: str) -> None:
    clean = redacted(between.join(parts))
    for part in parts:
        assert part not in clean or len(part) < 10


PLACES = st.one_of(
    st.integers(0, 3 * redaction.WINDOW),
    st.builds(lambda number, back: number * redaction.WINDOW - back, st.integers(1, 3), st.integers(0, 30)),
)
"""Anywhere, and over the border of what is searched at a time."""


@given(PLACES, st.sampled_from(["x y ", "def f(x):\n    return x\n"]), ANY_SECRET)
@settings(max_examples=40, deadline=None)
def test_a_secret_is_found_anywhere_in_a_long_text(at: int, filler: str, secret: str) -> None:
    text = (filler * (4 * redaction.WINDOW // len(filler)))[: 4 * redaction.WINDOW]
    clean = redacted(f"{text[:at]} {secret} {text[at:]}")
    assert secret[-20:] not in clean
    assert clean.startswith(text[: max(0, at - 1)])
    assert clean.endswith(text[at + 1 :])


@given(st.text(ALNUM + "-_.~+/", min_size=redaction.SHORTEST), st.text(), st.text())
@settings(deadline=None)
def test_the_request_s_own_key_is_gone_whatever_it_looks_like(secret: str, before: str, after: str) -> None:
    clean = redacted(f"{before}{secret}{after}", secret)
    outside = [
        part.partition("]")[2] if index else part for index, part in enumerate(clean.split("[REDACTED:"))
    ]
    assert all(secret not in part for part in outside)


@pytest.mark.parametrize("secret", ["x", "ollama", "EMPTY", "sk-none", ""])
def test_a_word_that_a_client_sends_as_its_key_stays(secret: str) -> None:
    text = f"import {secret} as x, {secret.upper()}"
    assert redacted(text, secret) == text
    assert Redactor([secret]).redacting()(text) == text


def test_an_id_keeps_keys_that_have_no_form() -> None:
    redact = REDACTOR.redacting(["ollama-server"])
    assert redact.by_form(f"ollama-server.{KEY}:1") == f"ollama-server.{KEY}:1"
    assert redact.by_form("AKIAIOSFODNN7EXAMPLE") == "[REDACTED:aws-access-key]"


NAMED = st.sampled_from(
    ["password", "API_KEY", "client-secret", "db_pwd", "token", "SECRET_KEY", "credentials"]
)
QUOTES = st.sampled_from(['"', "'", "`", '"""', '\\"', "\\'", '\\\\\\"'])
"""Among them those of JSON in JSON, and of JSON in that."""
ASSIGNED = st.sampled_from(
    [": ", "=", " = ", "  =  ", ":", " := ", " => ", ": str = ", ": Optional[str] = ", " == ", " = b", "=f"]
)
VALUES = st.text(ALNUM + "-_+/=!@#$%^&* ,.;:()[]{}<>", min_size=redaction.SHORTEST, max_size=40)


@given(NAMED, st.booleans(), ASSIGNED, QUOTES, VALUES)
@settings(deadline=None)
def test_a_quoted_value_behind_a_name_is_gone(
    name: str, as_key: bool, assigned: str, quote: str, value: str
) -> None:
    named = f"{quote}{name}{quote}" if as_key else name
    value = f"x9{value}9x"
    clean = redacted(f"{named}{assigned}{quote}{value}{quote}, x")
    assert clean == f"{named}{assigned}{quote}[REDACTED:password]{quote}, x"


@given(
    NAMED,
    st.sampled_from(["=", ": ", " = ", "  =  ", "=="]),
    st.text(ALNUM + "+/_=~!@#$%^*?|-", min_size=redaction.SHORTEST),
    st.sampled_from(["", ".", ". Then", ",", " x", "\n", ")", '"', ";x"]),
)
@settings(deadline=None)
def test_a_value_without_quotes_that_has_a_digit_is_gone(
    name: str, assigned: str, value: str, after: str
) -> None:
    clean = redacted(f"{name}{assigned}a{value}7{after}")
    assert clean.startswith(f"{name}{assigned}[REDACTED:")
    assert value not in clean
    assert clean.endswith(f"]{after}")


@pytest.mark.parametrize("head", ['"password": "', "password='", 'x = 1\npassword: str = """', "password=x1"])
@pytest.mark.parametrize("size", [9_000, 30_000])
def test_a_long_value_is_gone_as_a_whole(head: str, size: int) -> None:
    assert "aaaa" not in redacted(f"{head}{'a' * size}")


@pytest.mark.parametrize(
    "code",
    [
        "password = config.password1",
        "token = tokens8[0]",
        "secret = hash_sha256(b'x')",
        "token=self.next_token1()",
        'foo(password="", user="robert")',
        "password: str",
        "connection_string: https://db1.example/x",
        "The secret: 'tis\nthe season",
        'class Token:\n    """A word\'s part, and its id."""\n',
    ],
)
def test_what_is_no_value_stays(code: str) -> None:
    assert redacted(code) == code


# --- a prompt and what goes on behind it --------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "clean_prompt", "clean"),
    [
        ('API_KEY = "', 'hunter2hunter2"\n', 'API_KEY = "', '[REDACTED:password]"\n'),
        ('API_KEY = "hu', 'nter2hunter2"\n', 'API_KEY = "[REDACTED:password]', '[REDACTED:password]"\n'),
        ('API_KEY = "hunter2hu', "nter2", 'API_KEY = "[REDACTED:password]', "[REDACTED:password]"),
        ("token=abcd1234", "efgh y", "token=[REDACTED:assigned-key]", "[REDACTED:assigned-key] y"),
        ("AKIAIOSFODNN", "7EXAMPLE.", "[REDACTED:aws-access-key]", "[REDACTED:aws-access-key]."),
        (f"x {KEY[:9]}", f"{KEY[9:]} y", "x [REDACTED:own-key]", "[REDACTED:own-key] y"),
        ("def f(x):", "\n    return x", "def f(x):", "\n    return x"),
        ("a word", "AKIAIOSFODNN7EXAMPLE", "a word", "[REDACTED:aws-access-key]"),
        ("x", "", "x", ""),
    ],
)  # fmt: skip
def test_what_begins_in_a_prompt_and_ends_behind_it_is_gone_from_both(
    prompt: str, completion: str, clean_prompt: str, clean: str
) -> None:
    assert REDACTOR.redacting().together(prompt, [completion]) == (clean_prompt, (clean,))


@given(ANY_SECRET, st.data(), st.sampled_from(["", "x = 1\n", "y " * redaction.OVERLAP]))
@settings(max_examples=60, deadline=None)
def test_a_key_that_is_cut_anywhere_is_gone_from_both_sides(
    secret: str, data: st.DataObject, before: str
) -> None:
    at = data.draw(st.integers(0, len(secret)))
    prompt, (completion,) = REDACTOR.redacting().together(f"{before} {secret[:at]}", [f"{secret[at:]} z"])
    assert secret not in prompt + completion
    assert "[REDACTED:" in prompt + completion
    assert prompt.startswith(before)
    assert completion.endswith(" z") or "PRIVATE KEY" in secret


@pytest.mark.parametrize("cut", [10, 5_000, 20_000])
def test_a_value_that_began_long_before_the_border_is_gone(cut: int) -> None:
    value = "".join(f"{number:05}" for number in range(5_000))
    prompt, (completion,) = REDACTOR.redacting().together(f'API_KEY = "{value[:cut]}', [f'{value[cut:]}"\nx'])
    assert (prompt, completion) == ('API_KEY = "[REDACTED:password]', '[REDACTED:password]"\nx')


def test_of_a_gap_the_completion_stands_behind_the_prefix() -> None:
    prefix = "x = 1\ntoken=abcd"
    clean = REDACTOR.redacting().together(f"{prefix}<FILL_ME>\ny = 2", ["1234efgh"], len(prefix))
    assert clean == ("x = 1\ntoken=[REDACTED:assigned-key]<FILL_ME>\ny = 2", ("[REDACTED:assigned-key]",))


@given(st.text(max_size=300), st.text(max_size=300), st.integers(0, 300))
@settings(deadline=None)
def test_any_prompt_and_completion_are_redacted(prompt: str, completion: str, gap: int) -> None:
    REDACTOR.redacting().together(prompt, [completion, completion], min(gap, len(prompt)))


@given(st.text(max_size=2000))
@settings(deadline=None)
def test_any_text_is_redacted(text: str) -> None:
    redacted(text)


@given(st.text(string.ascii_letters + " \n()[]+-*%,.", max_size=2000))
@settings(deadline=None)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


CODE = '''
import os
API_KEY = os.environ["API_KEY"]

@app.route("/x")
def parse(tokens: list[int], *, token: str | None = None, max_tokens: int = 4096) -> str:
    """Return the risk-adjusted, task-oriented text of https://example.com/a/b?page=2."""
    password = getpass.getpass()
    secret = hashlib.sha256(b"x").hexdigest()[:8]
    hf_raise_for_status_of(response, max_tokens="max_new_tokens")
    return tokenizer.decode(tokens) if x @ y else f"{token}@{host}"
'''


def test_code_stays_as_it_is() -> None:
    assert redacted(CODE) == CODE


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer [REDACTED:bearer]"),
        ("curl -H 'authorization: bearer xyz.abc-123'", "curl -H 'authorization: bearer [REDACTED:bearer]'"),
        ("Bearer authentication. Bearer tokens", "Bearer authentication. Bearer tokens"),
        ("password = 'hunter2'", "password = '[REDACTED:password]'"),
        ('{"client_secret": "a b c d"}', '{"client_secret": "[REDACTED:password]"}'),
        ("export OPENAI_API_KEY=abcdef12345", "export OPENAI_API_KEY=[REDACTED:assigned-key]"),
        ("postgres://me:s3cr3t!@db/x", "postgres://me:[REDACTED:basic-auth]@db/x"),
        ("?sv=1&sig=abcdefghij0123456789%3D&se=2", "?sv=1&sig=[REDACTED:shared-access-signature]&se=2"),
        ("ada.lovelace+x@maths.example.org.", "[REDACTED:email]."),
        ("mailto:ada%40example.org", "mailto:[REDACTED:email]"),
        ("AKIAIOSFODNN7EXAMPLE", "[REDACTED:aws-access-key]"),
        ("key=ghp_" + "a1" * 18, "key=[REDACTED:github-token]"),
        ("AKIAIOSFODNN7EXAMPLE0123_x/y", "[REDACTED:aws-access-key]"),
        ("id:AKIAIOSFODNN7EXAMPLE.", "id:[REDACTED:aws-access-key]."),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_DEF-123 z", "[REDACTED:json-web-token] z"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_mark_tells_the_kind(text: str, clean: str) -> None:
    assert redacted(text) == clean


def test_a_private_key_that_was_cut_off_is_gone_to_the_end() -> None:
    assert redacted("x\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd") == "x\n[REDACTED:private-key]"


@given(st.text("ab .", max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans())))
def test_spans_become_ordered_and_apart(text: str, drawn: list[tuple[int, int, bool]]) -> None:
    spans = [Span(min(a, b, len(text)), min(max(a, b), len(text)), "x", wide) for a, b, wide in drawn]
    found = list(merged(text, spans))
    assert all(one.end <= next_.start for one, next_ in pairwise(found))
    covered = {at for one in found for at in range(one.start, one.end)}
    assert covered >= {at for one in spans for at in range(one.start, one.end)}


def test_a_short_key_of_a_client_s_own_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "LIMIT_S", 0.01)
    with pytest.raises(RedactionError):
        redacted("a" * 1_000_000, "a" * redaction.SHORTEST)


@pytest.mark.parametrize("text", ["eyJ" * 300_000, "//" * 500_000, "secret='" * 100_000, "a" * 1_000_000])
def test_no_text_takes_long(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that has run out ends the search in the middle of a pattern, too."""
    monkeypatch.setattr(redaction, "LIMIT_S", 0.01)
    with pytest.raises(RedactionError):
        redacted(text)
