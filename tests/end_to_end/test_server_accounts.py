"""Our own server's accounts: usage, audit and the engine agree to the token, and quotas hold, whatever clients do."""

import json
import random
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator
from openai import OpenAI, RateLimitError

from llama_endpoints.devtools.servers import free_port, own_server
from llama_serving.contract.receipt import of_ids
from llama_serving.contract.server_openapi import QUOTA_HEADERS
from llama_serving.server import json_logs
from llama_serving.server.accounts import audit
from llama_serving.server.accounts.chain import links, records
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.conftest import Answer, post
from tests.support import command
from tests.support.calls import get, until
from tests.support.in_process import LocalServer, load_nano, logged, serving

SECRET = "sk-secret-{}"
PROMPT = "def hidden_words(x):"


def keys_file(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "keys.yml"
    path.write_text(json.dumps(entries))
    return path


def key(name: str, **limits: int) -> dict[str, Any]:
    return {"name": name, "key": SECRET.format(name), **limits}


def ask(server: LocalServer, name: str, path: str = "/v1/completions", **body: Any) -> Answer:
    return post(server.url + path, {"prompt": PROMPT, **body}, Authorization=f"Bearer {SECRET.format(name)}")


def audited(path: Path) -> list[dict[str, Any]]:
    files = [*path.parent.glob("audit*.jsonl")]
    assert sum(1 for _ in links(files)) > 0
    return [record for file in files for _, record, _ in records(file)]


def by_key(server: LocalServer, name: str, counter: str) -> dict[str, float]:
    lines = get(f"{server.url}/metrics", Authorization=f"Bearer {SECRET.format(name)}").text.splitlines()
    start = f'llama_key_{counter}_total{{key="'
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)}


# --- equal to the token -----------------------------------------------------------------------------


class Client:
    """One client of many: it asks in some way, and may leave in the middle of the answer."""

    def __init__(self, server: LocalServer, number: int, *, long: bool) -> None:
        self._long = long
        self._place, self._random = urlsplit(server.url), random.Random(number)
        self._key, self._number = f"k{number % 5}", number

    def __call__(self) -> None:
        body = {
            "prompt": [PROMPT, "x = "][: self._random.randint(1, 2)] if self._number % 3 else PROMPT,
            "max_tokens": self._random.choice([0, 1, 7, 60, 300]),
            "n": self._random.choice([1, 2]),
            "stream": self._number % 3 == 0,
            "temperature": 0.8,
            "stop": self._random.choice([None, "\n"]),
            **({} if self._number % 17 else {"top_p": 9}),  # a bad request
            **({"max_tokens": 80, "ignore_eos": True} if self._long else {}),
        }
        with socket.create_connection(
            (self._place.hostname or "", self._place.port or 0), timeout=60
        ) as connection:
            raw = json.dumps(body).encode()
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"api-key: %s\r\nContent-Length: %d\r\n\r\n%s"
                % (SECRET.format(self._key).encode(), len(raw), raw)
            )
            if self._random.random() < 0.5 and not self._long:
                self._read(connection, until=self._random.random() * 0.5)
            else:
                self._read(connection, until=60)

    def _read(self, connection: socket.socket, until: float) -> None:
        connection.settimeout(max(0.01, until))
        with suppress(TimeoutError):
            while connection.recv(4096):
                if self._random.random() < 0.1 and until < 60:
                    return


