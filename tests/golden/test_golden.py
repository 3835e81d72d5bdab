"""Golden prompts: for each format and case the segments with the special ids between them, and nano's ids.

One text file a case, `<format>-<case>.txt`, beside this one. Text stands in it as JSON strings, so that every
space, tab and line ending can be seen. After an intended change write them anew and read the difference:

    python tests/golden/test_golden.py --write
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import CATALOG, NANO, DialogFormat, Fact, InfillOrder, ModelVariant
from llama_serving.contract.request import Completion, Dialog, Infill, Input, Message
from llama_serving.prompts import chat, completion, infill
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.segments import Ids, Segments, Special
from llama_serving.prompts.tokenizer import Tokenizer

FOLDER: Final = Path(__file__).parent
STEP_OF_NANO: Final = NANO.shape.vocab - 1


def asked(variant: ModelVariant, order: InfillOrder) -> ModelVariant:
    """The variant, infilling in this order."""
    assert variant.infill.value is not None
    return replace(variant, infill=Fact(replace(variant.infill.value, order=order), "golden"))


def dialog(*turns: tuple[str, str], unfold: bool = False) -> Dialog:
    return Dialog(tuple(Message(role, content) for role, content in turns), unfold)


@dataclass(frozen=True)
class Format:
    """A prompt format: the model it is shown for, nano in the same role, and the cases."""

    variant: ModelVariant
    nano: ModelVariant
    cases: dict[str, Input]


INFILLS: Final[dict[str, Input]] = {
    "leading-spaces": Infill("    def f(x):\n        return ", "    \n\n    def g(x):\n        return 2\n"),
    "tabs": Infill("\tif a:\n\t\tb = ", "\t\n\t\treturn b\n"),
    "emoji": Infill("wave = '👋🏽' + ", " + '👩\u200d💻'  # ☺ é\n"),
    "crlf": Infill("def f():\r\n    return ", "\r\n\r\ndef g():\r\n    pass\r\n"),
    "empty-prefix": Infill("", "\nprint(x)\n"),
    "empty-suffix": Infill("import os\n", ""),
}

FORMATS: Final = {
    "completion": Format(
        CATALOG["codellama/CodeLlama-7b-hf"],
        NANO,
        {
            "plain": Completion("def fib(n):"),
            "leading-spaces": Completion("    return 1\n        pass\n"),
            "tabs-crlf": Completion("\tif a:\r\n\t\tb = 'ü'\r\n"),
            "special-text": Completion("<s>[INST] a [/INST] </s> ▁<PRE> <MID><step> <unk> <0x0A>"),
        },
    ),
    "dialog-inst": Format(
        CATALOG["codellama/CodeLlama-7b-Instruct-hf"],
        NANO,
        {
            "one-turn": dialog(("user", "Sort a list.")),
            "system": dialog(("system", "Answer in Python."), ("user", "Sort a list.")),
            "system-leading-spaces": dialog(("system", "Complete the code."), ("user", "    def f(x):\n")),
            "multi-turn": dialog(
                ("system", "Be brief."),
                ("user", "First?"),
                ("assistant", "One."),
                ("user", "Second?"),
                ("assistant", "Two."),
                ("user", "Third?"),
            ),
            "white-space": dialog(
                ("user", " \n First? \n"), ("assistant", "\tOne.\n\n"), ("user", "  Second?  ")
            ),
            "unfolded": dialog(
                ("user", "<s>[INST] <<SYS>>\nAnswer in Python.\n<</SYS>>\n\n    def f(x): [/INST]"), unfold=True
            ),
        },
    ),
    "dialog-source": Format(
        CATALOG["codellama/CodeLlama-70b-Instruct-hf"],
        replace(NANO, dialog=DialogFormat.SOURCE, step_id=STEP_OF_NANO),
        {
            "one-turn": dialog(("user", "Sort a list.")),
            "system": dialog(("system", "Answer in Python. "), ("user", "  Sort a list.\n")),
            "multi-turn": dialog(
                ("system", "System prompt "),
                ("user", "First user query"),
                ("assistant", "Model response to first query"),
                ("user", "Second user query"),
            ),
        },
    ),
    "infill-psm": Format(CATALOG["codellama/CodeLlama-7b-hf"], asked(NANO, InfillOrder.PSM), INFILLS),
    "infill-spm": Format(
        asked(CATALOG["codellama/CodeLlama-7b-hf"], InfillOrder.SPM), asked(NANO, InfillOrder.SPM), INFILLS
    ),
}

CASES: Final = {
    f"{name}-{case}": (form, prompt) for name, form in FORMATS.items() for case, prompt in form.cases.items()
}


def segments_of(prompt: Input, variant: ModelVariant) -> Segments:
    match prompt:
        case Completion():
            return completion.segments(prompt, variant)
        case Dialog():
            return chat.segments(prompt, variant)
        case Infill():
            return infill.segments(prompt, variant)
    raise AssertionError(f"no golden format for {prompt}")


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def input_lines(prompt: Input) -> Iterator[str]:
    match prompt:
        case Completion(text):
            yield as_json(text)
        case Dialog(messages):
            yield from (as_json(asdict(message)) for message in messages)
        case _:
            yield as_json(asdict(prompt))


def segment_lines(segments: Segments) -> Iterator[str]:
    for segment in segments:
        if isinstance(segment, Special):
            yield f"{segment.name} {segment.id}"
        elif not isinstance(segment, Ids):
            yield f"{type(segment).__name__} {as_json(segment.text)}"


def number_lines(numbers: Sequence[int], width: int = 16) -> Iterator[str]:
    for at in range(0, len(numbers), width):
        yield " ".join(map(str, numbers[at : at + width]))


def rendered(form: Format, prompt: Input, tokenizer: Tokenizer) -> str:
    """The whole golden file of one case."""
    wide = PromptBuilder(tokenizer, form.variant, context=2048).build(prompt)
    built = PromptBuilder(tokenizer, form.nano, context=2048).build(prompt)
    blocks = {
        "input": input_lines(prompt),
        f"segments, {form.variant.name}": segment_lines(segments_of(prompt, form.variant)),
        f"stop ids, {form.variant.name}": number_lines(sorted(wide.stop_ids)),
        "ids, nano": number_lines(built.token_ids),
        "stop ids, nano": number_lines(sorted(built.stop_ids)),
    }
    return "\n".join(f"{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in blocks.items())


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_is_what_its_golden_file_says(name: str, nano_tokenizer: Tokenizer) -> None:
    golden = (FOLDER / f"{name}.txt").read_bytes().decode()
    assert rendered(*CASES[name], nano_tokenizer) == golden


def test_the_files_are_the_cases() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES)


def test_each_golden_file_says_something_of_its_own() -> None:
    assert len({path.read_bytes() for path in FOLDER.glob("*.txt")}) == len(CASES)


def write() -> None:
    """Writes all files anew and takes away those of cases that are gone."""
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    for path in FOLDER.glob("*.txt"):
        path.unlink()
    for name, case in CASES.items():
        (FOLDER / f"{name}.txt").write_bytes(rendered(*case, tokenizer).encode())


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    write()
