"""A model in this process."""

from llama_endpoints.chat.model import Body, Events, Refused
from llama_serving.contract import openai
from llama_serving.contract.adapter import events_of
from llama_serving.errors import ServingError
from llama_serving.service.service import Service


class LocalModel:
    """See `ChatModel`.

    Args:
        service: the loaded model; closed by whoever started it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.name = service.variant.name
        self.capabilities = service.variant.capabilities

    def stream(self, body: Body) -> Events:
        """See `ChatModel.stream`."""
        try:
            request = openai.parse(dict(body))
            yield from events_of(openai.Chunks(request, self.name), self._service.stream(request))
        except ServingError as error:
            raise Refused(error.message, error.code) from error
