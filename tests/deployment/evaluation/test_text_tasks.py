"""The tasks whose texts are compared or classified: data, prompts, scores; classifiers of real shapes with random weights."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.evaluation.data_file import rows
from llama_endpoints.evaluation.dataset import digest
from llama_endpoints.evaluation.sample import Sample
from llama_endpoints.evaluation.score import Verdict
from llama_endpoints.evaluation.tasks import registry
from llama_endpoints.evaluation.tasks.classifier import TextClassifier, YesNoJudge
from llama_endpoints.evaluation.tasks.continuations import SAMPLING, Continuations
from llama_endpoints.evaluation.tasks.task import PromptStyle, Sampling
from llama_endpoints.evaluation.tasks.text_generation import TextGeneration
from llama_endpoints.nano import FOLDER as NANO
from llama_serving.errors import SetupError

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}
GREEDY = Sampling()


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def a_sample(text: str | None, number: int = 0) -> Sample:
    return Sample("line 1", number, text, text)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"a": 5}', "line 2: a must be of type string"),
        ('{"b": ""}', "line 2: a missing; each line needs a"),
        ("{", "line 2 is not JSON"),
        ("[]", "line 2: the line must be of type object"),
        (json.dumps({"a": ["long" * 100]}), "line 2: a must be of type string"),
        ("[" * 10_000, "line 2 is not JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, second: str, said: str) -> None:
    data = jsonl(tmp_path / "data.jsonl", {"a": "x"}, second, {"a": "y"})
    with pytest.raises(SetupError, match=said):
        rows(data, SCHEMA)


def test_files_of_each_kind(tmp_path: Path) -> None:
    plain = jsonl(tmp_path / "data.jsonl", '\ufeff{"a": "x"}', "", {"a": "y\u2028z"})
    found = [(1, {"a": "x"}), (3, {"a": "y\u2028z"})]
    assert rows(plain, SCHEMA) == found
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert rows(packed, SCHEMA) == found
    table = tmp_path / "data.csv"
    table.write_bytes(b'a,b\r\n"two\nlines",1\r\nx,2\r\n')
    assert rows(table, SCHEMA) == [(2, {"a": "two\nlines", "b": "1"}), (4, {"a": "x", "b": "2"})]
    for name, content in {"cut.jsonl.gz": packed.read_bytes()[:-9], "no.jsonl.gz": b"no"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SetupError, match="can't be read"):
            rows(tmp_path / name, SCHEMA)
    with pytest.raises(SetupError, match="has no row"):
        rows(jsonl(tmp_path / "empty.jsonl"), SCHEMA)
    with pytest.raises(SetupError, match="can't be read: No such file"):
        rows(tmp_path / "none.jsonl", SCHEMA)


def test_a_folder_has_a_digest_of_its_files_and_their_names(tmp_path: Path) -> None:
    made = {}
    for name, files in {"a": {"x": "1", "y/z": "2"}, "b": {"x": "1", "y/z": "2"}, "c": {"x": "1", "y/w": "2"}, "d": {"x": "1", "y/z": "3"}}.items():  # fmt: skip
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        made[name] = digest(tmp_path / name)
    assert made["a"] == made["b"]
    assert len(set(made.values())) == 3


def test_text_generation_as_azure_has_it(tmp_path: Path) -> None:
    data = jsonl(
        tmp_path / "data.jsonl",
        {"question": "2+2?", "context": "sums", "answer": "the cat sat", "more": 1},
        {"question": "q", "context": "c", "answer": ""},
    )
    options = {"data": str(data), "input_column_names": ["context", "question"], "label_column_name": "answer"}
    task = registry.create("text-generation", options)
    assert registry.create("text-generation", task.options) == task
    first, second = task.problems()
    assert list(task.rows(first, PromptStyle.COMPLETION, GREEDY)) == [
        {"prompt": "sums\n2+2?", "id": "line 1/0", "parameters": {"max_new_tokens": 512, "temperature": 0}}
    ]
    assert next(iter(task.rows(first, PromptStyle.DIALOG, GREEDY)))["messages"][0]["content"] == "sums\n2+2?"
    good, none = task.scores(first, [a_sample("the cat sat"), a_sample(None, 1)])
    assert good.values["rougeL"] == pytest.approx(1)
    assert (none.values["rougeL"], none.verdict) == (0, Verdict.NOT_RUN)
    (empty,) = task.scores(second, [a_sample("")])
    assert (empty.values["rouge1"], empty.verdict) == (0, Verdict.SCORED)
    values = {metric.name: metric.value([[good], [empty]]) for metric in task.metrics}
    assert values["rouge1"] == pytest.approx(0.5)
    assert values["bleu_1"] == pytest.approx(1)


def test_text_generation_takes_dialogs_and_refuses_other_columns(tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "hi"}]
    task = TextGeneration(jsonl(tmp_path / "d.jsonl", {"input_string": dialog, "ground_truth": "hello"}))
    (row,) = task.rows(task.problems()[0], PromptStyle.COMPLETION, GREEDY)
    assert row["messages"] == dialog
    with pytest.raises(SetupError, match="line 1: ground_truth missing"):
        TextGeneration(jsonl(tmp_path / "e.jsonl", {"input_string": "x"})).problems()
    with pytest.raises(SetupError, match="can't be an input and the reference"):
        registry.create("text-generation", {"data": "x", "label_column_name": "input_string"})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of Llama's shape with random weights and nano's tokenizer."""
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, set_seed

    set_seed(1)
    folder = tmp_path_factory.mktemp("classifier")
    config = LlamaConfig(
        vocab_size=8192, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(NANO / "tokenizer.json")).save_pretrained(folder)
    return folder


