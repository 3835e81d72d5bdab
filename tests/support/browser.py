"""A real headless Chromium, and what tests do on the page with it."""

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.calls import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PATIENCE_MS = 60_000
GREEDY = {"temperature": "0", "max_tokens": "24"}
LONG = {"temperature": "0.8", "seed": "7", "max_tokens": "1900", "ignore_eos": "true"}
MARK = "<FILL_ME>"


@contextmanager
def chromium() -> "Iterator[Browser]":
    """Run Chromium; skip where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("the page is not tested here: there is no chromium on PATH")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the page is not tested here: playwright is not installed"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class PageDriver:
    """The page as a user has it, and all that the browser complained of."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                self.complaints.append(said.text)
                if said.type in ("error", "warning") and "status of" not in said.text
                else None
            ),
        )

    def open(self, url: str, *, ready: bool = True) -> "PageDriver":
        """Load the page, and wait until it knows the model."""
        self.page.goto(f"{url}/")
        if ready:
            self.page.locator("#model strong").wait_for()
        return self

    def mode(self, name: str) -> None:
        """Choose a tab by its text."""
        self.page.get_by_role("tab", name=name).click()

    def parameters(self, **values: str) -> None:
        """Type values into the fields of parameters."""
        for name, value in values.items():
            field = self.page.get_by_label(name, exact=True)
            if field.evaluate("node => node.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)

    def run(self) -> str:
        """Press the button, and return the status at the end."""
        self.page.locator("#run").click()
        return self.finished()

    def finished(self) -> str:
        """Wait until nothing runs any more, and return the status."""
        self.wait("document.getElementById('stop').disabled && !document.getElementById('run').disabled")
        return self.text("#status")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true. (Playwright's own way is `eval`, which the page's policy forbids.)"""
        until(lambda: bool(self.page.evaluate(expression)))

    def text(self, selector: str) -> str:
        """The text of an element, exactly."""
        return self.page.locator(selector).evaluate("node => node.textContent")

    def answer(self) -> str:
        """The text that the model wrote, without what surrounds it."""
        return self.text("#output .answer > span:not(.given)")


def answering(body: str, *, status: int = 200, media_type: str = "text/event-stream") -> Any:
    """Return a handler of a route: the server's answer is this."""

    def handle(route: "Route") -> None:
        route.fulfill(status=status, headers={"content-type": media_type}, body=body)

    return handle


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