@pytest.mark.parametrize("ending", ["after all", "drained", "stopped"])
def test_usage_audit_and_engine_agree_to_the_token(tmp_path: Path, ending: str) -> None:
    """However clients leave, and however the server ends."""
    services: list[Service] = []

    def load(settings: Settings) -> Service:
        services.append(load_nano(settings))
        return services[-1]

    clients = 100 if ending == "after all" else 20
    env = {
        "LLAMA_NAMED_KEYS": str(keys_file(tmp_path, *(key(f"k{number}") for number in range(5)))),
        "LLAMA_AUDIT": str(tmp_path / "audit.jsonl"),
        "LLAMA_AUDIT_MAX_BYTES": "20KiB",
        "LLAMA_QUEUE": "40",
    }
    with serving(env, load=load) as server, ThreadPoolExecutor(clients) as crowd:
        begun = [crowd.submit(Client(server, number, long=ending != "after all")) for number in range(clients)]
        if ending == "after all":
            for one in begun:
                one.result()
            until(lambda: not server.assembly.accounts.num_open)
            read, made = by_key(server, "k0", "prompt_tokens"), by_key(server, "k0", "completion_tokens")
        else:
            until(lambda: services[0].engine.stats().tokens_out > 100)
            server.signal(signal.SIGTERM)
            if ending == "stopped":
                server.signal(signal.SIGTERM)
            server.exit_code.result(timeout=60)
    stats, found = services[0].engine.stats(), audited(tmp_path / "audit.jsonl")
    counts = server.assembly.accounts.usage.by_key()
    assert stats.tokens_out > 0
    assert sum(one["prompt_tokens"] for one in found) == stats.tokens_in
    assert sum(one["completion_tokens"] for one in found) == stats.tokens_out
    assert sum(one["sequences"] for one in found) == stats.sequences
    for name, one in counts.items():
        own = [line for line in found if line["key"] == name]
        assert len(own) == one.requests
        assert sum(line["prompt_tokens"] for line in own) == one.prompt_tokens
        assert sum(line["completion_tokens"] for line in own) == one.completion_tokens
        assert sum(line["error"] is not None for line in own) == one.errors
    assert sum(one.requests for one in counts.values()) == len(found)
    if ending == "after all":
        assert len(found) == clients
        assert sum(read.values()) == stats.tokens_in
        assert sum(made.values()) == stats.tokens_out
        reasons = Counter(reason for line in found for reason in line["finish_reasons"])
        assert reasons["cancelled"] > 0
        assert reasons["length"] > 0


# --- quotas -----------------------------------------------------------------------------------------


def test_a_crowd_gets_what_the_limit_allows_and_no_request_more(tmp_path: Path) -> None:
    path = keys_file(
        tmp_path, key("requests", requests_per_day=10), key("tokens", tokens_per_day=200), key("free")
    )
    with serving({"LLAMA_NAMED_KEYS": str(path)}) as server, ThreadPoolExecutor(30) as crowd:
        answers = list(crowd.map(lambda _: ask(server, "requests", max_tokens=1), range(30)))
        assert Counter(one.status for one in answers) == {200: 10, 429: 20}
        each = ask(server, "free", max_tokens=20, ignore_eos=True).json["usage"]["total_tokens"]
        answers = list(crowd.map(lambda _: ask(server, "tokens", max_tokens=20, ignore_eos=True), range(30)))
        assert Counter(one.status for one in answers) == {200: 200 // each, 429: 30 - 200 // each}
        assert ask(server, "free", max_tokens=1).status == 200
        for answer in answers:
            assert answer.headers["x-ratelimit-limit-tokens"] == "200"
            for name in (one for one in QUOTA_HEADERS if one in answer.headers):
                value, rule = answer.headers[name], QUOTA_HEADERS[name]["schema"]
                Draft202012Validator(rule).validate(int(value) if rule["type"] == "integer" else value)
            if answer.status == 429:
                assert answer.json["error"]["code"] == "rate_limit_exceeded"
                assert int(answer.headers["retry-after"]) == answer.json["error"]["retry_after"] > 0
                assert "The key tokens may use 200 tokens a day" in answer.json["error"]["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_request_does_not_use_is_returned(tmp_path: Path, streamed: bool) -> None:
    with serving({"LLAMA_NAMED_KEYS": str(keys_file(tmp_path, key("a", tokens_per_day=2000)))}) as server:
        used = ask(server, "a", max_tokens=8).json["usage"]["total_tokens"]
        ask(server, "a", max_tokens=1900, stop="\n", temperature=0, stream=streamed, n=1)
        ask(server, "a", max_tokens=4, n=16)  # as many sequences as there are, each with the prompt
        for streaming in (False, True):
            assert ask(server, "a", max_tokens=10**6, n=2, stream=streaming).status == 429
        assert ask(server, "a", max_tokens=5, top_p=7).status == 400
        until(lambda: not server.assembly.accounts.num_open)
        spent = server.assembly.accounts.usage.by_key()["a"]
        left = int(ask(server, "a", path="/score", max_tokens=5).headers["x-ratelimit-remaining-tokens"])
        assert left == 2000 - spent.prompt_tokens - spent.completion_tokens
        assert 16 * (used - 8) < spent.prompt_tokens


def test_openai_clients_know_the_limit(tmp_path: Path) -> None:
    with serving({"LLAMA_NAMED_KEYS": str(keys_file(tmp_path, key("a", requests_per_minute=1)))}) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key=SECRET.format("a"), max_retries=0)
        raw = client.completions.with_raw_response.create(model="nano", prompt="a", max_tokens=1)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(RateLimitError) as limited:
            client.completions.create(model="nano", prompt="a", max_tokens=1)
        assert limited.value.code == "rate_limit_exceeded"
        for path in ("/score", "/invocations", "/api/generate", "/completion"):
            assert ask(server, "a", path=path).status == 429
        for path in ("/metrics", "/v1/models", "/health"):
            answer = get(server.url + path, Authorization=f"Bearer {SECRET.format('a')}")
            assert answer.status == 200
            assert "x-ratelimit-limit-requests" not in answer.headers


def test_limits_of_a_day_survive_a_restart_where_there_is_an_audit(tmp_path: Path) -> None:
    limits = {"tokens_per_day": 1000, "requests_per_day": 3}
    env = {
        "LLAMA_NAMED_KEYS": str(keys_file(tmp_path, key("a", **limits))),
        "LLAMA_AUDIT": str(tmp_path / "audit.jsonl"),
    }
    with serving(env) as server:
        used = ask(server, "a", max_tokens=30).json["usage"]["total_tokens"]
        assert ask(server, "a", max_tokens=10**6, n=2).status == 429, (
            "refused for its tokens, it counts as a request"
        )
    with serving(env) as server:
        answer = ask(server, "a", max_tokens=1)
        own = answer.json["usage"]["total_tokens"]
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - used - own)
        assert ask(server, "a", max_tokens=1).status == 429


