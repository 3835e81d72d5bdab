"""ROUGE and BLEU of generated texts, by rouge-score and sacrebleu as they are. Both are in the extra `evaluate`.

Scores lie between 0 and 1. BLEU is that of a corpus: each sample keeps its counts of n-grams, and their sums give the same value as
sacrebleu's `corpus_score` over the same texts. Nothing is downloaded: nltk's stemmer has no data, and ROUGE-Lsum splits at newlines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from llama_endpoints.evaluation.metrics.metric import Array, Metric, mean_metric
from llama_endpoints.evaluation.score import Score
from llama_serving.errors import SetupError

ROUGE: Final = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ORDERS: Final = (1, 2, 3, 4)
_COUNTS: Final = (
    *(f"bleu_matches_{order}" for order in ORDERS), *(f"bleu_ngrams_{order}" for order in ORDERS),
    "bleu_length", "bleu_reference_length",
)  # fmt: skip


def _missing(error: ImportError) -> SetupError:
    return SetupError(
        f"ROUGE and BLEU need {error.name}, which is not installed: pip install 'llama-endpoints[evaluate]'."
    )


@dataclass(frozen=True)
class TextMetrics:
    """ROUGE-1, -2, -L, -Lsum (F1) and BLEU-1 to -4.

    Attributes:
        use_stemmer: whether ROUGE compares words by Porter's stems.
        use_aggregator: whether ROUGE is aggregated; if not, `scores.jsonl` alone has it, a value a sample.
    """

    use_stemmer: bool = True
    use_aggregator: bool = True

    def scores(self, text: str, reference: str) -> Mapping[str, float]:
        """Return a sample's ROUGE, its sentence BLEU-4, and the counts that the corpus BLEU is made of.

        Raises:
            SetupError: rouge-score or sacrebleu is not installed.
        """
        rouge = self._rouge.score(reference, text)
        counted = self._bleu.corpus_score([text], [[reference]])
        counts = (*counted.counts, *counted.totals, counted.sys_len, counted.ref_len)
        return {
            **{name: float(rouge[name].fmeasure) for name in ROUGE},
            "sentence_bleu": float(self._sentence_bleu.sentence_score(text, [reference]).score) / 100,
            **dict(zip(_COUNTS, map(float, counts), strict=True)),
        }  # fmt: skip

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of scores that `scores` gave."""
        rouge = list(map(mean_metric, ROUGE)) if self.use_aggregator else []
        return (*rouge, *map(_corpus_bleu, ORDERS))

    @cached_property
    def _rouge(self) -> Any:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise _missing(error) from error
        return RougeScorer(list(ROUGE), use_stemmer=self.use_stemmer)

    @cached_property
    def _bleu(self) -> Any:
        return self._bleu_of(max(ORDERS), effective=False)

    @cached_property
    def _sentence_bleu(self) -> Any:
        return self._bleu_of(max(ORDERS), effective=True)

    @staticmethod
    def _bleu_of(order: int, *, effective: bool) -> Any:
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as error:
            raise _missing(error) from error
        return BLEU(max_ngram_order=order, effective_order=effective)


def _corpus_bleu(order: int) -> Metric:
    def terms(scores: Sequence[Score]) -> Sequence[float]:
        return [sum(score.values[name] for score in scores) for name in _COUNTS]

    def combine(sums: Array) -> Array:
        return np.array([_bleu(row, order) for row in sums])

    return Metric(f"bleu_{order}", terms, combine)


def _bleu(sums: Array, order: int) -> float:
    """Return BLEU from summed counts, smoothed as sacrebleu's `corpus_score` does."""
    from sacrebleu.metrics.bleu import BLEU

    counts = [round(count) for count in sums]
    most = len(ORDERS)
    found = BLEU.compute_bleu(
        counts[:order], counts[most : most + order], counts[-2], counts[-1], smooth_method="exp", max_ngram_order=order
    )  # fmt: skip
    return float(found.score) / 100
