"""The generated parts of docs/ are current. After a change: `python -m llama_endpoints.devtools.reference`."""

import re

from llama_endpoints.devtools.http_reference import CODES
from llama_endpoints.devtools.planning_page import tables
from llama_endpoints.devtools.reference import PAGES, files
from llama_serving.errors import ServingError
from tests.support.paths import ROOT


def test_all_files_are_current() -> None:
    stale = [path.name for path, text in files().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python -m llama_endpoints.devtools.reference"


def test_all_models_are_planned() -> None:
    assert tables()["models"].count("\n") == 2 + 18


def test_every_code_of_an_error_is_described() -> None:
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "score/llama_serving").rglob("*.py")
    )
    used = set(re.findall(r'\bcode="([a-z_]+)"', sources)) | {"empty_prompt", "invalid_value"}
    classes = {one.default_code for one in ServingError.__subclasses__()}
    assert used - classes == CODES.keys() - classes


def test_the_tables_are_not_empty() -> None:
    settings = PAGES["configuration.md"]()["settings"]
    assert re.search(r"`LLAMA_CONTEXT` \| .{10,} \| .*integer.*16 .* \|", settings)
    assert all(text.count("\n") > 4 for name in PAGES for text in PAGES[name]().values())
    assert "'-'" not in settings, "what is allowed does not quote the value that was tried"
    missing = [line for line in settings.splitlines()[2:] if not line.split("|")[2].strip()]
    assert missing == [], "each field of Settings has a line in the class's docstring"
