"""Results, the report and the comparison, of folders written by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.cli.evaluate import evaluate
from llama_endpoints.evaluation.folder import EvaluationFolder, write_lines
from llama_endpoints.evaluation.metrics.bootstrap import Estimate
from llama_endpoints.evaluation.metrics.metric import pass_metrics
from llama_endpoints.evaluation.report.compare import check_alike, compare
from llama_endpoints.evaluation.report.document import write_report
from llama_endpoints.evaluation.report.mlflow_run import log, metric_name
from llama_endpoints.evaluation.report.published import problems as problems_of
from llama_endpoints.evaluation.report.published import published, verdict
from llama_endpoints.evaluation.report.results import Limit, Result, Subject, breaches, read, results, write
from llama_endpoints.evaluation.run import NEW_TOKENS, subject_of
from llama_serving.catalog import CATALOG
from llama_serving.errors import SetupError
from tests.support.evaluations import MODEL, a_folder, evaluation

USUAL = {"samples": 1, "temperature": 0, "top_p": 0.95, "limit": None, "max_new_tokens": 512, "prompt": "completion"}  # fmt: skip
LANGUAGES = {"cpp": 161, "cs": 158, "java": 158, "php": 161, "sh": 158, "ts": 159}
PASS_AT_1 = pass_metrics([1])
SUBJECT = Subject("humaneval", MODEL)


def rate(share: float) -> list[list[float]]:
    return [[float(n < share * 164)] for n in range(164)]


def rows_of_figures() -> list[list[str]]:
    path = Path(published.__code__.co_filename).with_name("published.csv")
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def scored(folder: EvaluationFolder, subject: Subject = SUBJECT) -> tuple[Result, ...]:
    found = results(PASS_AT_1, folder.scores_by_problem(), subject)
    write(folder.metrics, found)
    return found


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.335, "agrees with"),
        (0.3, "agrees with"),
        (0.2, "below"),
        (0.5, "above"),
        (0.0, "below"),
        (1.0, "above"),
    ],
)
def test_a_verdict_on_the_published_figure(tmp_path: Path, share: float, said: str) -> None:
    (found,) = scored(a_folder(tmp_path / "a", rate(share)))
    assert found.verdict == f"{said} the published figure"
    entry = json.loads((tmp_path / "a/metrics.json").read_text())["metrics"]["pass@1"]
    assert entry["published"] == 0.335
    assert entry["source"] == "arXiv 2308.12950, Table 2"
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert read(tmp_path / "a/metrics.json") == (found,)


def test_no_verdict_without_a_figure_or_with_other_settings() -> None:
    measured = Estimate(0.3, 0.2, 0.4, 164)
    assert verdict(measured, None) == "no published figure"
    assert published("humaneval", "pass@1", "nano") is None
    figure = published("humaneval", "pass@1", MODEL)
    assert verdict(measured, figure, ["temperature 0.8 instead of 0"]) == (
        "not comparable: temperature 0.8 instead of 0"
    )
    assert verdict(Estimate(math.nan, math.nan, math.nan, 0), figure).startswith("not measured")


@pytest.mark.parametrize(
    ("settings", "problems", "metric", "said"),
    [
        ({}, 164, "pass@1", ""),
        ({"limit": 20}, 20, "pass@1", "20 problems instead of 164"),
        ({"limit": 164}, 164, "pass@1", ""),
        ({"limit": 500}, 164, "pass@1", ""),
        ({}, 163, "pass@1", "163 problems instead of 164"),
        ({"temperature": 0.2}, 164, "pass@1", "temperature 0.2 instead of 0"),
        ({"samples": 200, "temperature": 0.8}, 164, "pass@100", ""),
        ({"samples": 200, "temperature": 0.8}, 164, "pass@1", "the published pass@1 is of greedy texts"),
        ({"samples": 200, "temperature": 0.8, "top_p": 0.9}, 164, "pass@10", "top_p 0.9 instead of 0.95"),
        ({"max_new_tokens": 511}, 164, "pass@1", "511 new tokens instead of 512"),
        ({"max_new_tokens": 1024}, 164, "pass@1", ""),
        ({"prompt": "dialog"}, 164, "pass@1", "prompts are a dialog instead of a completion"),
    ],
)
def test_what_was_done_otherwise_than_for_the_figure(
    settings: dict[str, Any], problems: int, metric: str, said: str
) -> None:
    described = evaluation(settings={**USUAL, **settings})
    assert "; ".join(subject_of(described).departures_of(metric, problems)) == said


@pytest.mark.parametrize(
    ("task", "metric", "problems"),
    [
        ("mbpp", "pass@1", 500),
        ("infilling", "single-line/PSM", 1033),
        ("infilling", "random-span/SPM", 1640),
        *(("multipl-e", f"pass@1 ({language})", count) for language, count in LANGUAGES.items()),
    ],
)
def test_figures_are_over_all_problems_of_their_part(task: str, metric: str, problems: int) -> None:
    settings = {**USUAL, "max_new_tokens": NEW_TOKENS[task]}
    subject = subject_of(evaluation(task=task, settings=settings))
    assert subject.departures_of(metric, problems) == ()
    for count in (1, problems - 1, problems + 1):
        assert subject.departures_of(metric, count) == (f"{count} problems instead of {problems}",)
    drawn = subject_of(evaluation(task=task, settings={**settings, "samples": 5, "temperature": 0.8}))
    assert drawn.departures_of(metric, problems) == (
        f"the published {metric.partition(' (')[0]} is of greedy texts",
    )


def test_an_instruct_model_has_its_figures_with_its_own_prompts() -> None:
    model = {"variant": MODEL.replace("-hf", "-Instruct-hf")}
    for prompt, said in (("dialog", ()), ("completion", ("prompts are a completion instead of a dialog",))):
        described = evaluation(model=model, settings={**USUAL, "prompt": prompt})
        assert subject_of(described).departures_of("pass@1", 164) == said
    infilling = evaluation(task="infilling", model=model, settings={**USUAL, "prompt": "completion"})
    assert subject_of(infilling).departures_of("single-line/PSM", 1033) == ()


def test_every_figure_knows_how_many_problems_it_is_over() -> None:
    for row in rows_of_figures():
        assert problems_of(row[0], row[1]), row
    assert problems_of("humaneval-plus", "pass@1") is None


def test_the_fewest_new_tokens_are_the_defaults_of_the_command() -> None:
    defaults = {
        name: option.default
        for name, one in evaluate.commands.items()
        for option in one.params
        if option.name == "max_new_tokens"
    }
    assert {name: defaults[name] for name in NEW_TOKENS} == NEW_TOKENS
    assert {row[0] for row in rows_of_figures()} == set(NEW_TOKENS)


def test_a_file_of_one_language_has_that_languages_figure(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "a", [[float(n < 20)] for n in range(161)], groups=["cpp"] * 161)
    found = {one.name: one for one in scored(folder, Subject("multipl-e", MODEL))}
    assert list(found) == ["pass@1", "pass@1 (cpp)"]
    figure = found["pass@1 (cpp)"].figure
    assert figure
    assert found["pass@1 (cpp)"].verdict.endswith("the published figure")
    cut = a_folder(tmp_path / "cut", [[1.0]] * 20, groups=["cpp"] * 20)
    found = {one.name: one for one in scored(cut, Subject("multipl-e", MODEL))}
    assert found["pass@1 (cpp)"].verdict == "not comparable: 20 problems instead of 161"


def test_each_published_figure_is_of_a_model_of_the_catalog() -> None:
    """Table 2's pass@1, as read twice; every row names a model we know, once."""
    rows = rows_of_figures()
    assert {row[2] for row in rows} <= set(CATALOG)
    assert len({tuple(row[:3]) for row in rows}) == len(rows)
    assert all(0 < float(row[3]) < 100 for row in rows)
    for name, (human, mbpp) in {"34b-Python": (0.537, 0.562), "70b-Instruct": (0.678, 0.622), "13b": (0.36, 0.47)}.items():  # fmt: skip
        model = f"codellama/CodeLlama-{name}-hf"
        found = [published(task, "pass@1", model) for task in ("humaneval", "mbpp")]
        assert [one.value for one in found if one] == [human, mbpp]