# --- keys -------------------------------------------------------------------------------------------


def test_sighup_reads_the_keys_again_and_keeps_them_if_it_cannot(tmp_path: Path) -> None:
    path = keys_file(tmp_path, key("a", requests_per_day=2), key("b"))
    with logged() as log, serving({"LLAMA_NAMED_KEYS": str(path)}) as server:

        def reloaded(content: str) -> str:
            before = len(log)
            path.write_text(content)
            server.signal(signal.SIGHUP)
            until(lambda: any("keys" in one.getMessage() for one in log[before:]))
            return " ".join(one.getMessage() for one in log[before:])

        assert ask(server, "a", max_tokens=1).status == 200
        assert "1 keys" in reloaded(json.dumps([key("a", requests_per_day=3)]))
        assert ask(server, "b").status == 401
        for left in ("1", "0"):
            assert ask(server, "a", max_tokens=1).headers["x-ratelimit-remaining-requests"] == left
        assert ask(server, "a", max_tokens=1).status == 429
        for bad in ("", f"- {SECRET.format('a')}", "- {name: c, key: x, surplus: 1}"):
            said = reloaded(bad)
            assert "the keys stay as they are" in said
            assert SECRET.format("a") not in said
            assert ask(server, "a", max_tokens=1).status == 429
        reloaded(json.dumps([key("b")]))
        assert ask(server, "b", max_tokens=1).status == 200
        assert get(f"{server.url}/health/ready").status == 200


# --- the audit --------------------------------------------------------------------------------------


