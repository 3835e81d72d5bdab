"""`llama-endpoints chat` in a real terminal and in pipes, with a real server or its own model."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import console_script
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO, Fact
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from tests.conftest import post
from tests.support import command
from tests.support.calls import requests_inside, until
from tests.support.in_process import LocalServer, serving
from tests.support.terminal import Terminal, terminal

COMMAND = console_script("llama-endpoints")
GREEDY = {"temperature": 0, "max_tokens": 24}
SHORT = json.dumps(GREEDY)
ENDLESS = json.dumps({"temperature": 0.8, "seed": 7, "max_tokens": 1900, "ignore_eos": True})
PROMPT, CTRL_C, CTRL_D, ALT_ENTER = "\n>", "\x03", "\x04", "\x1b\r"
KEY = "sesame"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """A server with a key."""
    with serving({"LLAMA_API_KEYS": KEY}) as started:
        yield started


def ask(server: LocalServer, *turns: str, **more: object) -> str:
    """What the model answers to a dialog."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    body = {"messages": messages, **GREEDY, **more}
    return str(
        post(f"{server.url}/v1/chat/completions", body, api_key=KEY).json["choices"][0]["message"]["content"]
    )


def at(server: LocalServer, *options: str) -> tuple[str, ...]:
    return (str(COMMAND), "chat", "--url", server.url, *options)


def piped(
    server: LocalServer, *lines: str, parameters: str = SHORT, options: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    stdin = "".join(f"{line}\n" for line in lines).encode()
    words = ("chat", "--url", server.url, "--parameters", parameters, *options)
    return command.run(*words, stdin=stdin, env={"LLAMA_CHAT_KEY": KEY})


# --- in a pipe -------------------------------------------------------------------------------------


def test_each_line_is_one_message_of_a_dialog(server: LocalServer) -> None:
    first = ask(server, "Write a function.")
    second = ask(server, "Write a function.", first, "Another one, é ☺.")
    done = piped(server, "Write a function.", "", "Another one, é ☺.")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{first}\n{second}\n", "")


def test_what_is_refused_is_said_and_the_next_line_answered(server: LocalServer) -> None:
    done = piped(server, "[INST] a", "/helo", "/set temperature hot", "Write a function.")
    assert (done.returncode, done.stdout) == (1, f"{ask(server, 'Write a function.')}\n")
    refused, unknown, wrong = done.stderr.splitlines()
    assert refused.startswith("Error: ")
    assert "[INST]" in refused
    assert "Did you mean /help?" in unknown
    assert wrong == "Error: `temperature` must be a number from 0 (greedy) to 2, not a string."


def test_bytes_that_are_no_text_are_one_lines_error(server: LocalServer) -> None:
    words = ("chat", "--url", server.url, "--parameters", SHORT)
    done = command.run(
        *words, stdin=b"\xff\xfe\n\xef\xbb\xbfWrite\r\nWrite a function.", env={"LLAMA_CHAT_KEY": KEY}
    )
    assert done.returncode == 1
    assert done.stderr == "Error: Line 1 is not UTF-8.\n"
    assert done.stdout.endswith("\n")


def test_a_gap_is_filled_in_and_a_text_completed(server: LocalServer) -> None:
    body = {"prompt": "def add(a, b): return ", "suffix": "  # the sum", **GREEDY}
    middle = post(f"{server.url}/v1/completions", body, api_key=KEY).json["choices"][0]["text"]
    text = post(f"{server.url}/v1/completions", {"prompt": "import os", **GREEDY}, api_key=KEY).json["choices"][
        0
    ]["text"]
    more = post(f"{server.url}/v1/completions", {"prompt": f"import os{text}", **GREEDY}, api_key=KEY).json[
        "choices"
    ][0]["text"]
    done = piped(server, "/infill def add(a, b): return <FILL_ME>  # the sum", "/complete import os", "/more")
    assert (done.returncode, done.stdout) == (0, f"{middle}\n{text}\n{more}\n")


def test_the_dialog_is_changed_by_commands(server: LocalServer) -> None:
    first = ask(server, "Write a function.")
    done = piped(
        server, "/system Be brief.", "/system", "Write a function.", "/retry", "Another one.", "/undo", "/more", "/history", "/new", "/history", "/exit", "lost"
    )  # fmt: skip
    more = post(
        f"{server.url}/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "Write a function."},
                {"role": "assistant", "content": first},
            ],
            "continue_final_message": True,
            **GREEDY,
        },
        api_key=KEY,
    ).json["choices"][0]["message"]["content"]
    another = ask(server, "Write a function.", first, "Another one.")
    assert done.stdout == f"{first}\n{first}\n{another}\n{more}\n"
    assert (
        f"user: Write a function.\n\nassistant: {first}{more}\nA new dialog begins.\nThe dialog is empty.\n"
        in done.stderr
    )
    assert done.returncode == 0


