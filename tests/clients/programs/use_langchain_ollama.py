"""LangChain's classes for Ollama: those of `langchain-ollama`, and the earlier one of LangChain community."""

import asyncio
import warnings

from asked import asked, told

warnings.simplefilter("ignore")

from langchain_community.llms.ollama import Ollama as EarlierLLM  # noqa: E402
from langchain_ollama import ChatOllama, OllamaLLM  # noqa: E402

ASKED = asked()
MESSAGES = [(message["role"], message["content"]) for message in ASKED.messages]
HEADERS = {"Authorization": f"Bearer {ASKED.key}"}
SHORT = {"model": "codellama", "base_url": ASKED.url, "temperature": 0, "num_predict": ASKED.max_tokens}
ALL = {
    "num_ctx": 2048, "num_gpu": 0, "num_thread": 2, "repeat_last_n": -1, "repeat_penalty": 1.0, "seed": 1, "stop": ["\0"],
    "tfs_z": 1.0, "top_k": 40, "top_p": 0.9, "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5.0, "keep_alive": "5m",
}  # fmt: skip

chat = ChatOllama(**SHORT, client_kwargs={"headers": HEADERS})
every = ChatOllama(**SHORT, **ALL, client_kwargs={"headers": HEADERS})
llm = OllamaLLM(**SHORT, client_kwargs={"headers": HEADERS}, validate_model_on_init=False)
earlier_llm = EarlierLLM(**SHORT, headers=HEADERS)
earlier_every = EarlierLLM(**SHORT, **{k: v for k, v in ALL.items() if k != "seed"}, headers=HEADERS)


async def asynchronous() -> dict[str, str]:
    return {
        "async chat": (await chat.ainvoke(MESSAGES)).content,
        "async single": await llm.ainvoke(ASKED.prompt),
        "earlier async single": await earlier_llm.ainvoke(ASKED.prompt),
    }


whole = chat.invoke(MESSAGES)
assert whole.usage_metadata["output_tokens"] > 0
assert whole.response_metadata["done_reason"] in ("stop", "length")
told(
    {
        "chat": whole.content,
        "chat in pieces": "".join(piece.content for piece in chat.stream(MESSAGES)),
        "chat, every option": every.invoke(MESSAGES).content,
        "single": llm.invoke(ASKED.prompt),
        "single in pieces": "".join(llm.stream(ASKED.prompt)),
        "earlier single": earlier_llm.invoke(ASKED.prompt),
        "earlier single in pieces": "".join(earlier_llm.stream(ASKED.prompt)),
        "earlier single, every option": earlier_every.invoke(ASKED.prompt),
        **asyncio.run(asynchronous()),
    }
)
