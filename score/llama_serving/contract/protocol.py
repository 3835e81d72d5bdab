"""Which protocol a body speaks, by its keys: for doors that take more than one."""

from typing import Any

from llama_serving.contract import azure, mlflow, openai
from llama_serving.contract.request import Body, Generations, Request


def parse(body: Body) -> Request:
    """A body of any protocol; one with no key of another is read as `/score`'s.

    Raises:
        BadRequest: as the protocol's own `parse`.
    """
    if mlflow.speaks(body):
        return mlflow.parse(body)
    if openai.speaks(body):
        return openai.parse(body)
    return azure.parse(body)


def answer(request: Request, generations: Generations, model: str) -> Any:
    """The answer in the shape that the request's body asks for, without MLflow's `predictions` around it."""
    if request.openai:
        return openai.answer(request, generations, model)
    return azure.answer(request, generations)