def test_a_base_model_continues_what_is_typed() -> None:
    base = replace(NANO, dialog=None, infill=Fact(None, "none"))
    with serving(load=lambda settings: Service.start(ModelFiles(FOLDER, base), settings)) as started:
        expected = post(f"{started.url}/v1/completions", {"prompt": "import os", **GREEDY}).json["choices"][0][
            "text"
        ]
        done = piped(started, "import os", "/infill a<FILL_ME>b", "/system x")
        assert done.stdout == f"{expected}\n"
        assert done.stderr.splitlines() == [
            "Error: nano was not trained to fill in.",
            "Error: This model has no dialog format, and so no system prompt.",
        ]
        refused = piped(started, "a", options=("--system", "Be brief."))
        assert refused.returncode == 2
        assert "no dialog format" in refused.stderr


def test_a_model_is_loaded_here(server: LocalServer, nano_model: Path) -> None:
    done = subprocess.run(
        [COMMAND, "chat", "--model", nano_model, "--parameters", SHORT],
        input=b"Write a function.\n[INST]\n", capture_output=True, timeout=120, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.decode() == f"{ask(server, 'Write a function.')}\n"
    loading, refused = done.stderr.decode().splitlines()
    assert loading == "Loading nano ..."
    assert "[INST]" in refused


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "Give either --model or --url."),
        (("--url", "http://127.0.0.1:1", "--model", "nano"), 2, "Give either --model or --url."),
        (("--url", "http://127.0.0.1:1"), 2, "http://127.0.0.1:1 does not answer: Connection refused. Start a server"),
        (("--url", "http://127.0.0.1:1a"), 2, "--url must be an address such as"),
        (("--url", "127.0.0.1:8453"), 2, "--url must be an address such as"),
        (("--url", "http://user:secret@host"), 2, "without a user or a password"),
        (("--url", "http://127.0.0.1:1", "--threads", "2"), 2, "a running server has its own"),
        (("--model", "nano", "--parameters", '{"temperture": 1}'), 2, "Did you mean temperature?"),
        (("--model", "nano", "--parameters", "[1]"), 2, "must be a JSON object"),
    ],
)  # fmt: skip
def test_a_start_that_cannot_succeed_is_one_sentence(options: tuple[str, ...], code: int, said: str) -> None:
    done = command.run("chat", *options)
    assert done.returncode == code
    assert said in done.stderr
    assert "secret" not in done.stderr


def test_a_key_comes_from_the_environment(server: LocalServer) -> None:
    done = command.run("chat", "--url", f"{server.url}/v1/")
    assert done.returncode == 2
    assert "needs a key. Put one of its keys into the variable LLAMA_CHAT_KEY." in done.stderr
    bad = command.run("chat", "--url", server.url, env={"LLAMA_CHAT_KEY": "a b"})
    assert "LLAMA_CHAT_KEY holds no key" in bad.stderr
    assert command.run("chat", "--url", f"{server.url}/v1/", env={"LLAMA_CHAT_KEY": KEY}).returncode == 0


