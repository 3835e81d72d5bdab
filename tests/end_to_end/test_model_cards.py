"""The programs of the models' cards, but for their ports: LangChain's import paths are today's, the rest is theirs.

(One call is today's as well: `chat(messages)` is `chat.invoke(messages)` since langchain-core 1.0.)
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import RunningServer, own_server
from llama_serving.catalog import NANO
from llama_serving.contract import azure
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.tokenizer import Tokenizer
from tests.end_to_end.test_server_clients import samples
from tests.support.command import run
from tests.support.paths import ROOT
from tests.support.tiny import write_tiny

CONTEXT = 4096
SYSTEM = "You help with programs.\n\nIf you don't know an answer, say so."
CARDS = {
    "Code Llama": (
        1024,
        "You are an AI assistant that writes programs.\nAnswer what User asks.\n====\n\nUser: {user_message}\nAssistant:",
    ),
    "Llama 2": (4096, f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{{user_message}} [/INST]"),
}
"""`max_tokens` and template of each card. (Their ports, 8453 and 8229, may be anybody's on the machine that tests.)"""
ASKED = "Why do I need to run machine learning models on-premise?"

PROGRAM = """
import os
import sys
from langchain_classic.chains import LLMChain
from langchain_core.messages import HumanMessage
from langchain_core.prompts import PromptTemplate
from langchain_openai import ChatOpenAI

port, max_tokens, chat_template, user_message = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["OPENAI_API_KEY"] = "random-string"

chat = ChatOpenAI(openai_api_base=f"http://localhost:{port}/v1", max_tokens=max_tokens)
print(chat.invoke([HumanMessage(content=user_message)]))

prompt = PromptTemplate(input_variables=["user_message"], template=chat_template)
chat = ChatOpenAI(openai_api_base=f"http://localhost:{port}/v1", max_tokens=max_tokens)
chain = LLMChain(llm=chat, prompt=prompt, verbose=True)
print(chain.run(user_message=user_message))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads 4,096 tokens, as Llama 2 does."""
    checkpoint, packaged = tmp_path_factory.mktemp("wide"), tmp_path_factory.mktemp("packaged") / "model"
    write_tiny(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    made = run(
        "package", "--checkpoint", checkpoint, "--dialog", "inst", "--infill", "none", "--output", packaged
    )
    assert made.returncode == 0, made.stderr
    return packaged


@pytest.fixture(scope="module")
def server(wide: Path) -> Iterator[RunningServer]:
    # (A random model never ends by itself.)
    with own_server(wide, env={"LLAMA_DEADLINE_S": "2"}) as server:
        yield server


def ids_of(*messages: tuple[str, str]) -> int:
    """The tokens of a dialog, as we render it."""
    dialog = [{"role": role, "content": content} for role, content in messages]
    tokenizer = Tokenizer.from_folder(ROOT / "deployment/llama_endpoints/nano", NANO.special_ids)
    return len(
        PromptBuilder(tokenizer, NANO, CONTEXT)
        .build_one(azure.parse({"input_data": {"input_string": dialog}}), 0)
        .token_ids
    )


@pytest.mark.parametrize(("max_tokens", "template"), CARDS.values(), ids=CARDS)
def test_the_cards_program(server: RunningServer, max_tokens: int, template: str) -> None:
    before = dict(samples(server))
    given = [server.url.rpartition(":")[2], str(max_tokens), template, ASKED]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *given],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "LANGSMITH_TRACING": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "content=" in done.stdout
    after = dict(samples(server))
    name = 'llama_requests_total{code="200",route="/v1/chat/completions"}'
    assert after[name] == before.get(name, 0) + 2
    one_message = ids_of(("user", ASKED))
    chain = (
        ids_of(("system", SYSTEM), ("user", ASKED))  # the whole prompt in one message is unfolded
        if template.startswith("<s>")
        else ids_of(("user", template.format(user_message=ASKED)))
    )
    assert after["llama_prompt_tokens_total"] - before["llama_prompt_tokens_total"] == one_message + chain
    generated = after["llama_generation_tokens_total"] - before["llama_generation_tokens_total"]
    room = 2 * CONTEXT - one_message - chain
    assert 2 <= generated <= min(2 * max_tokens, room)
