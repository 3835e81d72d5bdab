"""The gate: what the old deployment left without an answer hides no loss, an outage is no lasting verdict, and equal models pass."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.gate import Deployment, EvaluationGate
from llama_endpoints.evaluation.targets.target import OnRow
from llama_endpoints.evaluation.tasks.task import PromptStyle
from llama_serving.errors import SetupError
from tests.support.evaluated import task

ALL = 164


@dataclass
class Answering:
    """A deployment that finds every key, but for these problems, and does not answer others."""

    wrong: range = range(0)
    silent: range = range(0)
    address: str = "a"
    asked: int = 0
    described: Mapping[str, str] = field(default_factory=dict)

    def generate(self, folder: EvaluationFolder, on_row: OnRow) -> None:
        del on_row
        rows = [json.loads(line) for line in folder.requests.read_text().splitlines()]
        self.asked += len(rows)
        records = [json.dumps(self._record(number, row)) for number, row in enumerate(rows)]
        folder.records.write_text("\n".join(records) + "\n")

    def _record(self, number: int, row: Mapping[str, str]) -> Mapping[str, object]:
        key = re.search(r"def retrieve_the_key.*?return (\d+)", row["prompt"], re.DOTALL)
        assert key
        answer = {"id": row["id"], "finish_reason": "stop", "usage": {}}
        if number in self.silent:
            return {**answer, "output": None, "error": {"code": "400", "message": "no"}}
        return {**answer, "output": "0" if number in self.wrong else key[1], "error": None}


def judged(old: Answering, new: Answering, folder: Path, margin: float = 0.0) -> str | None:
    there = {"old": old, "new": new}
    made = task("key-retrieval", lengths=[300], depths=[0.5], repeats=ALL)
    gate = EvaluationGate(
        f"key-retrieval={margin:g}", made, margin, PromptStyle.COMPLETION, folder,
        lambda name: Deployment(name, name, there[name]), lambda _: None,
    )  # fmt: skip
    return gate.objection("new", "old")


@pytest.mark.parametrize(("wrong", "refused"), [(0, False), (4, False), (5, True), (14, True)])
def test_a_loss_is_found_where_the_old_one_did_not_answer_everything(
    tmp_path: Path, wrong: int, refused: bool
) -> None:
    found = judged(Answering(silent=range(16)), Answering(wrong=range(ALL - wrong, ALL)), tmp_path)
    assert (found is not None) is refused
    assert found is None or "accuracy of key-retrieval" in found


def test_what_the_new_one_does_not_answer_is_a_loss(tmp_path: Path) -> None:
    found = judged(Answering(), Answering(silent=range(10)), tmp_path)
    assert found is not None
    assert "share of answers of key-retrieval is 0.9390" in found
    assert judged(Answering(silent=range(10)), Answering(silent=range(10, 20)), tmp_path / "both") is None


@pytest.mark.parametrize("ill", [{"old"}, {"new"}, {"old", "new"}])
def test_an_outage_is_asked_again(tmp_path: Path, ill: set[str]) -> None:
    old, new = (Answering(silent=range(20 if name in ill else 0)) for name in ("old", "new"))
    if "old" in ill:
        with pytest.raises(SetupError, match="old did not answer 12% of the requests"):
            judged(old, new, tmp_path)
    else:
        assert "new did not answer 12%" in str(judged(old, new, tmp_path))
    well = Answering(), Answering()
    assert judged(*well, tmp_path) is None
    assert [one.asked for one in well] == [ALL if name in ill else 0 for name in ("old", "new")]


def test_another_evaluation_in_the_folder_is_said_in_the_words_of_the_gate(tmp_path: Path) -> None:
    assert judged(Answering(), Answering(), tmp_path) is None
    moved = Answering(described={"url": "http://elsewhere"})
    with pytest.raises(SetupError, match="--gate-folder") as refused:
        judged(moved, Answering(), tmp_path)
    assert "--overwrite" not in str(refused.value)