def test_every_request_has_a_line_that_tells_no_text(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    bodies: list[tuple[str, dict[str, Any], int]] = [
        ("/v1/completions", {"max_tokens": 3, "stop": ["hidden_stop"], "user": "hidden_user"}, 200),
        ("/v1/completions", {"max_tokens": 3, "stream": True, "seed": 7}, 200),
        ("/v1/completions", {"max_tokens": 3, "response_format": {"type": "regex", "pattern": "hidden"}}, 400),
        ("/v1/completions", {"hidden_field": 1}, 400),
        ("/v1/completions", {"prompt": ["hidden", "hidden"], "max_tokens": 2, "n": 2}, 200),
        ("/api/generate", {"model": "hidden_model", "stream": False, "options": {"num_predict": 2}}, 200),
        ("/api/generate", {"prompt": "", "stream": False}, 200),
    ]
    env = {
        "LLAMA_NAMED_KEYS": str(keys_file(tmp_path, key("team-a"))),
        "LLAMA_AUDIT": str(path),
        "LLAMA_AUDIT_FSYNC": "true",
    }
    with logged() as log, serving(env) as server:
        for route, body, status in bodies:
            assert ask(server, "team-a", path=route, **body).status == status
        assert ask(server, "nobody").status == 401
        ids = server.assembly.lifecycle.ready().tokenizer.encode(PROMPT)
        bos = server.assembly.lifecycle.ready().variant.bos_id
        scraped = get(f"{server.url}/metrics", Authorization=f"Bearer {SECRET.format('team-a')}").text
    found, text = audited(path), path.read_text()
    assert [(one["route"], one["status"]) for one in found] == [(route, status) for route, _, status in bodies]
    for secret in ("hidden", SECRET.format("team-a")):
        assert secret not in text + scraped + "".join(one.getMessage() for one in log)
    assert found[0]["prompt_ids"] == [of_ids([bos, *ids])] == found[1]["prompt_ids"]
    assert found[0]["parameters"]["stop"] == 1
    assert found[1]["parameters"]["seed"] == 7
    assert found[1]["parameters"]["stream"] is True
    assert [one["error"] for one in found[2:4]] == ["invalid_value", "unknown_field"]
    assert found[4]["sequences"] == 4
    assert len(found[4]["prompt_ids"]) == 2
    assert {one["key"] for one in found} == {"team-a"}
    assert all(one["block"] is None for one in found)
    times = [one["time"] for one in found]
    assert times == sorted(times)


def test_requests_whose_lines_could_not_be_kept_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    with serving({"LLAMA_AUDIT": str(path)}) as server:
        url, body = f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1}
        assert post(url, body).status == 200
        with monkeypatch.context() as patch:
            patch.setattr(audit, "MOST_WAITING", 0)
            refused = post(url, body)
        assert refused.status == 503
        assert "The audit can't be written" in refused.json["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert get(f"{server.url}/health/ready").status == 200
        assert post(url, body).status == 200
    assert [line["status"] for line in audited(path)] == [200, 200]


def test_a_server_without_keys_is_audited_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with serving({"LLAMA_AUDIT": str(path)}) as server:
        answer = post(f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 1}, X_Request_Id="mine")
    (line,) = audited(path)
    assert (line["key"], line["status"], line["model"]) == ("anonymous", answer.status, "nano")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LLAMA_NAMED_KEYS", "missing.yml", "missing.yml can't be read: No such file or directory."),
        ("LLAMA_NAMED_KEYS", "empty.yml", "empty.yml holds no keys."),
        ("LLAMA_AUDIT", "missing/audit.jsonl", "LLAMA_AUDIT=missing/audit.jsonl can't be written"),
        ("LLAMA_AUDIT", "changed.jsonl", "The last line of the audit changed.jsonl can't be continued"),
    ],
)
def test_a_start_that_cannot_succeed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setattr(json_logs, "log_as_json", lambda: None)
    (tmp_path / "empty.yml").touch()
    (tmp_path / "changed.jsonl").write_text("{}\n")
    done = command.run(
        "serve", "--model", "nano", "--port", str(free_port("127.0.0.1")), cwd=tmp_path, env={name: value}
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# --- the process ------------------------------------------------------------------------------------


def test_a_process_reads_keys_at_sighup_and_leaves_a_whole_chain_to_the_next(tmp_path: Path) -> None:
    """A process: real signals, and what a kill leaves on the disk."""
    path, lines = keys_file(tmp_path, key("a")), tmp_path / "audit.jsonl"
    env = {"LLAMA_NAMED_KEYS": str(path), "LLAMA_AUDIT": str(lines)}
    body = {"prompt": "a", "max_tokens": 1}
    with own_server("nano", env=env) as server:
        url = f"{server.url}/v1/completions"
        assert post(url, body, api_key=SECRET.format("a")).status == 200
        keys_file(tmp_path, key("b"))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: post(url, body, api_key=SECRET.format("b")).status == 200)
        assert post(url, body, api_key=SECRET.format("a")).status == 401
        until(lambda: lines.read_text().count("\n") == 2)
        server.process.kill()
        server.process.wait(60)
    with serving(env) as after:
        assert post(f"{after.url}/v1/completions", body, api_key=SECRET.format("b")).status == 200
    assert [(line["line"], line["key"]) for line in audited(lines)] == [(1, "a"), (2, "b"), (3, "b")]
