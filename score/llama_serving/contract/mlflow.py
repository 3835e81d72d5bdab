"""MLflow's `/invocations`: its bodies and responses. MLflow's server wraps a response in `predictions`."""

from dataclasses import replace
from typing import Any

from llama_serving.contract import azure, inputs, openai
from llama_serving.contract.adapter import ProtocolAdapter
from llama_serving.contract.request import Body, Generations, ReplyShape, Request
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import validate
from llama_serving.errors import BadRequest

KEYS = ("inputs", "dataframe_split", "dataframe_records", "instances")


def parse(body: Body) -> Request:
    """Parse a body of `/invocations`.

    Raises:
        BadRequest: the body has not exactly one of `KEYS`, or an invalid value there.
    """
    body = present(body)
    given = [key for key in KEYS if key in body]
    if len(given) != 1:
        what = "none of them" if not given else " and ".join(given)
        code = "competing_fields" if given else "missing_field"
        raise BadRequest(f"Send exactly one of {', '.join(KEYS)}; the body has {what}.", code=code)
    key = given[0]
    validate({name: value for name, value in body.items() if name == key or name not in KEYS}, "mlflow")
    data, places = body[key], azure.places(body, key)
    if not _is_records(key, data):
        return azure.request_of(data, places, key)
    prompts = [record.get("input_string", record) for record in data]
    return replace(azure.request_of(prompts, places, key), reply=ReplyShape.ROWS)


def speaks(body: Body) -> bool:
    """Return whether a body is MLflow's."""
    return any(body.get(key) is not None for key in KEYS)


def wrap(answer: Any) -> dict[str, Any]:
    """Return the response as MLflow's server sends it."""
    return {"predictions": answer}


def _is_records(key: str, data: Any) -> bool:
    if key == "instances":
        return all(isinstance(item, dict) for item in data) and not inputs.is_dialog(data)
    return key == "dataframe_records"


class MLflow(azure.Azure):
    """See `ProtocolAdapter`; events and errors are those of `/score`."""

    def of(self, body: Body) -> ProtocolAdapter:
        """See `ProtocolAdapter.of`."""
        return openai.OpenAI() if openai.speaks(body) and not speaks(body) else self

    def parse(self, body: Body) -> Request:
        """See `ProtocolAdapter.parse`."""
        return parse(body)

    def answer(self, request: Request, generations: Generations, model: str) -> object:
        """See `ProtocolAdapter.answer`."""
        del model
        return wrap(azure.answer(request, generations))
