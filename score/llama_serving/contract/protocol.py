"""Selects a body's protocol by its keys, for endpoints that accept several."""

from typing import Any

from llama_serving.contract import azure, mlflow, openai
from llama_serving.contract.request import Body, Generations, Request


def parse(body: Body) -> Request:
    """Parse a body of any protocol; without another protocol's key it is read as `/score`'s.

    Raises:
        BadRequest: as in the protocol's own `parse`.
    """
    if mlflow.speaks(body):
        return mlflow.parse(body)
    if openai.speaks(body):
        return openai.parse(body)
    return azure.parse(body)


def answer(request: Request, generations: Generations, model: str) -> Any:
    """Return the response in the shape that belongs to the request's body, without MLflow's `predictions` around it."""
    if request.openai:
        return openai.answer(request, generations, model)
    return azure.answer(request, generations)