def test_the_report_has_it_all_and_runs_nothing(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "a", rate(0.4), groups=[("cpp", "java")[n % 2] for n in range(164)])
    scored(folder)
    write_report(folder, PASS_AT_1)
    page = (folder.path / "report.html").read_text()
    assert "humaneval on codellama/CodeLlama-7b-hf" in page
    assert page.count("<details>") == 164
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "pass@1 (java)" in page
    assert page.count("<svg") == 3
    markdown = (folder.path / "report.md").read_text()
    assert re.search(
        r"\| pass@1 \| 0\.4024 \| 0\.3\d+ to 0\.4\d+ \| 164 \| 0\.3350 \| arXiv 2308\.12950, Table 2 \|",
        markdown,
    )
    assert "164 samples of 164 problems: 98 failed, 66 passed." in markdown
    pictures = re.findall(r"\((plots/\w+\.svg)\)", markdown)
    assert len(pictures) == 3
    assert all((folder.path / name).read_text().startswith("<svg") for name in pictures)
    before = {path: path.read_bytes() for path in sorted(folder.path.rglob("*")) if path.is_file()}
    write_report(folder, PASS_AT_1)
    assert {path: path.read_bytes() for path in before} == before, "the same evaluation, the same report"


def test_a_report_of_samples_that_were_scored_before_others_came_is_refused(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "a", rate(0.4))
    scored(folder)
    write_lines(folder.samples, [line.to_dict() for line in list(folder.read_samples())[1:]])
    with pytest.raises(SetupError, match="Score the samples again"):
        write_report(folder, PASS_AT_1)


