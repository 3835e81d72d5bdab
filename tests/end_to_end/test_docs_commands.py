"""The commands of docs/ say what docs/ shows, against an Azure on loopback. After a change: `python -m tests.end_to_end.test_docs_commands`."""

import re
import shlex
import sys
import tempfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("azure.ai.ml", reason="the extra azure is not installed")

from tests.support.fake_azure.desk import BLUE, ROOT, Desk, a_desk

PAGES = ("deploy.md", "batch.md", "rollout.md")
BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
CLOCK = re.compile(r".*: \d\d:\d\d\s*")
"""Of the line that shows how long something takes."""


def shown(desk: Desk, command: str) -> str:
    """A command and what it says."""
    words = shlex.split(command.removeprefix("$ llama-endpoints "))
    said = desk.run(*words).output.replace("\r", "\n").splitlines()
    return "\n".join([command, *(line for line in said if line.strip() and not CLOCK.fullmatch(line))]) + "\n"


def ran(desk: Desk, page: str) -> str:
    """The page, with what its commands say now."""

    def block(found: re.Match[str]) -> str:
        commands = [line for line in found[1].splitlines() if line.startswith("$ ")]
        said = "\n".join(shown(desk, command) for command in commands)
        return f"```console\n{said}```"

    return BLOCK.sub(block, page)


def prepared(desk: Desk, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer takes 0.25 s by the page's clock."""
    monkeypatch.setattr(
        "llama_endpoints.endpoints.scoring.time", SimpleNamespace(monotonic=count(0, 0.25).__next__)
    )
    if page == "rollout.md":
        desk.up(BLUE)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_is_said(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    with a_desk(tmp_path, monkeypatch) as desk:
        prepared(desk, page, monkeypatch)
        assert ran(desk, text) == text
    assert text.count("\n$ ") >= 3


if __name__ == "__main__":
    for name in sys.argv[1:] or PAGES:
        path = ROOT / "docs" / name
        with (
            tempfile.TemporaryDirectory() as folder,
            pytest.MonkeyPatch.context() as patch,
            a_desk(Path(folder), patch) as made,
        ):
            prepared(made, name, patch)
            path.write_text(ran(made, path.read_text(encoding="utf-8")), encoding="utf-8")
            patch.chdir(ROOT)
