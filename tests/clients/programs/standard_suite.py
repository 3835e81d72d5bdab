"""LangChain's own suite for chat models, over its class for OpenAI's servers: what needs no tools and no schema."""

import os

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """See LangChain's documentation of the suite for each property."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {
            "model": "any",
            "base_url": os.environ["SERVER_URL"],
            "api_key": os.environ["SERVER_KEY"],
            "max_retries": 0,
            "stream_usage": True,
            "extra_body": {"min_tokens": 4},  # so that no answer is empty
        }

    @property
    def standard_chat_model_params(self) -> dict[str, object]:
        return {"temperature": 0, "max_tokens": 12}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "nano"  # the server says its own name, whatever it was called
