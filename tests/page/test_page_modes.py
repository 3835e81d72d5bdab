"""The page is loaded, and completes, fills in and chats."""

import json
from typing import Any

from tests.conftest import post
from tests.support.browser import GREEDY, LONG, MARK, PageDriver, answering, events, text_of
from tests.support.calls import requests_inside, until
from tests.support.in_process import LocalServer, serving

PROMPT = "def fib(n):"
EVIL = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>\n```html\n<script>document.title='owned'</script>\n```\nend"


def completion(server: LocalServer, **body: Any) -> Any:
    return post(f"{server.url}/v1/completions", {"temperature": 0, "max_tokens": 24, **body}).json["choices"][0]


def test_it_is_one_small_request_and_all_others_go_to_the_api(browser: Any, server: LocalServer) -> None:
    with browser.new_context() as context:
        driver = PageDriver(context.new_page())
        asked: list[str] = []
        driver.page.on("request", lambda request: asked.append(request.url))
        with driver.page.expect_response(f"{server.url}/") as got:
            driver.open(server.url)
        assert len(got.value.body()) < 100_000
        assert sorted(asked) == [f"{server.url}{path}" for path in ("/", "/openapi.json", "/v1/models")]
        assert driver.text("#model") == "nano · context 2048 tokens"
        assert driver.complaints == []


def test_the_policy_stops_what_is_not_its_own(user: PageDriver) -> None:
    blocked = user.page.evaluate(
        """async () => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
            const script = document.createElement("script");
            try { script.textContent = "window.owned = 1"; } catch { seen.push("trusted-types"); }
            document.body.append(script);
            await fetch("http://127.0.0.2:9/").catch(() => {});
            const style = document.createElement("style");
            style.textContent = "body { display: none }";
            document.body.append(style);
            await new Promise((done) => setTimeout(done, 50));
            return [seen, window.owned, getComputedStyle(document.body).display];
        }"""
    )
    assert {"connect-src", "style-src-elem"} <= set(blocked[0])
    assert blocked[1:] == [None, "block"]
    user.complaints.clear()


def test_a_loading_server_is_waited_for(browser: Any, server: LocalServer) -> None:
    with browser.new_context() as context:
        driver = PageDriver(context.new_page())
        loading = json.dumps(
            {"error": {"message": "The model is loading.", "code": "unavailable", "retry_after": 0.1}}
        )
        driver.page.route(
            "**/v1/models", answering(loading, status=503, media_type="application/json"), times=1
        )
        driver.open(server.url, ready=False)
        driver.page.locator("#model strong").wait_for()
        assert driver.text("#error") == ""


# --- modes -----------------------------------------------------------------------------------


def test_a_prompt_is_completed_and_taken_over(user: PageDriver, server: LocalServer) -> None:
    expected = completion(server, prompt=PROMPT)["text"]
    user.page.get_by_label("Prompt", exact=True).fill(PROMPT)
    user.parameters(**GREEDY)
    status = user.run()
    assert user.answer() == expected
    assert "24 tokens · " in status
    assert "tokens/s" in status
    assert "first text after" in status
    user.page.get_by_role("button", name="Copy text").click()
    user.page.get_by_role("button", name="Copied").wait_for()
    assert user.page.evaluate("navigator.clipboard.readText()") == expected
    user.page.get_by_role("button", name="Put it into the prompt").click()
    assert user.page.get_by_label("Prompt", exact=True).input_value() == PROMPT + expected


def test_whole_and_streamed_are_the_same(user: PageDriver) -> None:
    user.parameters(**GREEDY)
    user.run()
    streamed = user.answer()
    user.page.get_by_label("Stream").uncheck()
    status = user.run()
    assert user.answer() == streamed
    assert "first text" not in status


def test_a_stream_grows_and_is_stopped(user: PageDriver, server: LocalServer) -> None:
    user.parameters(**LONG)
    user.page.locator("#run").click()
    lengths = [0]
    for _ in range(3):
        user.wait(f"document.getElementById('output').textContent.length > {lengths[-1]}")
        lengths.append(len(user.answer()))
    assert lengths == sorted(set(lengths))
    user.wait("document.getElementById('speed').textContent.includes('tokens/s')")
    user.page.keyboard.press("Escape")
    assert user.finished().endswith("stopped")
    until(lambda: requests_inside(server.url) == 0)  # its place is free again
    assert len(user.answer()) >= lengths[-1]
    user.page.locator("#run").click()
    user.page.locator("#stop").click()
    assert user.finished().endswith("stopped")
    user.page.get_by_label("Stream").uncheck()
    user.page.locator("#run").click()
    until(lambda: requests_inside(server.url) == 1)
    user.page.locator("#stop").click()
    assert user.finished().endswith("stopped")
    until(lambda: requests_inside(server.url) == 0)