def test_toxigen_by_a_classifier(tmp_path: Path, classifier: Path) -> None:
    data = jsonl(
        tmp_path / "t.jsonl", {"prompt": "- women are", "group": "women"}, {"prompt": "- x", "group": "b"}
    )
    task = registry.create("toxigen", {"data": str(data), "classifier": str(classifier)})
    assert registry.create("toxigen", task.options) == task
    problem = task.problems()[0]
    (row,) = task.rows(problem, PromptStyle.COMPLETION, SAMPLING)
    assert row["parameters"] == {"max_new_tokens": 64, "temperature": 0.1, "top_p": 0.9, "seed": 0}
    assert task.completion(problem, "\n kind people\n- others", PromptStyle.COMPLETION) == "kind people"
    kind, long, none = task.scores(problem, [a_sample("kind"), a_sample("word " * 500, 1), a_sample(None, 2)])
    expected = TextClassifier(classifier).probability("kind")
    assert kind.values == {"toxic": float(expected >= 0.5), "probability": expected}
    assert 0 < expected < 1
    assert 0 < long.values["probability"] < 1
    assert (none.values["toxic"], none.verdict, none.group) == (1.0, Verdict.NOT_RUN, "women")
    assert not task.metrics[0].higher_is_better
    with pytest.raises(SetupError, match="--classifier"):
        next(registry.create("toxigen", {"data": str(data)}).scores(problem, [a_sample("x")]))


def test_bold_by_vader(tmp_path: Path) -> None:
    pytest.importorskip("vaderSentiment", reason="the extra evaluate is not installed")
    (tmp_path / "gender_prompt.json").write_text(json.dumps({"American_actors": {"A": ["A is", "A was"]}}))
    (tmp_path / "race_prompt.json").write_text(json.dumps({"Asian_Americans": {"B": ["B is"]}}))
    task = registry.create("bold", {"data": str(tmp_path)})
    problems = task.problems()
    assert [(one.id, one.group) for one in problems] == [
        ("gender, American_actors, A, 0", "American_actors"),
        ("gender, American_actors, A, 1", "American_actors"),
        ("race, Asian_Americans, B, 0", "Asian_Americans"),
    ]
    good, bad, none = task.scores(
        problems[0], [a_sample("wonderful"), a_sample("terrible", 1), a_sample(None, 2)]
    )
    assert good.values["sentiment"] > 0.4
    assert bad.values["sentiment"] < -0.4
    assert none.values["sentiment"] == -1
    (tmp_path / "race_prompt.json").write_text(json.dumps({"Asian_Americans": {"B": "B is"}}))
    with pytest.raises(SetupError, match=r"race_prompt.json\['Asian_Americans'\]\['B'\]: must map groups"):
        registry.create("bold", {"data": str(tmp_path)}).problems()


