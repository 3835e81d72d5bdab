"""The pictures of page and chat in docs/pictures. After a change of either: `python -m tests.support.page_pictures`."""

import sys
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from llama_endpoints.chat.conversation import Conversation
from llama_endpoints.chat.local import LocalModel
from llama_endpoints.chat.loop import talk
from llama_endpoints.chat.screen import TerminalScreen
from llama_serving.settings import Settings
from tests.support.browser import PageDriver, chromium
from tests.support.in_process import load_nano, serving
from tests.support.paths import ROOT

WIDTH: Final = 92
PICTURES: Final = ROOT / "docs" / "pictures"
WIDE: Final = {"width": 1180, "height": 900}
SMALL: Final = {"width": 390, "height": 844}


def light(driver: PageDriver) -> None:
    """A completion with the probabilities of its tokens."""
    driver.parameters(max_tokens="64", temperature="0", logprobs="4")
    driver.run()
    driver.page.locator("[data-token].p1, [data-token].p0, [data-token].p2").first.hover()


def dark(driver: PageDriver) -> None:
    """A text that was filled in, and the request as code."""
    driver.mode("Fill in")
    driver.parameters(max_tokens="48", temperature="0.2", seed="1")
    driver.run()
    driver.page.locator("#elsewhere summary").click()
    driver.page.get_by_label("Form", exact=True).select_option("python")
    driver.page.locator("#snippet").evaluate("node => node.scrollIntoView({block: 'end'})")
    driver.page.evaluate("window.scrollTo(0, 0)")


def small(driver: PageDriver) -> None:
    """A dialog on a telephone."""
    driver.mode("Chat")
    driver.page.get_by_label("Message", exact=True).fill("Write a function that adds two numbers.")
    driver.page.locator("#parameters summary").click()
    driver.parameters(max_tokens="96", temperature="0")
    driver.page.locator("#parameters summary").click()
    driver.run()
    driver.page.evaluate("window.scrollTo(0, 0)")


class _Typed:
    """What is typed, echoed as the line editor shows it."""

    def __init__(self, console: Console, *texts: str) -> None:
        self._console, self._texts = console, iter(texts)

    def read(self) -> str:
        text = next(self._texts, None)
        if text is None:
            raise EOFError
        self._console.print(Text("\n> " + text.replace("\n", "\n  ")))
        return text


def photograph_chat(browser: Any, path: Path) -> None:
    """Take a picture of a conversation in the terminal, with the embedded model."""
    console = Console(
        file=StringIO(), force_terminal=True, color_system="standard", record=True, highlight=False, width=WIDTH
    )
    typed = _Typed(
        console,
        "/set temperature 0",
        "Write a function that adds two numbers.",
        '/set stop ["\\n\\n"]',
        "/infill class Point:\n    def __init__(self, x, y):\n        <FILL_ME>\n\n    def length(self):\n        return math.hypot(self.x, self.y)",
    )
    with closing(load_nano(Settings())) as service:
        conversation = Conversation(chats=True, parameters={"max_tokens": 64})
        talk(LocalModel(service), conversation, typed, TerminalScreen(console), interactive=True)
    html = console.export_html(theme=SVG_EXPORT_THEME, inline_styles=True)
    with browser.new_context(device_scale_factor=1.5) as context:
        page = context.new_page()
        page.set_content(html)
        page.add_style_tag(
            content="pre { padding: 14px; margin: 0; width: max-content; font-size: 13px; line-height: 1.45 }"
        )
        page.locator("pre").screenshot(path=path)


SCENES: Final = {
    "page-light": (light, "light", WIDE),
    "page-dark": (dark, "dark", WIDE),
    "page-small": (small, "light", SMALL),
}


def photograph(browser: Any, url: str, name: str, path: Path) -> None:
    """Take one picture."""
    scene, scheme, size = SCENES[name]
    scale = 1 if size is WIDE else 2
    with browser.new_context(color_scheme=scheme, viewport=size, device_scale_factor=scale) as context:
        driver = PageDriver(context.new_page()).open(url)
        scene(driver)
        driver.page.screenshot(path=path)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else PICTURES
    with chromium() as running, serving() as server:
        photograph_chat(running, folder / "chat.png")
        for picture in SCENES:
            photograph(running, server.url, picture, folder / f"{picture}.png")
            click.echo(picture)
