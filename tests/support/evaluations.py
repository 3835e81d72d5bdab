"""Folders of evaluations, written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_endpoints.evaluation.folder import EvaluationFolder, write_json, write_lines
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Score, Verdict

MODEL = "codellama/CodeLlama-7b-hf"


def evaluation(**more: Any) -> dict[str, Any]:
    """What was evaluated."""
    return {
        "format": 1,
        "task": "humaneval",
        "model": {"name": "nano", "variant": MODEL, "digest": "abc"},
        "target": {"kind": "model", "path": "build/model"},
        "settings": {"samples": 1, "temperature": 0.0},
        "data": {"path": "HumanEval.jsonl.gz", "sha256": "d" * 64, "problems": 164},
        "version": "0.1.0",
        "started": "2026-01-01T00:00:00Z",
        **more,
    }


def a_folder(path: Path, passed: Sequence[Sequence[float]], *, groups: Sequence[str | None] = (), **more: Any) -> EvaluationFolder:  # fmt: skip
    """An evaluation of code: for each problem, whether each of its samples passed."""
    path.mkdir()
    folder = EvaluationFolder(path)
    write_json(folder.evaluation, evaluation(**more))
    samples, scores = [], []
    for number, values in enumerate(passed):
        for sample, value in enumerate(values):
            name, group = f"HumanEval/{number}", groups[number] if groups else None
            text = f"    return {number}  # <script>alert(1)</script> | `x`\n"
            verdict = Verdict.PASSED if value else Verdict.FAILED
            samples.append(Sample(name, sample, text, text, "stop").to_dict())
            scores.append(
                Score(
                    name, sample, group, {"passed": value}, verdict, "" if value else "AssertionError"
                ).to_dict()
            )
    write_lines(folder.samples, samples)
    write_lines(folder.scores, scores)
    return folder
