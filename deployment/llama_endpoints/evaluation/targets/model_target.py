"""A packaged model in this process, by the batch runner: its journal, its order of rows, and its resumption."""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_endpoints.evaluation.folder import EvaluationFolder
from llama_endpoints.evaluation.targets.target import Interrupted, Model, OnRow
from llama_endpoints.evaluation.tasks.task import PromptStyle
from llama_serving.batch import inputs
from llama_serving.batch import job as jobs
from llama_serving.batch.job import BatchJob
from llama_serving.batch.outputs import Outputs
from llama_serving.contract.request import Parameters
from llama_serving.errors import ServingError, SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.service import fingerprint
from llama_serving.service.service import Service
from llama_serving.settings import Settings

STOPS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """See `Target`."""

    path: str
    files: ModelFiles
    settings: Settings

    @property
    def described(self) -> Mapping[str, Any]:
        """See `Target`."""
        return {"kind": "model", "path": self.path, **jobs.about(self.files, self.settings)["settings"]}

    @property
    def model(self) -> Model:
        """The model."""
        variant = self.files.variant
        infill = variant.infill.value
        return Model(
            Path(self.path).name,
            variant.name,
            PromptStyle.COMPLETION if variant.dialog is None else PromptStyle.DIALOG,
            str(infill.order) if infill else None,
            fingerprint.of(self.files)["digest"],
        )

    def generate(self, folder: EvaluationFolder, on_row: OnRow) -> None:
        """See `Target`."""
        job = job_of(folder, {**jobs.about(self.files, self.settings), "parameters": {}})
        if (counts := jobs.finished(job)) is not None:
            return on_row(counts)
        with closing(Service.start(self.files, self.settings)) as service:
            try:
                result = asyncio.run(jobs.run(service, job, on_row, stops=STOPS))
            except ServingError as error:
                raise SetupError(f"{error.message} Progress is kept: run the same command again.") from error
        if result.stopped is not None:
            raise Interrupted(128 + result.stopped)
        return None


def job_of(folder: EvaluationFolder, about: Mapping[str, Any]) -> BatchJob:
    """Return the batch job that makes `records.jsonl` from `requests.jsonl`."""
    sources = inputs.find([str(folder.requests)])
    digests = tuple(inputs.digest(source, lambda _: None) for source in sources)
    return BatchJob(sources, digests, Outputs(folder.records), Parameters(), about)
