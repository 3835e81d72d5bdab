"""Single lines taken out of HumanEval's solutions, as the paper measures infilling: what editors see of nano's texts."""

import ast
import gzip
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import pytest

from llama_serving.contract import llamacpp
from llama_serving.service.service import Service
from tests.conftest import SHARED

FILE: Final = SHARED / "HumanEval.jsonl.gz"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="HumanEval is not here")
NUMBER: Final = 16


class Gap(NamedTuple):
    prefix: str
    suffix: str


def gaps() -> list[Gap]:
    """Some lines, half of them with the cursor on the empty line that is left, as editors have it."""
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    found = []
    for problem in problems:
        solution = problem["canonical_solution"].splitlines(keepends=True)
        found += [
            Gap(problem["prompt"] + "".join(solution[:at]), "".join(solution[at + 1 :]))
            for at, line in enumerate(solution[:-1])
            if line.strip() and solution[at + 1].strip()
        ]
    chosen = random.Random(7).sample(found, NUMBER)
    return [Gap(gap.prefix, ("\n" if at % 2 else "") + gap.suffix) for at, gap in enumerate(chosen)]


def filled(service: Service, *, stops: bool) -> list[str]:
    """The middle of each gap."""

    def ask(gap: Gap) -> str:
        body = {"input_prefix": gap.prefix, "input_suffix": gap.suffix, "temperature": 0, "n_predict": 24}
        ((one,),) = service.generate(llamacpp.parse_infill({**body, "editor_stops": stops}))
        return one.text

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, gaps()))


def repeats(gap: Gap, middle: str) -> bool:
    """Whether the next line, which follows anyway, is in the text."""
    following = gap.suffix.strip("\n").split("\n")[0].rstrip()
    return following in [line.rstrip() for line in middle.split("\n")]


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_no_line_comes_again_and_more_of_the_programs_parse(service: Service) -> None:
    with_stops, without = (filled(service, stops=stops) for stops in (True, False))
    repeated, share = (
        [sum(map(repeats, gaps(), middles)) for middles in (with_stops, without)],
        [
            sum(parses(gap.prefix + middle + gap.suffix) for gap, middle in zip(gaps(), middles, strict=True))
            for middles in (with_stops, without)
        ],
    )
    assert repeated[0] == 0 < repeated[1]
    assert share[0] > share[1]
    assert all(whole.startswith(cut) for cut, whole in zip(with_stops, without, strict=True))
