"""What the page makes of answers and requests: log-probabilities, and code for elsewhere."""

import json
import subprocess
from typing import Any

import pytest

from llama_serving.contract import azure, rows
from tests.conftest import post
from tests.support.browser import GREEDY, MARK, PageDriver, answering, text_of
from tests.support.in_process import LocalServer


@pytest.mark.parametrize("mode", ["Complete", "Chat"])
def test_probabilities_are_shown_for_each_token(user: PageDriver, server: LocalServer, mode: str) -> None:
    user.mode(mode)
    if mode == "Chat":
        user.page.get_by_label("Message", exact=True).fill("Übe ☺ with text")
        user.parameters(**GREEDY, logprobs="true", top_logprobs="3")
    else:
        user.parameters(**GREEDY, logprobs="3")
    with user.page.expect_request("**/v1/**completions") as sent:
        user.run()
    answer = post(sent.value.url, {**sent.value.post_data_json, "stream": False, "stream_options": None}).json[
        "choices"
    ][0]
    box = user.page.locator(".answer [role=group]")
    assert box.text_content() == (answer.get("text") or answer["message"]["content"])
    tokens = user.page.locator(".answer [data-token]")
    tokens.first.hover()
    logprobs = answer["logprobs"]
    first = logprobs["token_logprobs"][0] if mode == "Complete" else logprobs["content"][0]["logprob"]
    assert f"(ln {first:.3f})".replace("-", "−") in user.text("#token")
    assert user.page.locator("#token code").count() >= 3
    shown = user.text("#token")
    box.focus()
    user.page.keyboard.press("End")
    assert user.text("#token") != shown
    user.page.keyboard.press("Home")
    assert user.text("#token") == shown


TEXT = "a😀é"
COMPLETION = {"tokens": ["a", "bytes:\\xf0", "bytes:\\x9f\\x98\\x80", "é"], "token_logprobs": [-0.1, -1, -2, -3], "text_offset": [0, 1, 1, 2],
              "top_logprobs": [{"a": -0.1}, {}, {}, {"<b>": -4, "é": -3}]}  # fmt: skip
PARTS = ([97], [0xF0], [0x9F, 0x98, 0x80], [0xC3, 0xA9], [0xE2])  # the last one is cut off, as by a stop string
CHAT = {
    "content": [
        {
            "token": "x",
            "bytes": raw,
            "logprob": -at,
            "top_logprobs": [{"token": "<b>", "bytes": [60], "logprob": -4}],
        }
        for at, raw in enumerate(PARTS)
    ]
}


@pytest.mark.parametrize(("mode", "logprobs"), [("Complete", COMPLETION), ("Chat", CHAT)])
def test_tokens_that_share_a_character_are_one(user: PageDriver, mode: str, logprobs: Any) -> None:
    chat = mode == "Chat"
    text = {"delta": {"content": TEXT}} if chat else {"text": TEXT}
    chunk = {"choices": [{"index": 0, "finish_reason": "stop", "logprobs": logprobs, **text}]}
    stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    user.page.route("**/v1/**completions", answering(stream))
    user.mode(mode)
    if chat:
        user.page.get_by_label("Message", exact=True).fill("hello")
    user.run()
    tokens = user.page.locator("[data-token]")
    assert tokens.all_text_contents() == ["a", "😀", "é"]
    tokens.last.hover()
    assert user.text("#token").startswith('"é" 5.0 % (ln −3.000)')
    assert '"<b>" 1.8 %' in user.text("#token")


def snippet(user: PageDriver, form: str) -> str:
    if user.page.locator("#elsewhere").get_attribute("open") != "":
        user.page.locator("#elsewhere summary").click()
    user.page.get_by_label("Form", exact=True).select_option(form)
    user.page.locator("#copy-code").click()
    return str(user.page.evaluate("navigator.clipboard.readText()"))


TRICKY = "def f(s='it''s', t=\"\\\\n\"):\n    return $HOME `x` é ☺\n"


@pytest.mark.parametrize("mode", ["Complete", "Fill in", "Chat"])
def test_the_same_request_runs_elsewhere(
    user: PageDriver, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user.mode(mode)
    label, text = {
        "Complete": ("Prompt", TRICKY),
        "Fill in": ("Code", f"{TRICKY}{MARK}\n# end\n"),
        "Chat": ("Message", TRICKY),
    }[mode]
    user.page.get_by_label(label, exact=True).fill(text)
    user.parameters(**GREEDY, min_tokens="8", top_k="7", stop="\\n\\n\\n", seed=str(2**63 - 1))
    shown = {form: snippet(user, form) for form in ("curl", "python", "az", "row")}
    with user.page.expect_response("**/v1/**completions") as got:
        user.run()
    expected = text_of(got.value.text())
    assert expected

    done = subprocess.run(["bash", "-c", shown["curl"]], capture_output=True, text=True, timeout=60, check=True)
    assert text_of(done.stdout) == expected

    exec(compile(shown["python"], "snippet", "exec"), {})
    assert capsys.readouterr().out == expected

    file, command = shown["az"].split("\naz ml ")
    assert command == "online-endpoint invoke --name ENDPOINT --request-file request.json"
    body = json.loads(file.removeprefix("cat > request.json <<'JSON'\n").removesuffix("\nJSON"))
    row = rows.request(rows.read(shown["row"].encode()), rows.defaults({}))
    assert azure.parse(body).inputs == row.inputs
    assert azure.parse(body).parameters == row.parameters
    assert row.parameters.seed == 2**63 - 1
