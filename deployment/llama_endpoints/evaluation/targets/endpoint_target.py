"""A running endpoint. Several rows are asked at a time, and kept in a batch journal."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from llama_endpoints.evaluation.folder import EvaluationFolder, read_lines
from llama_endpoints.evaluation.targets.askers import Askers
from llama_endpoints.evaluation.targets.endpoint_client import EndpointClient, http_client
from llama_endpoints.evaluation.targets.model_target import job_of
from llama_endpoints.evaluation.targets.protocols import Protocol
from llama_endpoints.evaluation.targets.target import OnRow
from llama_serving.batch import job as jobs
from llama_serving.batch.job import SYNC_S
from llama_serving.batch.journal import Entry, Journal
from llama_serving.batch.outputs import place

Asking = Iterator[Future[Entry]]
"""Asks one more row at each step."""


@dataclass(frozen=True, slots=True)
class EndpointTarget:
    """See `Target`.

    Attributes:
        url: its address, with or without the protocol's path.
        model: name for OpenAI's routes.
        deployment: the deployment that Azure ML is to send requests to; None for its traffic rules.
        concurrency: requests at a time.
        key: sent as a bearer token.
    """

    url: str
    protocol: Protocol
    model: str
    deployment: str | None = None
    concurrency: int = 4
    key: str | None = field(default=None, repr=False)

    @property
    def described(self) -> Mapping[str, Any]:
        """See `Target`."""
        about = {"kind": "endpoint", "url": self.address, "protocol": str(self.protocol)}
        return about if self.deployment is None else {**about, "deployment": self.deployment}

    @property
    def address(self) -> str:
        """Address of the route."""
        return self.protocol.address(self.url)

    def generate(self, folder: EvaluationFolder, on_row: OnRow) -> None:
        """See `Target`."""
        job = job_of(folder, {"endpoint": dict(self.described)})
        if (counts := jobs.finished(job)) is not None:
            return on_row(counts)
        with closing(Journal(job.outputs.journal, job.described)) as journal:
            on_row(journal.counts)
            try:
                self._ask_all(folder, journal, on_row)
            finally:
                journal.sync()
            place(job.outputs, job.described, journal)
        return None

    def _ask_all(self, folder: EvaluationFolder, journal: Journal, on_row: OnRow) -> None:
        rows = (each for each in enumerate(read_lines(folder.requests)) if each[0] not in journal)
        http = http_client(self.address, self.key, self.deployment)
        with Askers(self.concurrency, http.close) as askers:
            client = EndpointClient(http, self.address, self.protocol, self.model)
            try:
                self._keep(journal, (askers.submit(client.entry, *each) for each in rows), on_row)
            finally:  # (what is still asked is not waited for)
                client.stop.set()

    def _keep(self, journal: Journal, asking: Asking, on_row: OnRow) -> None:
        synced, running = time.monotonic(), set(islice(asking, self.concurrency))
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    journal.append(one.result())
                    on_row(journal.counts)
                running = (running - done) | set(islice(asking, len(done)))
                if time.monotonic() - synced > SYNC_S:
                    journal.sync()
                    synced = time.monotonic()
        finally:  # (one that failed, or a signal, takes no answer away that is there)
            for one in running:
                if one.done() and one.exception() is None:
                    journal.append(one.result())