def test_limits_of_a_pipeline(tmp_path: Path) -> None:
    found = scored(a_folder(tmp_path / "a", rate(0.4)))
    assert breaches(found, [Limit.parse("pass@1=0.4")]) == ()
    assert breaches(found, [Limit.parse("pass@1=0.41")]) == ("pass@1 is 0.4024, less than 0.41.",)
    assert breaches(found, [Limit.parse("pass@1=0.41", above=True)]) == ()
    assert breaches(found, [Limit.parse("pass@1=0.4", above=True)]) == ("pass@1 is 0.4024, more than 0.4.",)
    with pytest.raises(SetupError, match=r"no metric 'pass@10'. It has: pass@1"):
        breaches(found, [Limit.parse("pass@10=0.1")])
    nothing = results(PASS_AT_1, [], SUBJECT)
    assert breaches(nothing, [Limit.parse("pass@1=0")]) == ("pass@1 is not measured, less than 0.",)
    assert breaches(nothing, [Limit.parse("pass@1=1", above=True)]) == ("pass@1 is not measured, more than 1.",)


@pytest.mark.parametrize("text", ["pass@1", "=0.3", "pass@1=", "pass@1=much", "pass@1=nan", "pass@1=inf"])
def test_a_limit_of_another_form_is_a_sentence(text: str) -> None:
    with pytest.raises(SetupError, match="METRIC=VALUE"):
        Limit.parse(text)


def test_compared_by_problem(tmp_path: Path) -> None:
    """Five of 164 problems lost: worse; four lost, or one lost and another won: no difference."""
    old = a_folder(tmp_path / "old", rate(0.5))
    lost = [[0.0] if n < 5 else value for n, value in enumerate(rate(0.5))]
    fewer = [[0.0] if n < 4 else value for n, value in enumerate(rate(0.5))]
    other = [[0.0] if n == 0 else [1.0] if n == 163 else value for n, value in enumerate(rate(0.5))]
    same = "no significant difference"
    for name, values, said in (("lost", lost, "worse"), ("fewer", fewer, same), ("other", other, same)):
        new = a_folder(tmp_path / name, values)
        check_alike(old, new)
        (found,) = compare(PASS_AT_1, old.scores_by_problem(), new.scores_by_problem()[::-1])
        assert found.verdict == said
        assert found.change.value == pytest.approx(found.new - found.old)
        (back,) = compare(PASS_AT_1, new.scores_by_problem(), old.scores_by_problem())
        assert back.verdict == {"worse": "better"}.get(said, said)


def test_unlike_evaluations_are_not_compared(tmp_path: Path) -> None:
    one = a_folder(tmp_path / "one", rate(0.5))
    other = a_folder(tmp_path / "task", rate(0.5), task="mbpp")
    with pytest.raises(SetupError, match="Compare evaluations of one task"):
        check_alike(one, other)
    data = a_folder(tmp_path / "data", rate(0.5), data={"sha256": "e" * 64, "problems": 164})
    with pytest.raises(SetupError, match="different data"):
        check_alike(one, data)
    with pytest.raises(SetupError, match="HumanEval/163 is in one of them alone"):
        compare(PASS_AT_1, one.scores_by_problem(), one.scores_by_problem()[:-1])


def test_logged_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    folder = a_folder(tmp_path / "a", rate(0.4))
    found = scored(folder)
    write_report(folder, PASS_AT_1)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # (a database takes 20 s to make)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    run = mlflow.get_run(log(folder, found))
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {
        "pass_at_1": found[0].measured.value,
        "pass_at_1.low": found[0].measured.low,
        "pass_at_1.high": found[0].measured.high,
    }
    assert run.data.params["model.variant"] == MODEL
    assert run.data.params["settings.temperature"] == "0.0"
    there = Path(run.info.artifact_uri.removeprefix("file://"))
    names = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert names >= {"report.html", "report.md", "metrics.json", "samples.jsonl", "plots/metrics.svg"}


def test_a_server_that_cannot_be_reached_is_a_sentence_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(tmp_path / "a", rate(0.4))
    found = scored(folder)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret-word@127.0.0.1:9")
    with pytest.raises(
        SetupError, match="MLflow at MLFLOW_TRACKING_URI does not take the evaluation"
    ) as refused:
        log(folder, found)
    assert "secret-word" not in str(refused.value)


@given(st.text(min_size=1, max_size=40))
def test_metric_names_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(f"m{metric_name(name)}".rstrip("./ "))
    assert metric_name("pass@1 (cpp)") == "pass_at_1/cpp"
