"""The page's parameters, errors and key."""

import json
from typing import Any

import pytest

from llama_serving.contract.server_openapi import server_document
from tests.support.browser import GREEDY, PageDriver, answering, events
from tests.support.in_process import LocalServer, serving

KEY = "sesame"


def test_parameters_and_what_they_accept_are_the_documents(user: PageDriver) -> None:
    schemas = server_document()["components"]["schemas"]
    for mode, schema in (("Complete", "openai-completions"), ("Chat", "openai-chat")):
        user.mode(mode)
        labels = user.page.locator("#fields label").all_text_contents()
        assert {"max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "logprobs"} <= set(labels)
        assert set(labels) <= schemas[schema]["properties"].keys()
        others = {
            "max_new_tokens",
            "num_return_sequences",
            "stream",
            "model",
            "tools",
            "cache_prompt",
            "samplers",
        }
        assert not others & set(labels)
    hint = user.page.get_by_label("temperature", exact=True).locator("xpath=..").locator(".hint")
    assert hint.text_content() == schemas["parameters"]["properties"]["temperature"]["description"]


def test_every_parameter_reaches_the_server(user: PageDriver) -> None:
    typed = {"max_tokens": "3", "temperature": "0.5", "top_p": "0.9", "top_k": "5", "min_p": "0.1", "seed": str(2**63 - 1),
             "repetition_penalty": "1.1", "presence_penalty": "-1", "frequency_penalty": "1", "stop": "a b\n\\n\\n",
             "n": "2", "min_tokens": "1", "do_sample": "true", "ignore_eos": "true"}  # fmt: skip
    user.parameters(**typed)
    with user.page.expect_request("**/v1/completions") as sent:
        user.run()
    body = json.loads(sent.value.post_data)
    assert body["seed"] == 2**63 - 1
    assert body["stop"] == ["a b", "\n\n"]
    assert {name: body[name] for name in typed if name not in ("seed", "stop")} == {
        name: json.loads(value) for name, value in typed.items() if name not in ("seed", "stop")
    }
    assert user.text("#error") == ""
    assert user.page.locator("#output .answer").count() == 2
    user.page.get_by_role("button", name="Reset").click()
    assert user.page.get_by_label("seed", exact=True).input_value() == ""


def test_a_parameter_that_the_document_adds_is_there(browser: Any, server: LocalServer) -> None:
    document = server_document()
    added = {"shape": {"description": "an object of sizes", "type": ["object", "null"]}, "other": True}
    document["components"]["schemas"]["openai-completions"]["properties"] |= added
    with browser.new_context() as context:
        driver = PageDriver(context.new_page())
        driver.page.route("**/openapi.json", answering(json.dumps(document), media_type="application/json"))
        driver.page.route("**/v1/completions", answering(events("text")))
        driver.open(server.url)
        assert driver.page.locator("#fields label").all_text_contents()[-1] == "shape"
        driver.parameters(shape='{"width": [1, 2')
        driver.page.locator("#run").click()
        assert driver.text("#error") == "shape must be an object of sizes."
        driver.parameters(shape='{"width": [1, 2]}')
        with driver.page.expect_request("**/v1/completions") as sent:
            driver.run()
        assert sent.value.post_data_json["shape"] == {"width": [1, 2]}


def test_a_wrong_value_is_said_before_it_is_sent(user: PageDriver) -> None:
    for name, value in (("temperature", "hot"), ("top_p", "0"), ("max_tokens", "1.5"), ("n", "17")):
        user.parameters(**{name: value})
        user.page.locator("#run").click()
        rule = server_document()["components"]["schemas"]["parameters"]["properties"]
        accepts = (
            rule.get(name, {}).get("description")
            or rule[{"max_tokens": "max_new_tokens", "n": "num_return_sequences"}[name]]["description"]
        )
        assert user.text("#error") == f"{name} must be {accepts}."
        assert user.page.evaluate("document.activeElement.id") == f"parameter-{name}"
        assert user.page.get_by_label(name, exact=True).get_attribute("aria-invalid") == "true"
        user.parameters(**{name: ""})
    assert user.page.locator("#fields [aria-invalid]").count() == 0


def test_the_servers_error_is_legible(user: PageDriver) -> None:
    user.parameters(n="2", temperature="0")
    user.page.locator("#run").click()
    user.finished()
    said = user.text("#error")
    assert "let it sample" in said
    assert "invalid_value · request " in said
    assert user.page.evaluate("document.activeElement.id") == "parameter-n"
    user.mode("Chat")
    message = user.page.get_by_label("Message", exact=True)
    message.fill("[INST] hello")
    user.run()
    assert "[INST]" in user.text("#error")
    assert message.input_value() == "[INST] hello"  # nothing was lost
    assert user.page.locator("#dialog li").count() == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (events("half").replace("data: [DONE]\n\n", ""), "The connection ended before the text did."),
        (
            events("half").partition("\n\n")[0]
            + '\n\ndata: {"error": {"message": "The engine died.", "code": "x"}}\n\n',
            "The engine died.",
        ),
    ],
)
def test_a_stream_that_breaks_off_keeps_its_text(user: PageDriver, body: str, said: str) -> None:
    user.page.route("**/v1/completions", answering(body))
    user.run()
    assert said in user.text("#error")
    assert user.answer() == "half"


def test_a_server_that_is_gone_is_said(user: PageDriver) -> None:
    user.page.route("**/v1/completions", lambda route: route.abort())
    user.run()
    assert user.text("#error").startswith("The server does not answer.")
    user.complaints.clear()  # (Chromium's own line about the request)


def test_a_key_is_asked_for_and_kept_in_memory(browser: Any) -> None:
    with serving({"LLAMA_API_KEYS": KEY}) as locked, browser.new_context() as context:
        driver = PageDriver(context.new_page()).open(locked.url, ready=False)
        driver.page.locator("#error:has-text('This server needs a key.')").wait_for()
        assert driver.page.evaluate("document.activeElement.id") == "key"
        driver.page.keyboard.type("wrong")
        driver.page.keyboard.press("Enter")
        driver.page.locator("#error:has-text('not one of the server')").wait_for()
        driver.page.get_by_label("API key").fill(KEY)
        driver.page.keyboard.press("Enter")
        driver.page.locator("#model strong").wait_for()
        driver.parameters(**GREEDY)
        assert " tokens/s · " in driver.run()
        assert driver.text("#error") == ""
        assert driver.page.evaluate(
            "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
        ) == [0, 0, "", f"{locked.url}/"]
        driver.page.locator("#elsewhere summary").click()
        assert KEY not in driver.text("#snippet")
        assert "$OPENAI_API_KEY" in driver.text("#snippet")


def test_text_is_copied_without_a_secure_context(browser: Any, server: LocalServer) -> None:
    with browser.new_context(permissions=["clipboard-read"]) as context:
        context.add_init_script(
            "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
        )  # as on http://a.name/
        driver = PageDriver(context.new_page()).open(server.url)
        driver.page.locator("#elsewhere summary").click()
        driver.page.locator("#copy-code").click()
        driver.page.get_by_role("button", name="Copied").wait_for()
        prompt = driver.page.get_by_label("Prompt", exact=True)
        prompt.fill("")
        prompt.press("Control+v")
        assert prompt.input_value().startswith("curl -N ")
