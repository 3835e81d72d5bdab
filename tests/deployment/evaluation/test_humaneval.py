"""HumanEval: the canonical solutions pass, nothing else does, and the estimator's value is the one by hand."""

import json
from math import comb
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.evaluation.metrics.metric import pass_at_k
from llama_endpoints.evaluation.problem import Problem
from llama_endpoints.evaluation.score import Verdict
from llama_endpoints.evaluation.tasks.task import PromptStyle, Sampling
from llama_serving.errors import SetupError
from tests.support.evaluated import measured, scores_of, task
from tests.support.sandboxes import human_eval, needs_sandbox


@pytest.fixture
def sandbox() -> None:
    needs_sandbox()


def test_the_canonical_solutions_pass(sandbox: None, tmp_path: Path) -> None:
    humaneval = task("humaneval", data=human_eval())
    found = measured(humaneval, tmp_path / "e", lambda problem, _: [problem.data["canonical_solution"]])
    assert found["pass@1"].measured.value == 1.0
    assert found["pass@1"].measured.problems == 164


def test_empty_bodies_fail(sandbox: None, tmp_path: Path) -> None:
    humaneval = task("humaneval", data=human_eval())
    found = measured(humaneval, tmp_path / "e", lambda *_: ["    pass\n"], limit=16)
    assert found["pass@1"].measured.value == 0.0


def test_half_of_them_wrong(sandbox: None, tmp_path: Path) -> None:
    humaneval = task("humaneval", data=human_eval())
    found = measured(
        humaneval,
        tmp_path / "e",
        lambda problem, number: ["    return None\n" if number % 2 else problem.data["canonical_solution"]],
        limit=12,
    )
    assert found["pass@1"].measured.value == 0.5


PASSED = """
    numbers.sort()
    return any(b - a < threshold for a, b in zip(numbers, numbers[1:]))
"""


def test_pass_at_k_of_samples_that_are_run(sandbox: None, tmp_path: Path) -> None:
    """12 samples of which 3 pass: 3/12, and 1 - C(9, 10)/C(12, 10) = 1."""
    humaneval = task("humaneval", data=human_eval(), ks=[1, 10])
    found = measured(humaneval, tmp_path / "e", lambda *_: [PASSED] * 3 + ["    return 1\n"] * 9, limit=1)
    assert found["pass@1"].measured.value == 0.25
    assert found["pass@10"].measured.value == 1.0


@pytest.mark.parametrize(
    ("k", "by_hand"),
    [
        (1, 0.5),
        (10, 1 - comb(100, 10) / comb(200, 10)),  # 0.99924…
        (100, 1 - 1 / comb(200, 100)),
    ],
)
def test_half_of_200_samples_pass(k: int, by_hand: float) -> None:
    assert pass_at_k(200, 100, k) == pytest.approx(by_hand, abs=1e-15)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_the_estimate_is_the_share_of_subsets_with_a_passed_sample(drawn: tuple[int, int, int]) -> None:
    samples, passed, k = drawn
    without = 1.0  # the chance that k samples, drawn one after the other, all failed
    for number in range(k):
        without *= max(0, samples - passed - number) / (samples - number)
    assert pass_at_k(samples, passed, k) == pytest.approx(1 - without, abs=1e-12)


PROMPT = (
    'import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef square(n: int) -> int:\n    """Square."""\n'
)
TEST = "def check(candidate):\n    assert candidate(3) == 9\n    assert helper(1) == 2\n"
LINE = {"task_id": "T/0", "prompt": PROMPT, "entry_point": "square", "test": TEST}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def problem() -> Problem:
    return Problem("T/0", None, LINE)


@pytest.mark.parametrize(
    ("text", "style", "completion"),
    [
        ("    return n * n\n\ndef other():\n    pass", PromptStyle.COMPLETION, "    return n * n\n"),
        ("    return n * n\nprint(square(2))", PromptStyle.COMPLETION, "    return n * n"),
        ("    if n:\n        return n\n    # a\n", PromptStyle.COMPLETION, "    if n:\n        return n\n    # a\n"),
        ("", PromptStyle.COMPLETION, ""),
        (" Here:\n```python\ndef square(n):\n    return 1\n```\nDone.", PromptStyle.DIALOG, "def square(n):\n    return 1\n"),
        (" ```\nx = 1\n```\n```py\ndef square(n): 0\n```", PromptStyle.DIALOG, "def square(n): 0\n"),
        (" ```python\ndef square(n):\n    cut", PromptStyle.DIALOG, "def square(n):\n    cut"),
        (" def square(n): 0", PromptStyle.DIALOG, "def square(n): 0"),
    ],
)  # fmt: skip
def test_texts_are_cut(
    text: str, style: PromptStyle, completion: str, problem: Problem, tmp_path: Path
) -> None:
    assert task("humaneval", data=written(tmp_path, LINE)).completion(problem, text, style) == completion


