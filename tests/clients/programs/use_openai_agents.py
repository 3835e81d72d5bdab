"""OpenAI's agents over chat completions: asked twice, whole and in pieces."""

import asyncio

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from asked import asked, told
from openai import AsyncOpenAI

ASKED = asked()
set_tracing_disabled(disabled=True)


async def main() -> None:
    client = AsyncOpenAI(base_url=f"{ASKED.url}/v1", api_key=ASKED.key, max_retries=0)
    agent = Agent("coder", instructions=ASKED.system, model=OpenAIChatCompletionsModel("nano", client),
                  model_settings=ModelSettings(temperature=0, max_tokens=ASKED.max_tokens, include_usage=True))  # fmt: skip
    first = await Runner.run(agent, ASKED.user)
    follow_up = [*first.to_input_list(), {"role": "user", "content": ASKED.messages[-1]["content"]}]
    second = await Runner.run(agent, follow_up)
    streamed = Runner.run_streamed(agent, ASKED.user)
    deltas = [event.data.delta async for event in streamed.stream_events()
              if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"]  # fmt: skip
    told({"first": first.final_output, "second": second.final_output, "first in pieces": "".join(deltas)})


asyncio.run(main())
