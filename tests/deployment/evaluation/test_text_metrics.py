"""ROUGE and BLEU are the libraries' own, also of empty texts, of other scripts, and when resampled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rouge_score", reason="the extra evaluate is not installed")
pytest.importorskip("sacrebleu", reason="the extra evaluate is not installed")

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from llama_endpoints.evaluation.metrics.text_metrics import ROUGE, TextMetrics
from llama_endpoints.evaluation.score import Score

WORDS = (
    "the",
    "cat",
    "cats",
    "sat",
    "running",
    "ran",
    "日本語",
    "です",
    "Ünïcode",
    "кот",
    "\n",
    "",
    "🦙",
    "def f():",
    "x=1",
    ".",
)
texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=20)


def scored(pairs: list[tuple[str, str]], metrics: TextMetrics) -> list[list[Score]]:
    return [[Score(str(n), 0, None, metrics.scores(*pair))] for n, pair in enumerate(pairs)]


@settings(max_examples=60)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6), st.booleans())
def test_equal_to_the_libraries(pairs: list[tuple[str, str]], stemmer: bool) -> None:
    ours = TextMetrics(use_stemmer=stemmer)
    problems = scored(pairs, ours)
    found = {metric.name: metric.value(problems) for metric in ours.metrics}
    rouge = RougeScorer(list(ROUGE), use_stemmer=stemmer)
    for name in ROUGE:
        each = [rouge.score(reference, text)[name].fmeasure for text, reference in pairs]
        assert found[name] == pytest.approx(sum(each) / len(each), abs=1e-12)
        assert [one.values[name] for (one,) in problems] == each
    hypotheses, references = [text for text, _ in pairs], [reference for _, reference in pairs]
    for order in (1, 2, 3, 4):
        theirs = BLEU(max_ngram_order=order).corpus_score(hypotheses, [references]).score / 100
        assert found[f"bleu_{order}"] == pytest.approx(theirs, abs=1e-12)
    sentence = [BLEU(effective_order=True).sentence_score(t, [r]).score / 100 for t, r in pairs]
    assert [one.values["sentence_bleu"] for (one,) in problems] == pytest.approx(sentence)


def test_a_stemmer_finds_words_of_one_stem() -> None:
    pair = ("the cats running", "the cat runs")
    assert TextMetrics(use_stemmer=True).scores(*pair)["rouge1"] == pytest.approx(1)
    assert TextMetrics(use_stemmer=False).scores(*pair)["rouge1"] == pytest.approx(1 / 3)


def test_without_the_aggregator_rouge_is_a_value_a_sample() -> None:
    ours = TextMetrics(use_aggregator=False)
    assert [metric.name for metric in ours.metrics] == ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]
    assert "rougeL" in ours.scores("a", "a")
