"""Semantic Kernel: its services for OpenAI and for Azure's inference package, a chat's history, a prompt's function."""

import asyncio

from asked import asked, told
from azure.ai.inference.aio import ChatCompletionsClient
from azure.core.credentials import AzureKeyCredential
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai.azure_ai_inference import (
    AzureAIInferenceChatCompletion,
    AzureAIInferenceChatPromptExecutionSettings,
)
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
    OpenAITextCompletion,
    OpenAITextPromptExecutionSettings,
)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import KernelArguments

ASKED = asked()
SHORT = {"max_tokens": ASKED.max_tokens, "temperature": 0.0}


def history() -> ChatHistory:
    made = ChatHistory()
    for message in ASKED.messages:
        getattr(made, f"add_{message['role']}_message")(message["content"])
    return made


async def whole(service: object, settings: object) -> str:
    return str(await service.get_chat_message_content(history(), settings))


async def in_pieces(service: object, settings: object) -> str:
    pieces = service.get_streaming_chat_message_content(history(), settings)
    return "".join([str(piece) async for piece in pieces if piece is not None])


async def main() -> None:
    openai = AsyncOpenAI(base_url=f"{ASKED.url}/v1", api_key=ASKED.key, max_retries=0)
    azure = ChatCompletionsClient(ASKED.url, AzureKeyCredential(ASKED.key))
    chat, text = (
        OpenAIChatCompletion("nano", async_client=openai),
        OpenAITextCompletion("nano", async_client=openai),
    )
    inference = AzureAIInferenceChatCompletion("nano", client=azure)
    settings = OpenAIChatPromptExecutionSettings(**SHORT)
    azures = AzureAIInferenceChatPromptExecutionSettings(**SHORT)
    kernel = Kernel(services=[chat])
    arguments = KernelArguments(settings=settings, question=ASKED.user)
    prompt = f'<message role="system">{ASKED.system}</message><message role="user">{{{{$question}}}}</message>'
    told(
        {
            "chat": await whole(chat, settings),
            "chat in pieces": await in_pieces(chat, settings),
            "chat by Azure's package": await whole(inference, azures),
            "chat in pieces by Azure's package": await in_pieces(inference, azures),
            "first": str(await kernel.invoke_prompt(prompt, arguments=arguments)),
            "completion": str(
                await text.get_text_content(ASKED.prompt, OpenAITextPromptExecutionSettings(**SHORT))
            ),
        }
    )
    await azure.close()


asyncio.run(main())
