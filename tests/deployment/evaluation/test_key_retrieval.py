"""A model that copies finds every key, at every depth and length; prompts are valid Python of the length asked for."""

import ast
import json
import re
from pathlib import Path

import pytest

from llama_endpoints.evaluation.tasks import registry
from llama_endpoints.evaluation.tasks.key_retrieval import FUNCTION, LONGEST, counter
from llama_endpoints.evaluation.tasks.task import PromptStyle, Sampling
from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.errors import SetupError
from llama_serving.prompts.tokenizer import Tokenizer
from tests.support import command
from tests.support.evaluated import scores_of, task

DEPTHS = [0, 0.25, 0.5, 0.75, 1]


def copied(prompt: str) -> str:
    """What a model answers that copies the number from the function."""
    found = re.search(rf"def {FUNCTION}\(\) -> int:\n    return (\d+)", prompt)
    assert found
    return f" {found[1]}\n\nassert 1 == 1"


@pytest.mark.parametrize("style", list(PromptStyle))
@pytest.mark.parametrize("length", [200, 1_000, 16_000, LONGEST])
def test_a_model_that_copies_finds_every_key(length: int, style: PromptStyle) -> None:
    made = task("key-retrieval", lengths=[length], depths=DEPTHS, repeats=1)
    count = counter("")
    for problem in made.problems():
        (row,) = made.rows(problem, style, Sampling())
        prompt = row["prompt"] if style is PromptStyle.COMPLETION else row["messages"][0]["content"]
        assert (0.5 if length <= 1000 else 0.97) * length <= count(prompt) <= length
        completion = made.completion(problem, copied(prompt), style)
        (score,) = scores_of(made, problem, completion)
        assert score.values == {"found": 1.0}


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_function_stands_at_its_depth(depth: float) -> None:
    made = task("key-retrieval", lengths=[8_000], depths=[depth], repeats=2)
    first, second = (
        next(iter(made.rows(one, PromptStyle.COMPLETION, Sampling())))["prompt"] for one in made.problems()
    )
    assert first != second
    names = [node.name for node in ast.parse(first + " 0").body if isinstance(node, ast.FunctionDef)]
    assert len(set(names)) == len(names)
    assert names.index(FUNCTION) == round(depth * (len(names) - 1))
    assert first.count(FUNCTION) == 2


def test_the_same_task_has_the_same_prompts() -> None:
    one, other = (task("key-retrieval", lengths=[300], depths=[0.5], repeats=3) for _ in range(2))
    assert one.problems() == other.problems()
    for problem in one.problems():
        assert list(one.rows(problem, PromptStyle.DIALOG, Sampling())) == list(
            other.rows(problem, PromptStyle.DIALOG, Sampling())
        )


@pytest.mark.parametrize(
    ("text", "completion"),
    [
        (" 12345\n", "12345"),
        ("The number is 12_345.", "12345"),
        ("12345", "12345"),
        ("no", ""),
        ("", ""),
        ("1 12345", "1"),
    ],
)
def test_the_first_number_is_the_answer(text: str, completion: str) -> None:
    made = task("key-retrieval", lengths=[300], depths=[0], repeats=1)
    assert made.completion(made.problems()[0], text, PromptStyle.COMPLETION) == completion


def test_other_numbers_and_no_answers_are_not_the_key() -> None:
    made = task("key-retrieval", lengths=[300], depths=[0], repeats=1)
    (problem,) = made.problems()
    found = scores_of(made, problem, "1", "", None)
    assert [(one.values["found"], one.verdict) for one in found] == [
        (0.0, "failed"),
        (0.0, "failed"),
        (0.0, "not run"),
    ]


def test_out_of_range_is_refused() -> None:
    with pytest.raises(SetupError, match="100000"):
        registry.create("key-retrieval", {"lengths": [LONGEST + 1]})
    with pytest.raises(SetupError, match="Depths"):
        registry.create("key-retrieval", {"depths": [1.5]})


def test_nano_is_asked_within_its_context(tmp_path: Path) -> None:
    words = (
        "--model",
        "nano",
        "--prompt",
        "completion",
        "--lengths",
        "300,1900",
        "--depths",
        "0.5",
        "--repeats",
        "1",
    )
    done = command.run("evaluate", "key-retrieval", "--output", tmp_path / "e", *words)
    assert (done.returncode, "accuracy: " in done.stdout) == (0, True)
    lines = [json.loads(line) for line in (tmp_path / "e" / "samples.jsonl").read_text().splitlines()]
    used = [(line["problem"].partition("/")[0], line["usage"]["prompt_tokens"]) for line in lines]
    assert [int(length) - 100 < tokens <= int(length) for length, tokens in used] == [True, True]


def test_lengths_are_counted_with_a_tokenizer(nano_tokenizer: Tokenizer) -> None:
    text = "def f(values):\n        return values\n" * 3
    assert counter(str(NANO_FOLDER))(text) == len(nano_tokenizer.encode(text)) != counter("")(text)
