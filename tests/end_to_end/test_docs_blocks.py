"""The code blocks of README.md, CONTRIBUTING.md and docs/ run as they stand. `text` blocks need Azure, a GPU or a second shell."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import RunningServer
from tests.support.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SERVERS = ("http://127.0.0.1:8453", "https://ENDPOINT.REGION.inference.ml.azure.com")
"""Addresses in blocks; a server with the embedded model stands for them."""
LANGUAGES = {
    "sh": "here",
    "python": "here",
    "console": "in test_docs_commands.py",
    "json": "an example of a body",
    "yaml": "in test_guards_configuration.py",
    "nginx": "in test_proxies_in_front.py",
    "caddy": "in test_proxies_in_front.py",
    "text": "not run",
    "": "a diagram",
}


def blocks(language: str) -> list[str]:
    """The blocks of all pages in that language, each once."""
    found = (match for page in PAGES for match in BLOCK.findall(page.read_text(encoding="utf-8")))
    return list(dict.fromkeys(text for name, text in found if name == language))


def test_every_block_is_run_or_marked() -> None:
    names = {name for page in PAGES for name, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert names <= LANGUAGES.keys()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy: what the commands make is no part of this checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("environments", "score", "yaml"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("block", blocks("sh"))
def test_shell(block: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    script = block.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    if SERVERS[0] in script:
        own: RunningServer = request.getfixturevalue("own")
        script = script.replace(SERVERS[0], own.url).replace("curl ", "curl --fail --silent --show-error ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"make() {{ :; }}\n{script}"],  # (what make runs has tests of its own)
        cwd=checkout, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str, own: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    for address in SERVERS:
        block = block.replace(address, own.url)
    exec(compile(block, "block", "exec"), {})
    assert "print(" not in block or capsys.readouterr().out.strip()


def test_make_has_every_target_that_is_named() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`|&& )make ([a-z][a-z-]*)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert named >= {"run", "test", "serve", "docs", "load"}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_site_has_every_page() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