def test_the_gap_is_where_the_mark_is(user: PageDriver, server: LocalServer) -> None:
    before, after = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
    expected = completion(server, prompt=before, suffix=after)["text"]
    user.mode("Fill in")
    user.parameters(**GREEDY)
    code = user.page.get_by_label("Code", exact=True)
    code.fill(before + MARK + after)
    user.run()
    assert user.answer() == expected
    assert user.text("#output .answer") == before + expected + after
    user.page.get_by_role("button", name="Put it into the code").click()
    assert code.input_value() == before + expected + after


def test_without_a_mark_the_gap_is_at_the_cursor(user: PageDriver) -> None:
    user.mode("Fill in")
    code = user.page.get_by_label("Code", exact=True)
    user.parameters(**GREEDY)
    code.fill("ab")
    code.evaluate("node => node.setSelectionRange(1, 1)")
    with user.page.expect_request("**/v1/completions") as sent:
        user.run()
    assert [sent.value.post_data_json[name] for name in ("prompt", "suffix")] == ["a", "b"]
    code.evaluate("node => node.setSelectionRange(1, 1)")
    user.page.keyboard.press("Alt+m")
    assert code.input_value() == f"a{MARK}b"
    code.evaluate("node => node.setSelectionRange(0, 0)")
    user.page.locator("#mark").click()
    assert code.input_value() == f"{MARK}ab"
    code.fill(f"{MARK}{MARK}")
    user.page.locator("#run").click()
    assert user.text("#error") == f"The code holds {MARK} 2 times. Leave one of them."


def test_a_dialog_goes_on_and_is_taken_back(user: PageDriver, server: LocalServer) -> None:
    answers: list[str] = []
    told: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    user.mode("Chat")
    user.parameters(**GREEDY)
    user.page.get_by_label("System prompt").fill("Be brief.")
    message = user.page.get_by_label("Message", exact=True)
    for text in ("Write a function.", "Another one."):
        message.fill(text)
        with user.page.expect_response("**/v1/chat/completions") as got:
            message.press("Control+Enter")
            user.finished()
        answers.append(got.value.text())
        told.append({"role": "user", "content": text})
        answer = post(
            f"{server.url}/v1/chat/completions", {"messages": told, "temperature": 0, "max_tokens": 24}
        )
        told.append(answer.json["choices"][0]["message"])
    assert [text_of(answer) for answer in answers] == [told[2]["content"], told[4]["content"]]
    assert user.page.locator("#dialog .user .answer").all_text_contents() == [
        "Write a function.",
        "Another one.",
    ]
    user.page.get_by_role("button", name="Take back the last turn").click()
    assert user.page.locator("#dialog li").count() == 2
    assert message.input_value() == "Another one."
    user.page.get_by_role("button", name="New dialog").click()
    assert user.page.locator("#dialog li").count() == 0


def test_what_a_model_writes_is_text(user: PageDriver) -> None:
    for mode, chat in (("Complete", False), ("Chat", True)):
        user.page.route("**/v1/**completions", answering(events(*EVIL, chat=chat)), times=1)
        user.mode(mode)
        if chat:
            user.page.get_by_label("Message", exact=True).fill(EVIL)
        user.run()
        assert user.page.title() == "llama-endpoints"
        assert user.page.locator("main img, main b, main .answer script").count() == 0
    assert user.page.locator("#dialog .user .answer").text_content() == EVIL
    block = user.page.locator("#dialog .fenced")
    assert block.locator("pre").text_content() == "<script>document.title='owned'</script>"
    block.get_by_role("button").click()
    assert user.page.evaluate("navigator.clipboard.readText()") == "<script>document.title='owned'</script>"


def test_a_mode_that_the_model_lacks_is_shown_as_such(browser: Any, server: LocalServer) -> None:
    card = {"id": "base", "max_model_len": 99, "capabilities": ["completion"]}
    with browser.new_context() as context:
        driver = PageDriver(context.new_page())
        driver.page.route(
            "**/v1/models", answering(json.dumps({"data": [card]}), media_type="application/json")
        )
        driver.open(server.url)
        for name, why in (("Fill in", "it was not trained to fill in"), ("Chat", "it has no dialog format")):
            driver.mode(name)
            assert f"Not with base: {why}" in driver.text("[role=tabpanel]:not([hidden]) .lack")
            assert driver.page.locator("#run").is_disabled()
        driver.mode("Complete")
        assert driver.page.locator("#run").is_enabled()


def test_it_finds_the_server_below_a_prefix(browser: Any) -> None:
    """As a proxy that strips it or not has it, with and without a slash at the end."""
    with serving({"LLAMA_PATH_PREFIX": "/a/llama"}) as prefixed, browser.new_context() as context:
        for path in ("", "/", "/a/llama", "/a/llama/"):
            driver = PageDriver(context.new_page())
            driver.page.goto(prefixed.url + path)
            driver.page.locator("#model strong").wait_for()
            driver.page.get_by_text("This request as code").click()
            assert f"{prefixed.url}{path.rstrip('/')}/v1/completions" in driver.text("#snippet")
            assert driver.complaints == []
