"""What the tests hand to each of these programs, and how it answers. The programs run in the clients' own environment."""

import json
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A server, and what to ask it: greedily, for `max_tokens` tokens."""

    url: str
    key: str
    messages: list[dict[str, str]]
    prompt: str
    max_tokens: int
    serverless: bool = True  # the server has the paths of OpenAI too

    @property
    def system(self) -> str:
        return self.messages[0]["content"]

    @property
    def user(self) -> str:
        return self.messages[1]["content"]


def asked() -> Asked:
    """The first argument."""
    return Asked(**json.loads(sys.argv[1]))


def told(answers: dict[str, Any]) -> None:
    """Prints the answers, as the last line."""
    print(json.dumps(answers))  # noqa: T201
