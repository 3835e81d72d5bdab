"""Classifiers of texts from a local folder, by transformers. Nothing is downloaded, unpickled or run from the folder."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from llama_serving.errors import SetupError

_SAFE: Final = {"local_files_only": True, "trust_remote_code": False}
_LONGEST: Final = 512
"""Tokens of a text that a classifier reads, where its tokenizer says no length."""


class TextClassifier:
    """A model with two labels, such as the ToxiGen classifier: the probability that a text has the second one."""

    def __init__(self, folder: Path) -> None:
        """Load the model.

        Raises:
            SetupError: the folder has no such model with safetensors.
        """
        from transformers import AutoModelForSequenceClassification

        self._model, self._tokenizer = _load(AutoModelForSequenceClassification, folder)
        if self._model.config.num_labels != 2:
            raise SetupError(
                f"The classifier in {folder} has {self._model.config.num_labels} labels; it must have two, the second for what is measured."
            )
        self._lock = threading.Lock()

    def probability(self, text: str) -> float:
        """Return the probability of the second label, 0 to 1."""
        import torch

        with self._lock, torch.inference_mode():
            ids = _ids(self._tokenizer, text, self._model)
            return float(torch.softmax(self._model(ids).logits[0].float(), -1)[1])


class YesNoJudge:
    """A language model that was tuned to answer ` yes` or ` no`, as TruthfulQA's judges were."""

    def __init__(self, folder: Path) -> None:
        """Load the model.

        Raises:
            SetupError: the folder has no such model with safetensors, or its tokenizer has not both answers.
        """
        from transformers import AutoModelForCausalLM

        self._model, self._tokenizer = _load(AutoModelForCausalLM, folder)
        self._yes, self._no = (self._first_id(answer) for answer in ("yes", "no"))
        if self._yes == self._no:
            raise SetupError(
                f"The tokenizer in {folder} begins ` yes` and ` no` with the same token: it can't be a judge's."
            )
        self._lock = threading.Lock()

    def says_yes(self, prompt: str) -> bool:
        """Return whether ` yes` is more likely than ` no` behind the prompt."""
        import torch

        with self._lock, torch.inference_mode():
            logits = self._model(_ids(self._tokenizer, prompt, self._model)).logits[0, -1]
            return bool(logits[self._yes] > logits[self._no])

    def _first_id(self, answer: str) -> int:
        """Return the id of the answer's first token behind a colon. SentencePiece and byte-level tokenizers have the space in it."""
        bare = self._tokenizer("A:", add_special_tokens=False)["input_ids"]
        whole = self._tokenizer(f"A: {answer}", add_special_tokens=False)["input_ids"]
        return int(whole[len(bare)])


def _ids(tokenizer: Any, text: str, model: Any) -> Any:
    """Return a text's ids; a long text keeps its end, where a judge's question stands."""
    positions = getattr(model.config, "max_position_embeddings", None) or _LONGEST
    most = min(tokenizer.model_max_length, positions - 2)  # RoBERTa's positions begin at 2
    tokenizer.truncation_side = "left"
    return tokenizer(text or " ", truncation=True, max_length=int(most), return_tensors="pt")["input_ids"]


def _load(kind: Any, folder: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file() or not sorted(folder.glob("*.safetensors")):
        raise SetupError(
            f"{folder} is no classifier: it needs config.json, a tokenizer and weights in safetensors."
        )
    with _failing(folder):
        model = kind.from_pretrained(folder, use_safetensors=True, **_SAFE).eval()
        return model, AutoTokenizer.from_pretrained(folder, **_SAFE)


@contextmanager
def _failing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise SetupError(
            f"The classifier in {folder} can't be loaded: {str(error).partition(chr(10))[0]}"
        ) from error
