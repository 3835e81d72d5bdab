"""MLflow's `/invocations`: `inputs`, `dataframe_*`, `instances`; and, as MLflow's own server takes them, OpenAI's bodies."""

from collections.abc import AsyncGenerator
from typing import Any

from llama_serving.contract import mlflow, openai, protocol
from llama_serving.contract.request import Body, Delta, Generations, Request
from llama_serving.errors import ServingError
from llama_serving.server.azure import Azure
from llama_serving.server.openai import OpenAI


class MLflow:
    """See `Adapter`."""

    def parse(self, body: Body) -> Request:
        """See `Adapter.parse`."""
        return openai.parse(body) if {"messages", "prompt"} & body.keys() else mlflow.parse(body)

    def answer(self, body: Body, request: Request, generations: Generations, model: str) -> Any:
        """See `Adapter.answer`."""
        answer = protocol.answer(request, generations, model)
        return mlflow.wrap(answer) if any(key in body for key in mlflow.KEYS) else answer

    def events(
        self, request: Request, deltas: AsyncGenerator[Delta, None], model: str
    ) -> AsyncGenerator[Any, None]:
        """See `Adapter.events`."""
        adapter = OpenAI() if request.openai else Azure()
        return adapter.events(request, deltas, model)

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """See `Adapter.error`."""
        return error.body(request_id, openai=True)
