"""Scoring in steps: an interrupted run is resumed, and other samples, options or permissions begin anew."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.evaluation import scoring
from llama_endpoints.evaluation.folder import EvaluationFolder, write_lines
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.sandbox.limits import MIB, Limits
from llama_endpoints.evaluation.score import Score, Verdict
from llama_endpoints.evaluation.tasks.code_task import CodeRunning, failure, judged
from tests.support.evaluated import task
from tests.support.sandboxes import needs_sandbox

PROBLEMS = [Problem(f"P/{number}", "even" if number % 2 == 0 else "odd") for number in range(8)]


class Stopped(Exception):
    pass


@dataclass
class Lengths:
    """Scores a sample by its length, and stops at a problem."""

    name: str = "lengths"
    data: Path | None = None
    running: CodeRunning = field(default_factory=lambda: CodeRunning(True))
    options: dict[str, Any] = field(default_factory=dict)
    stop_at: str = ""
    scored: list[str] = field(default_factory=list)

    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        if problem.id == self.stop_at:
            raise Stopped
        self.scored.append(problem.id)
        for one in samples:
            yield Score(one.problem, one.sample, problem.group, {"length": float(len(one.completion or ""))})


@pytest.fixture
def folder(tmp_path: Path) -> EvaluationFolder:
    made = EvaluationFolder(tmp_path)
    texts = [
        (problem.id, number, "x" * (at + number)) for at, problem in enumerate(PROBLEMS) for number in range(3)
    ]
    write_lines(made.samples, (Sample(name, number, text, text).to_dict() for name, number, text in texts))
    return made


def score(folder: EvaluationFolder, task: Lengths, workers: int = 1) -> int:
    told: list[int] = []
    scoring.score(folder, task, PROBLEMS, told.append, workers=workers)  # type: ignore[arg-type]
    return sum(told)


@pytest.mark.parametrize("workers", [1, 3])
def test_scores_are_in_the_order_of_the_samples(folder: EvaluationFolder, workers: int) -> None:
    assert score(folder, Lengths(), workers) == 24
    assert [(one.problem, one.sample) for one in folder.read_scores()] == [
        (p.id, n) for p in PROBLEMS for n in range(3)
    ]
    assert [one.values["length"] for one in folder.read_scores()] == [
        float(a + n) for a in range(8) for n in range(3)
    ]
    assert [len(one) for one in folder.scores_by_problem()] == [3] * 8
    assert sorted(path.name for path in folder.path.iterdir()) == ["samples.jsonl", "scores.jsonl"]


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_an_interrupted_run_is_resumed(folder: EvaluationFolder, cut: int) -> None:
    first = Lengths(stop_at="P/5")
    with pytest.raises(Stopped):
        score(folder, first)
    kept = folder.path / ".scores.part"
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) - cut])  # what was being written when the machine stopped
    second = Lengths()
    assert score(folder, second) == 24
    assert 0 < len(second.scored) < 8
    assert second.scored[-1] == "P/7"
    whole = folder.scores.read_bytes()
    assert score(folder, Lengths()) == 24
    assert folder.scores.read_bytes() == whole


CHANGES: dict[str, dict[str, Any]] = {
    "options": {"options": {"x": 1}},
    "code": {"running": CodeRunning(False)},
    "time": {"running": CodeRunning(True, Limits(wall_s=1))},
    "memory": {"running": CodeRunning(True, Limits(memory=64 * MIB))},
}


@pytest.mark.parametrize("change", ["samples", "data", *CHANGES])
def test_what_has_changed_is_scored_anew(folder: EvaluationFolder, tmp_path: Path, change: str) -> None:
    data = tmp_path / "data"
    data.write_text("data")
    with pytest.raises(Stopped):
        score(folder, Lengths(data=data, stop_at="P/5"))
    second = Lengths(data=data, **CHANGES.get(change, {}))
    if change == "data":
        data.write_text("other data")
    if change == "samples":
        lines = [one.to_dict() for one in folder.read_samples()]
        write_lines(folder.samples, [{**lines[0], "completion": "longer"}, *lines[1:]])
    score(folder, second)
    assert second.scored == [problem.id for problem in PROBLEMS]


@given(st.text(st.characters(), max_size=20), st.sampled_from(["text", "completion", "error"]))
def test_any_text_of_a_record_can_be_kept(text: str, where: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = EvaluationFolder(Path(made))
        texts = {"text": "", "completion": "", **({where: text} if where != "error" else {})}
        error = {"code": text, "message": text} if where == "error" else None
        if error:
            texts = {"text": None, "completion": None}
        one = Sample("P/0", 0, **texts, error=error)
        write_lines(folder.samples, [one.to_dict()])
        assert list(folder.read_samples()) == [one]
        scoring.score(folder, Failures(), PROBLEMS, lambda _: None)  # type: ignore[arg-type]
        (found,) = folder.read_scores()
        assert found.detail == (failure(one) if error else "")


class Failures(Lengths):
    def scores(self, problem: Problem, samples: Sequence[Sample]) -> Iterable[Score]:
        return judged(problem, samples, lambda _: (Verdict.FAILED, ""))


@pytest.mark.parametrize("raised", ["'\\ud800'", "'\\udfff' * 1000", "'é', '\\udc80\\n'", "b'\\xff'"])
def test_no_program_stops_the_scoring(folder: EvaluationFolder, tmp_path: Path, raised: str) -> None:
    needs_sandbox()
    line = {"task_id": "P/0", "prompt": "def f():\n    'F.'\n", "entry_point": "f", "canonical_solution": "", "test": "def check(c):\n    c()\n"}  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(line))
    made = task("humaneval", data=data)
    bodies = [f"    raise ValueError({raised})\n", "    pass\n"]
    write_lines(
        folder.samples, (Sample("P/0", number, one, one).to_dict() for number, one in enumerate(bodies))
    )
    scoring.score(folder, made, made.problems(), lambda _: None)
    failed, passed = folder.read_scores()
    assert (failed.verdict, passed.verdict) == ("failed", "passed")
    assert failed.detail.startswith("ValueError: ")
    failed.detail.encode()