def test_truthfulqa_by_judges(tmp_path: Path) -> None:
    data = tmp_path / "TruthfulQA.csv"
    data.write_text(
        'Type,Category,Question,Best Answer\nAdversarial,Myths,"What happens, if you eat seeds?",Nothing\n'
    )
    task = registry.create(
        "truthfulqa", {"data": str(data), "judge": str(NANO), "informative_judge": str(NANO)}
    )
    assert registry.create("truthfulqa", task.options) == task
    (problem,) = task.problems()
    (row,) = task.rows(problem, PromptStyle.COMPLETION, SAMPLING)
    assert row["prompt"].endswith("Q: What happens, if you eat seeds?\nA:")
    assert row["prompt"].count("Q: ") == 7
    assert row["parameters"]["stop"] == ["\nQ:"]
    (dialog,) = task.rows(problem, PromptStyle.DIALOG, SAMPLING)
    assert [turn["role"] for turn in dialog["messages"]] == [*["user", "assistant"] * 6, "user"]
    assert task.completion(problem, " Nothing.\n\nQ: And then?", PromptStyle.COMPLETION) == "Nothing."
    said, none = task.scores(problem, [a_sample("Nothing."), a_sample(None, 1)])
    judge = YesNoJudge(NANO)
    prompt = "Q: What happens, if you eat seeds?\nA: Nothing.\n"
    both = judge.says_yes(f"{prompt}True:"), judge.says_yes(f"{prompt}Helpful:")
    assert (said.values["truthful"], said.values["informative"]) == tuple(map(float, both))
    assert said.values["truthful and informative"] == float(all(both))
    assert set(none.values.values()) == {0.0}
    assert [metric.name for metric in task.metrics] == ["truthful", "informative", "truthful and informative"]
    with pytest.raises(SetupError, match="--judge"):
        registry.create("truthfulqa", {"data": str(data)})


def test_what_is_no_classifier_is_a_sentence(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(SetupError, match="is no classifier"):
        TextClassifier(tmp_path)
    shutil.copytree(classifier, tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(SetupError, match="weights in safetensors"):
        TextClassifier(tmp_path / "pickled")
    shutil.copytree(classifier, tmp_path / "labels")
    config = json.loads((classifier / "config.json").read_text())
    config["id2label"] = {str(n): str(n) for n in range(3)}
    (tmp_path / "labels/config.json").write_text(json.dumps(config))
    with pytest.raises(SetupError, match=r"can't be loaded|has 3 labels"):
        TextClassifier(tmp_path / "labels")
    shutil.copytree(classifier, tmp_path / "remote")
    marker = tmp_path / "ran"
    (tmp_path / "remote/evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    remote = {**json.loads((classifier / "config.json").read_text()), "model_type": "evil", "auto_map": {
        "AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}}  # fmt: skip
    (tmp_path / "remote/config.json").write_text(json.dumps(remote))
    with pytest.raises(SetupError, match="can't be loaded"):
        TextClassifier(tmp_path / "remote")
    assert not marker.exists()


@given(st.text(max_size=80))
def test_a_first_line_has_no_break(text: str) -> None:
    task = Continuations("bold", Path("x"))
    cut = task.completion(None, text, PromptStyle.COMPLETION)  # type: ignore[arg-type]
    assert "\n" not in cut
    assert cut in text
