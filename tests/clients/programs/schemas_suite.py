"""LangChain's own suite for chat models: its tests of schemas and functions, but those that ask for sense.

(`test_tool_calling` and its like want a model that decides to call; `test_unicode_tool_call_integration` one that repeats a name.)
"""

import os

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestHeld(ChatModelIntegrationTests):
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
        }

    @property
    def standard_chat_model_params(self) -> dict[str, object]:
        return {
            "temperature": 1,
            "seed": 3,
            "max_tokens": 300,
        }  # with which the smoke-test model ends its strings
