"""The page in a real headless Chromium, before a real server with the embedded model."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import PageDriver, chromium
from tests.support.in_process import LocalServer, serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for a file. (Playwright's event loop runs in this thread until it is closed, and no other file may meet it.)"""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[LocalServer]:
    """One server for a file, started only where there is a browser."""
    with serving() as started:
        yield started


@pytest.fixture
def user(browser: Any, server: LocalServer) -> Iterator[PageDriver]:
    """The page, opened; at the end the browser must have had nothing to complain of."""
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        driver = PageDriver(context.new_page()).open(server.url)
        yield driver
        assert driver.complaints == []
