"""LangChain's own suite for chat models, over its class for Ollama: what needs no tools and no schema."""

import os

from langchain_ollama import ChatOllama
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """See LangChain's documentation of the suite for each property."""

    @property
    def chat_model_class(self) -> type[ChatOllama]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {
            "model": "nano",
            "base_url": os.environ["SERVER_URL"],
            "client_kwargs": {"headers": {"Authorization": f"Bearer {os.environ['SERVER_KEY']}"}},
            "num_predict": 12,
            "temperature": 0,
        }

    @property
    def standard_chat_model_params(self) -> dict[str, object]:
        return {}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False
