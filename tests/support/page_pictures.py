"""The pictures of the page in docs/pictures. After a change of the page: `python -m tests.support.page_pictures`."""

import sys
from pathlib import Path
from typing import Any, Final

import click

from tests.support.browser import PageDriver, chromium
from tests.support.in_process import serving
from tests.support.paths import ROOT

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
    driver.page.get_by_label("Form").select_option("python")
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
        for picture in SCENES:
            photograph(running, server.url, picture, folder / f"{picture}.png")
            click.echo(picture)
