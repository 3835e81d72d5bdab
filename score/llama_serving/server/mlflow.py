"""MLflow's `/invocations`: `inputs`, `dataframe_*`, `instances`; and, as MLflow's own server takes them, OpenAI's bodies."""

from llama_serving.contract import azure, mlflow, openai
from llama_serving.contract.adapter import Adapter
from llama_serving.contract.request import Body, Generations, Request
from llama_serving.server.azure import Azure
from llama_serving.server.openai import OpenAI


class MLflow(Azure):
    """See `Adapter`; streams and refusals are those of `/score`."""

    def of(self, body: Body) -> Adapter:
        """See `Adapter.of`."""
        return OpenAI() if openai.speaks(body) and not mlflow.speaks(body) else self

    def parse(self, body: Body) -> Request:
        """See `Adapter.parse`."""
        return mlflow.parse(body)

    def answer(self, request: Request, generations: Generations, model: str) -> object:
        """See `Adapter.answer`."""
        del model
        return mlflow.wrap(azure.answer(request, generations))
