"""LangChain's classes for Azure ML's endpoints: those with compute of their own (`/score`), and, where there are any, serverless ones."""

import warnings

from asked import asked, told

warnings.simplefilter("ignore")

from langchain_community.chat_models.azureml_endpoint import (  # noqa: E402
    AzureMLChatOnlineEndpoint,
    CustomOpenAIChatContentFormatter,
)
from langchain_community.llms.azureml_endpoint import (  # noqa: E402
    AzureMLOnlineEndpoint,
    ContentFormatterBase,
    CustomOpenAIContentFormatter,
    GPT2ContentFormatter,
)

ASKED = asked()
MESSAGES = [(message["role"], message["content"]) for message in ASKED.messages]
DEDICATED = {"max_new_tokens": ASKED.max_tokens, "do_sample": False}
SERVERLESS = {"max_tokens": ASKED.max_tokens, "temperature": 0}


def llm(
    path: str, kind: str, formatter: ContentFormatterBase, options: dict[str, object]
) -> AzureMLOnlineEndpoint:
    return AzureMLOnlineEndpoint(endpoint_url=ASKED.url + path, endpoint_api_type=kind, endpoint_api_key=ASKED.key,
                                 content_formatter=formatter, model_kwargs=dict(options))  # fmt: skip


def chat(path: str, kind: str, options: dict[str, object]) -> AzureMLChatOnlineEndpoint:
    return AzureMLChatOnlineEndpoint(endpoint_url=ASKED.url + path, endpoint_api_type=kind, endpoint_api_key=ASKED.key,
                                     content_formatter=CustomOpenAIChatContentFormatter(),
                                     model_kwargs=dict(options))  # fmt: skip


def serverless() -> dict[str, object]:
    talk = chat("/models/chat/completions", "serverless", SERVERLESS)
    again = chat("/models/chat/completions", "serverless", {})  # it streams without its own parameters
    return {
        "serverless chat": talk.invoke(MESSAGES).content,
        "serverless chat in pieces": "".join(piece.content for piece in again.stream(MESSAGES, **SERVERLESS)),
        "serverless completion": llm(
            "/completions", "serverless", CustomOpenAIContentFormatter(), SERVERLESS
        ).invoke(ASKED.prompt),
    }


dedicated = llm("/score", "dedicated", CustomOpenAIContentFormatter(), DEDICATED)
told(
    {
        "completion": dedicated.invoke(ASKED.prompt),
        "completions": dedicated.batch([ASKED.prompt, ASKED.prompt]),
        "completion, stopped": dedicated.invoke(ASKED.prompt, stop=["\0"]),
        "completion, GPT-2": llm("/score", "dedicated", GPT2ContentFormatter(), DEDICATED).invoke(ASKED.prompt),
        "chat": chat("/score", "dedicated", DEDICATED).invoke(MESSAGES).content,
        "chat, stopped": chat("/score", "dedicated", DEDICATED).invoke(MESSAGES, stop=["\0"]).content,
        **(serverless() if ASKED.serverless else {}),
    }
)