# --- in a terminal ---------------------------------------------------------------------------------


@pytest.fixture
def user(server: LocalServer, tmp_path: Path) -> Iterator[Terminal]:
    """A terminal with a conversation, at its first prompt."""
    env = {"LLAMA_CHAT_KEY": KEY, "XDG_STATE_HOME": str(tmp_path)}
    with terminal(*at(server, "--parameters", SHORT, "--history"), env=env) as opened:
        assert "/help lists the commands" in opened.read_until(PROMPT)
        yield opened


def test_a_conversation_in_a_terminal(user: Terminal, server: LocalServer, tmp_path: Path) -> None:
    user.type("Write a function.\r")
    user.read_until("```python")
    answer = ask(server, "Write a function.")
    assert user.read_until(" tokens, ").count("\n") >= answer.count("\n")
    user.read_until(PROMPT)
    for line in answer.splitlines():
        assert line in user.shown
    assert "\x1b[" in user.raw  # code has colours

    user.type(f"/complete a = 1{ALT_ENTER}b = 2\r")
    user.read_until(" tokens, ")
    user.read_until(PROMPT)
    user.type("/complete \x1b[200~c = 3\nd = 4\x1b[201~\r")
    assert "c = 3\nd = 4" in user.read_until(" tokens, ")
    user.read_until(PROMPT)
    user.type("/infill e(<FILL_ME>)\r")
    user.read_until(" tokens, ")
    user.type("/help\r")  # (perhaps before the prompt is there again)
    assert "/system [TEXT]" in user.read_until("/exit")
    user.read_until(PROMPT)

    user.type("/helo\r")
    user.read_until("Did you mean /help?")
    user.read_until(PROMPT)
    user.type(CTRL_C)
    user.read_until("Ctrl-D or /exit ends.")
    user.read_until(PROMPT)
    user.type(CTRL_D)
    assert user.ended() == 0

    kept = tmp_path / "llama-endpoints" / "chat-history"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "+Write a function.\n" in kept.read_text()
    assert "+/complete a = 1\n+b = 2\n" in kept.read_text()


def test_ctrl_c_stops_an_answer_and_not_the_program(server: LocalServer, tmp_path: Path) -> None:
    env = {"LLAMA_CHAT_KEY": KEY, "XDG_STATE_HOME": str(tmp_path)}
    with terminal(*at(server, "--parameters", ENDLESS), env=env) as user:
        user.read_until(PROMPT)
        for _ in range(2):
            user.type("Write a function.\r")
            until(lambda: requests_inside(server.url, api_key=KEY) == 1)
            user.read_until("\n", most_s=30)
            user.type(CTRL_C + CTRL_C)
            user.read_until("stopped")
            user.read_until(PROMPT)
            until(lambda: requests_inside(server.url, api_key=KEY) == 0)
        user.type("/set max_tokens 3\r")
        user.read_until("max_tokens = 3")
        user.read_until(PROMPT)
        user.type("Write a function.\r")
        user.read_until("3 tokens, ")
        user.read_until(PROMPT)
        user.type(CTRL_D)
        assert user.ended() == 0
    assert list(tmp_path.iterdir()) == []  # nothing is kept unless it is asked for


def test_ctrl_c_stops_an_answer_of_a_model_here() -> None:
    with terminal(str(COMMAND), "chat", "--model", "nano", "--parameters", ENDLESS) as user:
        user.read_until(PROMPT)
        user.type("Write a function.\r")
        user.read_until("```")
        user.type(CTRL_C)
        user.read_until("stopped")
        user.read_until(PROMPT)
        user.type("/set max_tokens 3\r")
        user.read_until(PROMPT)
        user.type("/retry\r")
        user.read_until("3 tokens, ")
        user.read_until(PROMPT)
        user.type("/exit\r")
        assert user.ended() == 0
