"""The file of LLAMA_GUARDS: what it may hold, and that anything else stops the start with one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_serving.catalog import NANO
from llama_serving.contract.content_filter import Finding
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service.guards import configuration
from llama_serving.service.guards.guard import Passage, Stage
from llama_serving.service.guards.guards import NO_GUARDS
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.paths import ROOT
from tests.support.scripted import scripted

RULES = {"type": "rules", "deny": ["falcon"]}
AZURE = {"type": "azure-content-safety", "endpoint": "https://x.cognitiveservices.azure.com"}


def test_without_a_file_there_are_no_guards() -> None:
    assert configuration.load(None) is NO_GUARDS
    assert not any(map(NO_GUARDS.watches, Stage))


@pytest.mark.parametrize("dumps", [yaml.safe_dump, json.dumps])
def test_a_file_is_yaml_or_json_and_its_paths_begin_in_its_folder(tmp_path: Path, dumps: Any) -> None:
    (tmp_path / "words.txt").write_text("falcon\n\n  grey goose \n", encoding="utf-8")
    given = {
        "window": 50,
        "guards": [{"type": "rules", "name": "words", "deny_file": "words.txt", "stages": ["text"]}],
    }
    (tmp_path / "guards.yml").write_text(dumps(given))
    guards = configuration.load(str(tmp_path / "guards.yml"))
    assert guards.windows.window == 50
    assert (guards.watches(Stage.PROMPT), guards.watches(Stage.TEXT)) == (False, True)
    for text in ("a falcon", "a grey goose"):
        ((finding,),) = guards.check([Passage(Stage.TEXT, text)])
        assert (finding.name, finding.filtered) == ("words", True)


def test_the_digest_tells_files_of_guards_and_what_they_name_apart(tmp_path: Path) -> None:
    file, words = tmp_path / "guards.yml", tmp_path / "words.txt"
    file.write_text(yaml.safe_dump({"guards": [{"type": "rules", "deny_file": "words.txt"}]}))
    words.write_text("falcon\n", encoding="utf-8")
    first = configuration.digest(str(file))
    assert configuration.digest(str(file)) == first
    words.write_text("goose\n", encoding="utf-8")
    second = configuration.digest(str(file))
    file.write_text(file.read_text() + "window: 50\n")
    assert len({first, second, configuration.digest(str(file))}) == 3
    words.unlink()
    with pytest.raises(SetupError, match=r"LLAMA_GUARDS=.*words\.txt can't be read"):
        configuration.digest(str(file))
    file.write_text("guards: 1")
    with pytest.raises(SetupError, match=r"LLAMA_GUARDS=.*must be a list"):
        configuration.digest(str(file))


def test_the_files_in_the_documentation_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "guards.md").read_text(encoding="utf-8")
    monkeypatch.setitem(configuration._MAKERS, "overlap", lambda entry, folder: Nothing())
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        configuration.of(yaml.safe_load(block), Path()).close()


class Nothing:
    def check(self, passage: Passage) -> list[Finding]:
        return []


def test_a_stream_holds_back_the_longest_word_of_a_deny_list() -> None:
    long = "w" * 500
    assert (
        configuration.of({"overlap": 3, "guards": [{"type": "rules", "deny": [long]}]}, Path()).windows.overlap
        == 501
    )


@pytest.mark.parametrize("kind", ["secrets", "rules"])
def test_what_is_annotated_does_not_block(kind: str) -> None:
    entry = {
        "type": kind,
        "action": "annotate",
        **({"deny": ["AKIAIOSFODNN7EXAMPLE"]} if kind == "rules" else {}),
    }
    ((finding,),) = configuration.of({"guards": [entry]}, Path()).check(
        [Passage(Stage.TEXT, "AKIAIOSFODNN7EXAMPLE")]
    )
    assert not finding.filtered


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "the file must be an object with `guards`"),
        ({}, "the file lacks `guards`"),
        ({"guards": []}, "`guards` must be a list of guards"),
        ({"guard": [], "guards": [RULES]}, "unknown key `guard`. Did you mean `guards`?"),
        ({"guards": [{}]}, "`guards[0]` lacks `type`"),
        ({"guards": [RULES, {"type": "rule"}]}, "`guards[1].type` must be one of rules, secrets"),
        ({"guards": [{**RULES, "pattern": {}}]}, "unknown key `pattern`. Did you mean `patterns`?"),
        ({"guards": [{**RULES, "on_error": "warn"}]}, "`guards[0].on_error` must be block or allow"),
        ({"guards": [{**RULES, "stages": []}]}, "`guards[0].stages` must be a list with prompt, text or both"),
        ({"guards": [{**RULES, "timeout_s": 0}]}, "`guards[0].timeout_s` must be a number from 0.01 to 60"),
        ({"guards": [{"type": "rules"}]}, "`guards[0]` must be rules with deny, deny_file or patterns"),
        ({"guards": [{**RULES, "name": "a b"}]}, "`guards[0].name` must be letters"),
        ({"guards": [RULES, RULES]}, "two guards have the name rules"),
        ({"window": 0, "guards": [RULES]}, "`window` must be an integer from 1 to 10000"),
        ({"guards": [{"type": "rules", "deny_file": "nowhere.txt"}]}, "nowhere.txt can't be read (No such file"),
        ({"guards": [{"type": "overlap", "index": "nowhere.idx"}]}, "nowhere.idx can't be read (No such file"),
        ({"guards": [{"type": "secrets", "detectors": ["X"]}]}, "the detector X"),
        ({"guards": [AZURE]}, "`guards[0]` must be one of key_env, key_file and managed_identity"),
        ({"guards": [{**AZURE, "key_env": "NO_SUCH_KEY"}]}, "the variable NO_SUCH_KEY holds no key"),
        ({"guards": [{**AZURE, "key_env": "K", "severities": {"Hat": 2}}]}, "`guards[0].severities` has a name"),
        ({"guards": [{**AZURE, "key_env": "K", "endpoint": "x"}]}, "`guards[0].endpoint` must be an address"),
        ({"guards": [{"type": "callable", "callable": "os.path"}]}, "`guards[0].callable` must be package.module"),
        ({"guards": [{"type": "callable", "callable": "nowhere:f"}]}, "can't import nowhere:f"),
    ],
)  # fmt: skip
def test_what_can_not_be_used_is_one_sentence(tmp_path: Path, given: Any, sentence: str) -> None:
    path = tmp_path / "guards.json"
    path.write_text(json.dumps(given))
    with pytest.raises(SetupError) as refused:
        configuration.load(str(path))
    assert sentence in str(refused.value)
    assert str(refused.value).startswith(f"LLAMA_GUARDS={path} can't be used: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["{", "a: b: c", "\x00", "- &a [*a]\n- !!python/object:os.system x"])
def test_what_is_no_yaml_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "guards.yml"
    path.write_text(text)
    with pytest.raises(SetupError, match="it is no YAML"):
        configuration.load(str(path))


def test_a_file_that_can_not_be_used_stops_the_start_before_the_model_is_read(tmp_path: Path) -> None:
    missing = str(tmp_path / "absent.yml")
    with pytest.raises(SetupError, match=r"absent\.yml can't be read"):
        Service.start(ModelFiles(tmp_path, NANO), Settings(guards=missing))
    with pytest.raises(SetupError, match=r"absent\.yml can't be read"):
        scripted("a", settings=Settings(guards=missing))  # however a service is made
