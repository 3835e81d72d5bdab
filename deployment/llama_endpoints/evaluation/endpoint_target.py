"""A running endpoint. Rows are sent several at a time, tried again where that makes sense, and kept in a batch journal."""

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import httpx2

from llama_endpoints.evaluation.folder import EvaluationFolder, read_lines
from llama_endpoints.evaluation.model_target import job_of
from llama_endpoints.evaluation.protocols import Protocol, body, text_in
from llama_endpoints.evaluation.target import OnRow
from llama_endpoints.evaluation.task import Row
from llama_serving.batch import job as jobs
from llama_serving.batch.job import SYNC_S
from llama_serving.batch.journal import Entry, EntryState, Journal
from llama_serving.batch.outputs import place
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import SetupError

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each further try."""
LONGEST_PAUSE_S: Final = 60.0
_CONNECT_S: Final = 20.0
_ANSWER_S: Final = 310.0
"""Azure's front end gives up after at most 300 s (Kubernetes)."""
_AGAIN: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_REFUSED: Final = frozenset((401, 403, 404, 405))
"""What no row can change."""
_INNER_STATUS: Final = "ms-azureml-model-error-statuscode"
_DEPLOYMENT: Final = "azureml-model-deployment"


class _Away(Exception):
    """The endpoint does not answer, or not now.

    Args:
        reason: in words.
        retry_after: seconds that it asks to wait.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


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
        base = self.url.rstrip("/")
        return base if base.endswith(self.protocol.path) else base.removesuffix("/v1") + self.protocol.path

    def generate(self, folder: EvaluationFolder, on_row: OnRow) -> None:
        """See `Target`. What a model answers may change between two runs, so only this folder's rows are resumed."""
        job = job_of(folder, {"endpoint": dict(self.described)})
        if (counts := jobs.finished(job)) is not None:
            return on_row(counts)
        with closing(Journal(job.outputs.journal, job.described)) as journal:
            try:
                with self._client() as client:
                    self._generate(client, folder, journal, on_row)
            finally:
                journal.sync()
            place(job.outputs, job.described, journal)
        return None

    def _client(self) -> httpx2.Client:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        if self.deployment is not None:
            headers[_DEPLOYMENT] = self.deployment
        return httpx2.Client(headers=headers, timeout=httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S))

    def _generate(
        self, client: httpx2.Client, folder: EvaluationFolder, journal: Journal, on_row: OnRow
    ) -> None:
        rows = (
            (number, row) for number, row in enumerate(read_lines(folder.requests)) if number not in journal
        )
        on_row(journal.counts)
        synced = time.monotonic()
        with ThreadPoolExecutor(self.concurrency, "evaluate") as pool:
            running: set[Future[Entry]] = set()
            try:
                while running := self._filled(pool, client, running, rows):
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for one in done:
                        journal.append(one.result())
                        on_row(journal.counts)
                    if time.monotonic() - synced > SYNC_S:
                        journal.sync()
                        synced = time.monotonic()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                client.close()  # (ends the requests that are under way)
                raise

    def _filled(
        self,
        pool: ThreadPoolExecutor,
        client: httpx2.Client,
        running: set[Future[Entry]],
        rows: Iterator[tuple[int, Row]],
    ) -> set[Future[Entry]]:
        free = self.concurrency - len(running)
        return running | {pool.submit(self._entry, client, number, row) for number, row in islice(rows, free)}

    def _entry(self, client: httpx2.Client, number: int, row: Row) -> Entry:
        for pause in (*PAUSES_S, None):
            try:
                return self._asked(client, number, row)
            except _Away as error:
                if pause is None:
                    raise SetupError(
                        f"{self.address}: {error}. Finished rows are kept: run the same command again."
                    ) from error
                time.sleep(min(LONGEST_PAUSE_S, max(pause, error.retry_after)))
        raise AssertionError  # (the last pause is None)

    def _asked(self, client: httpx2.Client, number: int, row: Row) -> Entry:
        try:
            response = client.post(self.address, content=json.dumps(body(self.protocol, row, self.model)))
        except httpx2.TransportError as error:
            raise _Away(f"no answer ({type(error).__name__})") from error
        status = _status(response)
        if status in _REFUSED:
            raise SetupError(
                f"{self.address} answered {status}: {_error(response, status)['message']} Check --url and the key."
            )
        if status in _AGAIN:
            raise _Away(f"status {status}", _seconds(response.headers.get("Retry-After", "")))
        frame = {"file": "requests.jsonl", "line": number + 1, "id": row["id"]}
        if status != 200:
            empty = {
                "output": None,
                "finish_reason": None,
                "usage": None,
                "error": _error(response, status),
                "extra": {},
            }
            return Entry(number, EntryState.ERROR, 0, 0, json_line({**frame, **empty}))
        try:
            found = text_in(self.protocol, response.json())
        except ValueError as error:
            raise SetupError(f"{self.address}: {error}. Check --protocol.") from error
        record = {
            "output": found.text,
            "finish_reason": found.finish_reason,
            "usage": dict(found.usage),
            "error": None,
        }
        used = (found.usage.get("prompt_tokens", 0), found.usage.get("completion_tokens", 0))
        return Entry(number, EntryState.OK, *used, json_line({**frame, **record, "extra": {}}))


def _status(response: httpx2.Response) -> int:
    """Return the container's own status where Azure's front end has turned it into 424."""
    inner = response.headers.get(_INNER_STATUS, "")
    return int(inner) if inner.isdigit() else int(response.status_code)


def _error(response: httpx2.Response, status: int) -> dict[str, Any]:
    try:
        found = response.json()["error"]
        return {"code": str(found.get("code") or status), "message": str(found["message"])}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {"code": str(status), "message": f"The endpoint answered with status {status}."}


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0
