"""Clients that people use, unchanged, against the real servers: each must show the very text of a plain request."""

import json
import re
from pathlib import Path
from typing import Final

import pytest

from llama_endpoints.devtools.servers import RunningServer
from tests.clients.conftest import HERE, KEY, Ask, Expected, Run


def test_openai(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    told = ask("use_openai", keyed)
    errors = told.pop("errors")
    assert told.pop("models") == [["nano"], ["nano"]]
    assert told == {name: expected.chat if "chat" in name else expected.completion for name in told}
    assert errors == {
        "no key": {"type": "AuthenticationError", "code": "invalid_api_key", "param": None},
        "too long": {"type": "BadRequestError", "code": "context_length_exceeded", "param": "messages"},
        "wrong value": {"type": "BadRequestError", "code": "invalid_value", "param": "n"},
        "no such parameter": {"type": "BadRequestError", "code": "unknown_field", "param": "no_such"},
    }


def test_azure_ai_inference(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    told = ask("use_azure_inference", keyed)
    info = {"model_name": "nano", "model_type": "chat-completion", "model_provider_name": "llama-endpoints"}
    assert told.pop("info") == [info, info, info]
    assert told.pop("refused") == 400
    assert told == dict.fromkeys(told, expected.chat)


def test_langchain_for_azureml(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    check_azureml(ask("use_langchain_azureml", keyed), expected)


def test_langchain_for_azureml_behind_azures_server(ask: Ask, azure: RunningServer, expected: Expected) -> None:
    check_azureml(ask("use_langchain_azureml", azure, serverless=False), expected)


def check_azureml(told: dict[str, object], expected: Expected) -> None:
    """LangChain escapes the prompt and puts it in quotes, if the endpoint is no serverless one, and strips answers."""
    escaped = expected.question.prompt.replace("\n", "\\n")
    quoted = expected.completion_of(f'"{escaped}"')
    chat = expected.chat.strip()
    serverless = {
        "serverless chat": chat,
        "serverless chat in pieces": expected.chat,
        "serverless completion": expected.completion_of(escaped).strip(),
    }
    assert told == {
        "completion": quoted,
        "completions": [quoted, quoted],
        "completion, stopped": quoted,
        "completion, GPT-2": quoted,
        "chat": chat,
        "chat, stopped": chat,
        **(serverless if "serverless chat" in told else {}),
    }


LOOP: Final = [
    word for kind in ("fixture", "test") for word in ("-o", f"asyncio_default_{kind}_loop_scope=session")
]


def suite(run: Run, url: str, name: str, *more: str) -> int:
    """Run one of LangChain's suites; return how many of its tests passed, which all must that are not skipped."""
    program = HERE / "programs" / f"{name}.py"
    printed = run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--asyncio-mode=auto", *LOOP, "-c", "/dev/null",
        "--confcutdir", str(program.parent), str(program), *more, SERVER_URL=url, SERVER_KEY=KEY,
    )  # fmt: skip
    found = re.search(r"^(\d+) passed", printed, re.MULTILINE)
    assert found, printed
    return int(found[1])


@pytest.mark.parametrize(
    ("name", "path", "least"), [("standard_suite", "/v1", 20), ("standard_suite_ollama", "", 15)]
)
def test_langchains_own_suite(run: Run, keyed: RunningServer, name: str, path: str, least: int) -> None:
    """All of its tests but those of tools and schemas: those it skips by the properties that the class states."""
    assert suite(run, keyed.url + path, name) >= least


def test_langchains_own_suite_of_schemas_and_functions(run: Run, keyed: RunningServer) -> None:
    kinds = "structured or tool_choice or tool_message or runnables or no_arguments"
    assert suite(run, f"{keyed.url}/v1", "schemas_suite", "-k", kinds) >= 12


def test_litellm(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    told = ask("use_litellm", keyed)
    assert told.pop("completion") == expected.completion
    texts = dict.fromkeys(("chat", "chat in pieces", "async chat"), expected.chat)
    assert told.pop("ollama_chat") == texts
    errors = {
        "no key": "AuthenticationError",
        "too long": "ContextWindowExceededError",
        "wrong value": "BadRequestError",
    }
    assert told == {provider: {**texts, "errors": errors} for provider in ("openai", "hosted_vllm", "azure_ai")}


def test_autogen(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    assert ask("use_autogen", keyed) == {
        "chat": expected.first,
        "second": expected.second,
        "chat in pieces": expected.first,
        "team": ["user", "one", "two"],
    }


def test_semantic_kernel(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    told = ask("use_semantic_kernel", keyed)
    assert told.pop("completion") == expected.completion
    assert told.pop("first") == expected.first
    assert told == dict.fromkeys(told, expected.chat)


def test_openai_agents(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    assert ask("use_openai_agents", keyed) == {
        "first": expected.first,
        "second": expected.second,
        "first in pieces": expected.first,
    }


def test_the_llm_command(run: Run, keyed: RunningServer, expected: Expected, tmp_path: Path) -> None:
    tmp_path.joinpath("extra-openai-models.yaml").write_text(
        f"- {{model_id: chat, model_name: nano, api_base: '{keyed.url}/v1', api_key_name: ours}}\n"
        f"- {{model_id: text, model_name: nano, api_base: '{keyed.url}/v1', api_key_name: ours, completion: true}}\n"
    )
    where = {"LLM_USER_PATH": str(tmp_path)}
    question = expected.question
    options = ("--key", KEY, "-o", "temperature", "0", "-o", "max_tokens", str(question.max_tokens))
    system, user = (message["content"] for message in question.messages[:2])
    first = run("llm", "-m", "chat", "-s", system, user, *options, **where)
    whole = run("llm", "-m", "chat", "-s", system, user, "--no-stream", *options, **where)
    second = run("llm", "-c", question.messages[-1]["content"], *options, **where)
    text = run("llm", "-m", "text", question.prompt, *options, **where)
    assert (first, whole, second) == tuple(
        f"{one}\n" for one in (expected.first, expected.first, expected.second)
    )
    assert text == f"{expected.completion}\n"


def test_ollama(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    told = ask("use_ollama", keyed)
    errors = told.pop("errors")
    assert told.pop("models") == [["nano:latest"], ["nano:latest"]]
    assert told.pop("model") == {"capabilities": ["completion", "insert"], "context": 2048, "family": "llama"}
    assert told.pop("infilling")
    assert told.pop("held") == "a"
    assert told == {name: of_ollama(name, expected) for name in told}
    statuses = {"no key": 401}
    assert errors == {name: {"status": statuses.get(name, 400), "sentence": True} for name in errors}


def test_langchain_for_ollama(ask: Ask, keyed: RunningServer, expected: Expected) -> None:
    told = ask("use_langchain_ollama", keyed)
    assert told == {name: of_ollama(name, expected) for name in told}


def of_ollama(name: str, expected: Expected) -> str:
    """What is asked for under a name: the dialog, a completion, or a prompt that is a dialog of one message."""
    if "chat" in name:
        return expected.chat
    return expected.completion if "completion" in name else expected.single


def test_the_llm_command_with_a_schema(run: Run, keyed: RunningServer, tmp_path: Path) -> None:
    tmp_path.joinpath("extra-openai-models.yaml").write_text(
        f"- {{model_id: chat, model_name: nano, api_base: '{keyed.url}/v1', api_key_name: ours, supports_schema: true}}\n"
    )
    options = ("--key", KEY, "-o", "temperature", "0.5", "-o", "seed", "3", "-o", "max_tokens", "300")
    for more in ((), ("--no-stream",)):
        text = run(
            "llm",
            "-m",
            "chat",
            "--schema",
            "name str, age int",
            "Invent a dog",
            *options,
            *more,
            LLM_USER_PATH=str(tmp_path),
        )
        dog = json.loads(text)
        assert (type(dog["name"]), type(dog["age"]), len(dog)) == (str, int, 2)
