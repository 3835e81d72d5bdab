"""The page at `/` in a real headless Chromium, before a real server with the embedded model."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from llama_serving.contract import azure, rows
from llama_serving.contract.openapi import server_document
from tests.conftest import post
from tests.support.browser import GREEDY, PageDriver, answering, chromium
from tests.support.calls import requests_inside, until
from tests.support.in_process import LocalServer, serving
from tests.support.page_pictures import PICTURES, SCENES

KEY = "sesame"
MARK = "<FILL_ME>"
PROMPT = "def fib(n):"
LONG = {"temperature": "0.8", "seed": "7", "max_tokens": "1900", "ignore_eos": "true"}
EVIL = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>\n```html\n<script>document.title='owned'</script>\n```\nend"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[LocalServer]:
    """One server for all tests, started only where there is a browser."""
    with serving() as started:
        yield started


@pytest.fixture
def user(browser: Any, server: LocalServer) -> Iterator[PageDriver]:
    """The page, opened; at the end the browser must have had nothing to complain of."""
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        driver = PageDriver(context.new_page()).open(server.url)
        yield driver
        assert driver.complaints == []


def completion(server: LocalServer, **body: Any) -> Any:
    return post(f"{server.url}/v1/completions", {"temperature": 0, "max_tokens": 24, **body}).json["choices"][0]


def text_of(stream: str) -> str:
    """All text in a stream of either route."""
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(one["delta"].get("content", "") if "delta" in one else one["text"] for one in choices)


def events(*texts: str, chat: bool = False) -> str:
    """A stream of these pieces."""
    made = [{"delta": {"content": text}} if chat else {"text": text} for text in texts]
    chunks = [{"choices": [{"index": 0, "finish_reason": None, "logprobs": None, **one}]} for one in made]
    last = {
        "choices": [
            {"index": 0, "finish_reason": "stop", "logprobs": None, **({"delta": {}} if chat else {"text": ""})}
        ]
    }
    return "".join(f"data: {json.dumps(one)}\n\n" for one in (*chunks, last)) + "data: [DONE]\n\n"


# --- loading -------------------------------------------------------------------------------------


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


# --- the modes -----------------------------------------------------------------------------------


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


# --- parameters and errors -------------------------------------------------------------------------


def test_parameters_and_what_they_accept_are_the_documents(user: PageDriver) -> None:
    schemas = server_document()["components"]["schemas"]
    for mode, schema in (("Complete", "openai-completions"), ("Chat", "openai-chat")):
        user.mode(mode)
        labels = user.page.locator("#fields label").all_text_contents()
        assert {"max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "logprobs"} <= set(labels)
        assert set(labels) <= schemas[schema]["properties"].keys()
        assert not {"max_new_tokens", "num_return_sequences", "stream", "model", "tools"} & set(labels)
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
        driver.page.locator("#error:has-text('needs a key')").wait_for()
        assert driver.page.evaluate("document.activeElement.id") == "key"
        driver.page.keyboard.type(KEY)
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


# --- log-probabilities -----------------------------------------------------------------------------


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


# --- as code ---------------------------------------------------------------------------------------


def snippet(user: PageDriver, form: str) -> str:
    if user.page.locator("#elsewhere").get_attribute("open") != "":
        user.page.locator("#elsewhere summary").click()
    user.page.get_by_label("Form").select_option(form)
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


# --- for everybody -----------------------------------------------------------------------------------


def violations(page: Any) -> list[str]:
    """What axe-core finds. (It is injected by the debugger, past the page's policy.)"""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize(
    ("scheme", "width", "ground"), [("light", 1180, "rgb(246, 247, 248)"), ("dark", 390, "rgb(20, 23, 26)")]
)
def test_axe_finds_nothing(browser: Any, server: LocalServer, scheme: Any, width: int, ground: str) -> None:
    size: Any = {"width": width, "height": 800}
    with browser.new_context(color_scheme=scheme, viewport=size, bypass_csp=True) as context:
        driver = PageDriver(context.new_page()).open(server.url)
        driver.page.locator("#elsewhere summary").click()
        if width == 390:
            driver.page.locator("#parameters summary").click()
        assert violations(driver.page) == []
        for mode in ("Complete", "Fill in", "Chat"):
            driver.mode(mode)
            if mode == "Chat":
                driver.page.get_by_label("Message", exact=True).fill("Write a function.")
                driver.parameters(**GREEDY, logprobs="")
                driver.run()
                driver.page.get_by_label("Message", exact=True).fill("Another one.")
                driver.parameters(logprobs="true", top_logprobs="2")
            else:
                driver.parameters(**{**GREEDY, "temperature": "1.5"}, logprobs="3")
            driver.run()
            driver.page.locator("[data-token]").first.hover()
            driver.parameters(top_p="7")
            driver.page.locator("#run").click()
            assert driver.text("#error") != ""
            assert violations(driver.page) == []
            driver.parameters(top_p="")
        assert driver.page.evaluate("document.documentElement.scrollWidth") <= width
        assert driver.page.evaluate("getComputedStyle(document.body).backgroundColor") == ground


def test_everything_can_be_reached_and_done_by_keyboard(user: PageDriver) -> None:
    keys, page = user.page.keyboard, user.page
    page.evaluate("document.getElementById('key').focus()")
    reached = []
    for _ in range(40):
        keys.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    controls = page.locator("button, input, textarea, select, summary").evaluate_all(
        "nodes => nodes.filter((node) => node.checkVisibility() && !node.disabled && node.tabIndex >= 0).map((node) => node.id)"
    )
    assert set(controls) - {"key", ""} <= set(reached)
    page.locator("#tab-completion").focus()
    for tab in ("tab-infilling", "tab-chat", "tab-completion"):
        keys.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == tab
        assert page.locator(f"#{tab}").get_attribute("aria-selected") == "true"
    user.parameters(**LONG)
    page.locator("#run").focus()
    keys.press("Enter")
    assert page.evaluate("document.activeElement.id") == "stop"
    keys.press("Enter")
    assert user.finished().endswith("stopped")
    assert page.evaluate("document.activeElement.id") == "run"


def test_its_pictures_are_those_of_the_script() -> None:
    assert {path.stem for path in PICTURES.glob("page-*.png")} == SCENES.keys()
