"""The page is accessible: axe-core, the keyboard, both colour schemes, small screens."""

from typing import Any

import pytest

from tests.support.browser import GREEDY, LONG, PageDriver
from tests.support.in_process import LocalServer
from tests.support.page_pictures import PICTURES, SCENES


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
        "nodes => nodes.filter((node) => node.checkVisibility() && !node.disabled && !node.matches('[role=tab][aria-selected=false]')).map((node) => node.id)"
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