def test_a_whole_function_takes_the_place_of_the_prompts(
    sandbox: None, problem: Problem, tmp_path: Path
) -> None:
    humaneval = task("humaneval", data=written(tmp_path, LINE))
    whole = "def square(n):\n    return helper(n) * 0 + math.prod([n, n])\n"
    found = scores_of(humaneval, problem, whole, "    return n * n\n", "    return n\n", None)
    assert [score.verdict for score in found] == ["passed", "passed", "failed", "not run"]
    assert [score.values["passed"] for score in found] == [1.0, 1.0, 0.0, 0.0]


def test_rows_are_greedy_or_drawn(problem: Problem, tmp_path: Path) -> None:
    humaneval = task("humaneval", data=written(tmp_path, LINE))
    (greedy,) = humaneval.rows(problem, PromptStyle.COMPLETION, Sampling())
    assert greedy["parameters"]["temperature"] == 0
    assert (greedy["id"], greedy["prompt"]) == ("T/0/0", PROMPT)
    drawn = list(humaneval.rows(problem, PromptStyle.DIALOG, Sampling(3, 0.8)))
    assert [row["parameters"]["seed"] for row in drawn] == [0, 1, 2]
    assert all(PROMPT in row["messages"][0]["content"] for row in drawn)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([LINE, {**LINE, "task_id": "T/1", "test": 3}], "line 2: test must be of type string"),
        ([LINE, "", "{"], "line 3 is not JSON"),
        ([{k: v for k, v in LINE.items() if k != "prompt"}], "line 1: prompt missing"),
        ([LINE, LINE], "line 2: task_id 'T/0' is that of line 1, too"),
        ([{**LINE, "entry_point": "a b"}], "line 1: entry_point"),
        ([[1]], "line 1: the line must be of type object"),
        ([], "has no problem"),
    ],
)
def test_the_data_is_checked(lines: list[object], said: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=said):
        task("humaneval", data=written(tmp_path, *lines)).problems()


def test_missing_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--data FILE"):
        task("humaneval-plus")
    with pytest.raises(SetupError, match="is not a file"):
        task("humaneval", data=tmp_path / "none.jsonl")


def test_installed_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "human_eval"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "data" / "HumanEval.jsonl.gz").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert task("humaneval").data == package / "data" / "HumanEval.jsonl.gz"


def test_code_is_not_run_unasked(problem: Problem, tmp_path: Path) -> None:
    from llama_endpoints.evaluation.tasks import registry

    humaneval = registry.create("humaneval", {"data": str(written(tmp_path, LINE))})
    with pytest.raises(SetupError, match="--run-generated-code"):
        scores_of(humaneval, problem, "    return n * n\n")


def test_a_test_that_leaves_is_no_pass(sandbox: None, problem: Problem, tmp_path: Path) -> None:
    leaving = {**LINE, "test": "import os\ndef check(candidate):\n    os._exit(0)\n"}
    humaneval = task("humaneval", data=written(tmp_path, leaving))
    (found,) = scores_of(humaneval, Problem("T/0", None, leaving), "    return n * n\n")
    assert found.verdict is Verdict.FAILED


PLUS = """
import numpy as np

def is_floats(x) -> bool:
    return isinstance(x, float) or (isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x))

def assertion(out, exp, atol):
    if out == exp:
        return
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    assert atol != 0 and type(out) == type(exp) and np.allclose(out, exp, rtol=1e-07, atol=atol)

def check(candidate):
    inputs = [[n] for n in range(-500, 500)] + [[0.1], [1e300]]
    results = [n * n for n in range(-500, 500)] + [0.01, float("inf")]
    for inp, exp in zip(inputs, results):
        assertion(candidate(*inp), exp, 0)
"""


def test_tests_in_the_form_of_humaneval_plus(sandbox: None, tmp_path: Path) -> None:
    line = {**LINE, "test": PLUS, "plus_input": [[1]], "base_input": [[2]], "atol": 0, "contract": ""}
    made = task("humaneval-plus", data=written(tmp_path, line))
    (problem,) = made.problems()
    texts = (
        "    return n * n\n",
        "    return n ** 2 if n < 499 else 0\n",
        "    return [n * n]\n",
        "    return float(n * n)\n",
    )
    found = scores_of(made, problem, *texts)
    assert [score.verdict for score in found] == ["passed", "failed", "failed", "passed"]
    assert made.name == "humaneval-plus"
