"""JSON that is read by lines has the same lines for every reader: U+0085, U+2028 and U+2029 are escaped in it."""

import json
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli import endpoint, main
from llama_endpoints.endpoints import status
from llama_serving.batch.journal import Entry, EntryState, Journal
from llama_serving.batch.outputs import Outputs, place
from llama_serving.contract.json_lines import json_document, json_line
from tests.conftest import ROOT

BREAKS: Final = "a\x85b\u2028c\u2029d"
ELSEWHERE: Final = {
    "score/llama_serving/server/responses.py",  # a whole body, which nobody reads by lines
    "deployment/llama_endpoints/cli/validate.py",
    "deployment/llama_endpoints/nano/tokenizer.py",  # which only its training runs
}
"""Files that write JSON with its characters as they are, beside the one that is for it."""


@given(text=st.text() | st.sampled_from((BREAKS, "\r\n\x0b\x1c")))
def test_a_line_is_one_line_for_every_reader(text: str) -> None:
    line = json_line({text: [text]})
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {text: [text]}


def test_a_document_has_the_same_lines_for_every_reader() -> None:
    text = json_document({BREAKS: [BREAKS]}, indent=2)
    assert text.splitlines() == text.removesuffix("\n").split("\n")
    assert json.loads(text) == {BREAKS: [BREAKS]}


def test_json_that_keeps_its_characters_is_written_in_one_place() -> None:
    files = [path for folder in ("score", "deployment") for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if "ensure_ascii=False" in path.read_text()}
    assert found - ELSEWHERE == {"score/llama_serving/contract/json_lines.py"}


def test_the_manifest_and_the_journal_of_a_job(tmp_path: Path) -> None:
    """A file's name may hold such a character, and so may parameters."""
    outputs = Outputs(tmp_path / "out.jsonl")
    job = {"inputs": {f"{BREAKS}.jsonl": {"sha256": "1"}}, "parameters": {"stop": BREAKS}}
    journal = Journal(outputs.journal, job)
    journal.append(Entry(0, EntryState.OK, 1, 2, "{}"))
    journal.sync()
    written = outputs.journal.read_text(encoding="utf-8")
    assert written.splitlines() == written.removesuffix("\n").split("\n")
    place(outputs, job, journal)
    journal.close()
    manifest = outputs.manifest.read_text(encoding="utf-8")
    assert manifest.splitlines() == manifest.removesuffix("\n").split("\n")
    assert json.loads(manifest)["job"] == job


def test_what_status_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    found = status.EndpointStatus("e", "Succeeded", "https://e", BREAKS, ())
    monkeypatch.setattr(status, "endpoint_status", lambda client, name: found)
    monkeypatch.setattr(endpoint, "client_of", lambda **workspace: None)
    done = CliRunner().invoke(main.main, ["status", "--endpoint", "e", "--json"], catch_exceptions=False)
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["rollout"] == BREAKS
