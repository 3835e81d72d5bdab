"""AutoGen: one assistant that is asked twice, whole and in pieces, and a team of two."""

import asyncio

from asked import asked, told
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

ASKED = asked()
ABOUT = {
    "family": "unknown",
    "vision": False,
    "function_calling": False,
    "json_output": False,
    "structured_output": False,
}


def client() -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(model="nano", base_url=f"{ASKED.url}/v1", api_key=ASKED.key, model_info=ABOUT,
                                      max_tokens=ASKED.max_tokens, temperature=0, max_retries=0)  # fmt: skip


def agent(name: str, *, stream: bool = False) -> AssistantAgent:
    return AssistantAgent(name, client(), system_message=ASKED.system, model_client_stream=stream)


async def main() -> None:
    one, piecewise = agent("coder"), agent("streamer", stream=True)
    first = (await one.run(task=ASKED.user)).messages[-1].content
    again = (await one.run(task=ASKED.messages[-1]["content"])).messages[-1].content
    pieces = [event async for event in piecewise.run_stream(task=ASKED.user)]
    team = RoundRobinGroupChat([agent("one"), agent("two")], termination_condition=MaxMessageTermination(3))
    talk = await team.run(task=ASKED.user)
    told(
        {
            "chat": first,
            "second": again,
            "chat in pieces": pieces[-1].messages[-1].content,
            "team": [message.source for message in talk.messages],
        }
    )


asyncio.run(main())
