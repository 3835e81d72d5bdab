"""What is evaluated: a packaged model, a running endpoint, or the records of a batch job."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.tasks.task import PromptStyle
from llama_serving.batch.journal import Counts

OnRow = Callable[[Counts], None]
"""Called with the counts after every row."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is known about a target's model.

    Attributes:
        name: as the target gives it.
        variant: name in the catalog; None where it is unknown.
        style: how it is asked.
        infill_order: `psm` or `spm`; None where it is unknown.
        digest: of a packaged model.
    """

    name: str
    variant: str | None
    style: PromptStyle
    infill_order: str | None = None
    digest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `evaluation.json` says about it."""
        return {
            "name": self.name,
            "variant": self.variant,
            "digest": self.digest,
            "infill_order": self.infill_order,
        }


class Interrupted(Exception):
    """A signal ended the generation. Finished rows are kept, and the same command continues.

    Args:
        exit_code: 128 + signal.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"ended by signal {exit_code - 128}")
        self.exit_code = exit_code


class Target(Protocol):
    """Where texts come from."""

    @property
    def described(self) -> Mapping[str, Any]:
        """What `evaluation.json` says about it: `kind` and what identifies it, without keys."""

    def generate(self, folder: EvaluationFolder, on_row: OnRow) -> None:
        """Write `records.jsonl` from `requests.jsonl`, after what an interrupted run has done.

        Raises:
            SetupError: it cannot be done; finished rows are kept.
            Interrupted: a signal ended it.
        """
