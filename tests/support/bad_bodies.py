"""Bodies that must be refused, and what the refusal must say, as tables.

Unit tests hand them to the parsers, contract tests to the real servers. Every prompt in them is `SECRET`,
which no error message and no log may hold.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from jsonschema import Draft202012Validator

from llama_serving.catalog import NANO
from llama_serving.constraints.constraint import ANY_OBJECT, Constraint
from llama_serving.contract.parameters import ALIASES
from llama_serving.contract.strict_json import MAX_CONTAINERS, MAX_DEPTH
from llama_serving.contract.validation import schema

SECRET: Final = "def unrepeatable_zebra():"
CONTEXT: Final = 2048
"""Of the embedded model."""

_ERROR: Final = Draft202012Validator(schema("error"))


class Stock(StrEnum):
    """What stock `mlflow models serve` makes of a fault, as its own parser stands before the model."""

    OURS = "the model refuses it, in our shape"
    OWN = "its parser refuses it, in its own shape and with the prompt in the message"
    LOST = "its parser takes the fault away: answered"


@dataclass(frozen=True)
class Bad:
    """A body and its refusal.

    Attributes:
        body: a JSON value, or bytes where the fault lies in those.
        says: what must stand in the message.
    """

    name: str
    body: Any
    code: str
    param: str | None = None
    index: int | None = None
    says: str = ""
    stock: Stock = Stock.OURS

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    def fault(self, answer: Any) -> str | None:
        """What is wrong with `answer` as the refusal of this body, or None. Ollama's has the sentence as `error`."""
        if isinstance(answer["error"], str):
            answer = {
                "error": {"message": answer["error"], **{k: v for k, v in answer.items() if k != "error"}}
            }
        invalid = next(_ERROR.iter_errors(answer), None)
        if invalid is not None:
            return f"not of error.json: {invalid.message}"
        told = answer["error"]
        want = {"code": self.code, "param": self.param, "index": self.index}
        if (got := {name: told.get(name) for name in want}) != want:
            return f"want {want}, got {got}: {told['message']}"
        if self.says not in told["message"]:
            return f"want {self.says!r} in: {told['message']}"
        return "the prompt is in the answer" if SECRET in json.dumps(answer) else None

    def for_mlflow(self) -> "Bad":
        """The same fault in `inputs`."""
        body = self.body
        if isinstance(body, bytes):
            body = body.replace(b'"input_data"', b'"inputs"')
        elif "input_data" in body:
            body = {"inputs": body["input_data"], **{k: v for k, v in body.items() if k != "input_data"}}
        if body == {"inputs": None}:  # null is absent there
            return replace(self, body=body, code="missing_field", param=None, says="none of them")
        param = self.param and self.param.replace("input_data", "inputs")
        return replace(self, body=body, param=param)


def one_of_each(bads: Iterable[Bad]) -> list[Bad]:
    """The first one with each code and each behaviour of stock MLflow: a server sends what a parser, tested with all of them, refuses."""
    return list({(bad.code, bad.stock): bad for bad in reversed(list(bads))}.values())


def score(input_string: Any, **parameters: Any) -> dict[str, Any]:
    """A body of `/score` in its usual form."""
    inside = {"input_string": input_string, **({"parameters": parameters} if parameters else {})}
    return {"input_data": inside}


def text(rest: str) -> bytes:
    """JSON text with one value missing, and that value."""
    parameters = f'{{"max_new_tokens": 1, "seed": {rest}}}'
    return f'{{"input_data": {{"input_string": ["{SECRET}"], "parameters": {parameters}}}}}'.encode()


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def user(content: Any = SECRET) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = SECRET) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


# --- bytes ----------------------------------------------------------------------------------------

_GOOD: Final = json.dumps(score([SECRET])).encode()
_PROMPT: Final = '{{"input_data": {{"input_string": ["{}"]}}}}'
_NOT_UTF8: Final = "not UTF-8"


def _not_json(name: str, raw: bytes, says: str = "", stock: Stock = Stock.OWN) -> Bad:
    return Bad(name, raw, "invalid_json", says=says, stock=stock)


NOT_JSON: Final = (
    _not_json("empty", b"", "is empty"),
    _not_json("blank", b" \r\n\t", "is empty"),
    _not_json("a BOM alone", b"\xef\xbb\xbf", "is empty"),
    _not_json("truncated", _GOOD[:-1], "not valid JSON"),
    _not_json("truncated in a string", _GOOD[: _GOOD.index(b"zebra")], "not valid JSON"),
    _not_json("trailing data", _GOOD + b" {}", "not valid JSON"),
    _not_json("a NUL behind it", _GOOD + b"\0", "not valid JSON"),
    _not_json("two BOMs", b"\xef\xbb\xbf" * 2 + _GOOD, "not valid JSON"),
    _not_json("trailing comma", b'{"input_data": ["x"],}', "not valid JSON"),
    _not_json("single quotes", b"{'input_data': ['x']}", "not valid JSON"),
    _not_json("a raw line feed in a string", _PROMPT.format("a\nb").encode(), "not valid JSON"),
    _not_json("a leading zero", text("01"), "not valid JSON"),
    _not_json("a plus sign", text("+1"), "not valid JSON"),
    _not_json("no digit in front of the point", text(".5"), "not valid JSON"),
    _not_json("duplicate key", b'{"params": {"max_new_tokens": 1}, "input_data": ["x"], "input_data": ["y"]}', "twice", Stock.LOST),
    _not_json("duplicate key inside", text('1, "seed": 2'), "twice", Stock.LOST),
    _not_json("duplicate key, once escaped", text('1, "\\u0073eed": 2'), "twice", Stock.LOST),
    _not_json("NaN", text("NaN"), "finite", Stock.OURS),
    _not_json("Infinity", text("Infinity"), "finite", Stock.OURS),
    _not_json("-Infinity", text("-Infinity"), "finite", Stock.OURS),
    _not_json("1e999", text("1e999"), "64-bit float", Stock.OURS),
    _not_json("-1e999", text("-1e999"), "64-bit float", Stock.OURS),
    _not_json("an integer of 21 digits", text("1" * 21), "20 digits", Stock.OURS),
    _not_json("an integer of 22 digits", text("1" * 22), "20", Stock.OURS),
    _not_json("an integer of 3000 digits", text("1" * 3000), "20", Stock.OURS),
    _not_json("a negative integer of 3000 digits", text("-" + "1" * 3000), "20", Stock.OURS),
    _not_json("an integer of a million digits", text("1" * 1_000_000), "1000000 digits"),
    _not_json("one level too deep", text(nested(MAX_DEPTH - 2)), "deeper than 64", Stock.OURS),
    _not_json("a hundred thousand levels", text(nested(100_000)), "deeper than 64"),
    _not_json("a hundred thousand levels, not closed", b"[" * 100_000, "deeper than 64"),
    _not_json("more lists than anybody needs", text(f"[{'[],' * MAX_CONTAINERS}[]]"), "objects and lists",
              Stock.OURS),
    _not_json("UTF-16 with a BOM", _GOOD.decode().encode("utf-16"), _NOT_UTF8),
    _not_json("UTF-16 without a BOM", _GOOD.decode().encode("utf-16-le")),
    _not_json("Latin-1", _PROMPT.format("é").encode("latin-1"), _NOT_UTF8),
    _not_json("an overlong encoding", _GOOD.replace(b"zebra", b"\xc0\xaf"), _NOT_UTF8),
    _not_json("an encoded surrogate", _GOOD.replace(b"zebra", b"\xed\xa0\x80"), stock=Stock.OURS),
    _not_json("a lone high surrogate", _PROMPT.format("a\\ud83d").encode(), "lone surrogate", Stock.OURS),
    _not_json("a lone low surrogate", _PROMPT.format("\\ude00b").encode(), "lone surrogate", Stock.OURS),
    _not_json("a pair the wrong way round", _PROMPT.format("\\ude00\\ud83d").encode(), "lone surrogate",
              Stock.OURS),
    _not_json("a lone surrogate in a key", text('1, "\\ud800": 2'), "lone surrogate", Stock.OURS),
    _not_json("a list", b'["x"]', "not a list"),
    _not_json("a string", b'"x"', "not a string"),
    _not_json("a number", b"5", "not a number"),
    _not_json("null", b"null", "not null"),
    _not_json("a boolean", b"true", "not a boolean"),
)  # fmt: skip


# --- values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edges:
    """The values on both sides of what a parameter accepts."""

    accepted: tuple[Any, ...]
    refused: tuple[Any, ...]


_P: Final = "input_data.parameters"
_NO_NUMBER: Final = ("1", True, [1], {"a": 1})
_NO_INTEGER: Final = (*_NO_NUMBER, 1.5)
_BOOLEAN: Final = Edges((True, False, None), (0, 1, "true", [], {}))
_NEW_TOKENS: Final = Edges((1, 8.0, None), (0, -1, *_NO_INTEGER))
_PENALTY: Final = Edges((-2, -2.0, 0, 2, 0.5, None), (-2.01, 2.01, *_NO_NUMBER))
_SEQUENCES: Final = Edges((1, 16, 2.0, None), (0, 17, *_NO_INTEGER))

_NO_OBJECT: Final = (5, "json_object", True, [], [{}])
_STOP: Final = Edges(("a", ["a"], ["a"] * 16, None), (5, True, {}, ["a"] * 17))
_MIN_TOKENS: Final = Edges((0, 1, 2.0, None), (-1, *_NO_INTEGER))

EDGES: Final[Mapping[str, Edges]] = {
    "max_new_tokens": _NEW_TOKENS,
    "max_tokens": _NEW_TOKENS,
    "max_completion_tokens": _NEW_TOKENS,
    "num_predict": _NEW_TOKENS,
    "max_gen_len": _NEW_TOKENS,
    "min_new_tokens": _MIN_TOKENS,
    "min_tokens": _MIN_TOKENS,
    "do_sample": _BOOLEAN,
    "temperature": Edges((0, -0.0, 2, 0.5, 5e-324, None), (-0.01, 2.01, *_NO_NUMBER)),
    "top_p": Edges((1, 1.0, 5e-324, None), (0, -0.0, 1.01, *_NO_NUMBER)),
    "top_k": Edges((0, 2**31 - 1, 5.0, None), (-2, 2**31, *_NO_INTEGER)),
    "min_p": Edges((0, 1, 0.5, None), (-0.01, 1.01, *_NO_NUMBER)),
    "repetition_penalty": Edges((10, 5e-324, 1, None), (0, 10.01, *_NO_NUMBER)),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "num_return_sequences": _SEQUENCES,
    "n": _SEQUENCES,
    "stop": _STOP,
    "stop_sequences": _STOP,
    "seed": Edges((0, 2**63 - 1, 5.0, None), (-1, 2**63, float(2**63), *_NO_INTEGER)),
    "return_full_text": _BOOLEAN,
    "echo": _BOOLEAN,
    "ignore_eos": _BOOLEAN,
    "logprobs": Edges((0, 5, 2.0, None), (-1, 6, *_NO_INTEGER)),
    "prompt_logprobs": Edges((0, 5, 2.0, None), (-1, 6, *_NO_INTEGER)),
    "logit_bias": Edges(({"5": 1.5}, None), _NO_OBJECT),
    "details": _BOOLEAN,
    "receipt": _BOOLEAN,
    "stream": _BOOLEAN,
    "continue_final_message": _BOOLEAN,
    "editor_stops": _BOOLEAN,
    "response_format": Edges(({"type": "json_object"}, None), _NO_OBJECT),
    "structured_outputs": Edges(({"regex": "a"}, None), _NO_OBJECT),
}
_CONSTRAINTS: Final = {
    "response_format": Constraint("json", ANY_OBJECT),
    "structured_outputs": Constraint("regex", "a"),
}


LLAMACPPS: Final = frozenset(
    ("cache_prompt", "samplers", "dynatemp_range", "dynatemp_exponent", "xtc_probability", "xtc_threshold", "repeat_last_n",
     "repeat_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "timings_per_token",
     "t_max_prompt_ms")
)  # fmt: skip
"""Fields of llama.cpp's that its editors send to OpenAI's chat as well: without effect, or at the value that changes nothing."""


def field(name: str, value: Any) -> dict[str, Any]:
    """The field of `Parameters`, and what it must be, after the parameter `name` was given as `value`."""
    if name in _CONSTRAINTS:
        return {"response_format": None if value is None else _CONSTRAINTS[name]}
    if name == "logit_bias":
        return {name: None if value is None else tuple((int(i), bias) for i, bias in value.items())}
    texts = (value,) if isinstance(value, str) else value
    return {ALIASES.get(name, name): tuple(texts) if isinstance(texts, list) else texts}


def _parameter_bodies() -> Iterator[Bad]:
    for name, edges in EDGES.items():
        for value in edges.refused:
            yield Bad(
                f"{name} {json.dumps(value)[:24]}",
                score([SECRET], **{name: value}),
                "invalid_value",
                f"{_P}.{name}",
                says=f".{name}` must be ",
            )


_AT: Final = "input_data.input_string"
_ITEM: Final = f"{_AT}[1]"
_INFILL: Final = {"prefix": SECRET, "suffix": SECRET}
_ONE: Final = {"max_new_tokens": 1}
"""In bodies that stock MLflow answers: they should not take long."""
_TABLE: Final = {"columns": ["input_string"], "data": [[SECRET]]}


def _table(**changes: Any) -> dict[str, Any]:
    return {"input_data": {k: v for k, v in {**_TABLE, **changes}.items() if v is not ...}}


WRONG_SHAPE: Final = (
    Bad("no input", {}, "missing_field", "input_data", stock=Stock.OWN),
    Bad("OpenAI's body", {"prompt": SECRET, "max_tokens": 1}, "missing_field", "input_data",
        stock=Stock.LOST),
    Bad("an unknown key beside it", {"input_data": [SECRET], "params": _ONE, "input_dat": 1}, "unknown_field",
        "input_dat",
        says="Did you mean `input_data`?", stock=Stock.LOST),
    Bad("two inputs", {"input_data": [SECRET], "params": _ONE, "inputs": [SECRET]}, "competing_fields", "inputs",
        stock=Stock.LOST),
    Bad("two inputs inside", score([SECRET]) | {"input_data": {**_TABLE, "input_string": [SECRET]}},
        "unknown_field", "input_data.input_string"),
    *(Bad(f"input_data is {name}", {"input_data": value}, "invalid_value", "input_data")
      for name, value in (("a number", 5), ("a boolean", True))),
    Bad("input_data is null", {"input_data": None}, "missing_field", "input_data"),
    Bad("input_data is an empty string", {"input_data": "", "params": _ONE}, "empty_prompt", "input_data"),
    Bad("an empty object", {"input_data": {}}, "missing_field", "input_data.input_string"),
    Bad("a misspelled key inside", {"input_data": {"input_string": [SECRET], "parameter": {}}},
        "unknown_field", "input_data.parameter", says="Did you mean `parameters`?"),
    Bad("an empty list", {"input_data": []}, "empty_prompt", "input_data"),
    Bad("an empty list inside", score([]), "empty_prompt", _AT),
    Bad("no rows", _table(data=[]), "empty_prompt", "input_data.data"),
)  # fmt: skip

WRONG_PROMPT: Final = (
    Bad("an empty prompt", score(""), "empty_prompt", _AT),
    Bad("an empty prompt in a list", score([SECRET, ""]), "empty_prompt", _ITEM, 1),
    Bad("an empty prompt in a plain list", {"input_data": [SECRET, ""]}, "empty_prompt", "input_data[1]", 1),
    Bad("an empty prompt in a table", _table(data=[[SECRET], [""]]), "empty_prompt", "input_data.data[1][0]",
        1),
    Bad("a number as the prompt", score(5), "invalid_value", _AT),
    Bad("null as the prompt", score(None), "missing_field", _AT),
    Bad("a null item", score([SECRET, None]), "invalid_value", _ITEM, 1, says="not null"),
    Bad("a number item", score([SECRET, 3], **_ONE), "invalid_value", _ITEM, 1, says="not 3",
        stock=Stock.LOST),
    Bad("a boolean item", score([SECRET, True], **_ONE), "invalid_value", _ITEM, 1, stock=Stock.LOST),
    Bad("numbers only", score([3, 4]), "invalid_value", f"{_AT}[0]", 0),
    Bad("a nested item", score([SECRET, [SECRET]]), "invalid_value", _ITEM, 1, says="not a list",
        stock=Stock.OWN),
    Bad("nested items only", score([[SECRET]]), "invalid_value", f"{_AT}[0]", 0),
    Bad("a message behind a string", score([SECRET, user()]), "missing_field", f"{_ITEM}.prefix", 1),
    Bad("a message behind a string in a plain list", {"input_data": [SECRET, user()]}, "missing_field",
        "input_data[1].prefix", 1, says="nothing but messages"),
    Bad("no suffix", score({"prefix": SECRET}), "missing_field", f"{_AT}.suffix"),
    Bad("no prefix", score([_INFILL, {"suffix": SECRET}]), "missing_field", f"{_ITEM}.prefix", 1),
    Bad("a prefix that is a number", score({**_INFILL, "prefix": 5}), "invalid_value", f"{_AT}.prefix"),
    Bad("an infilling item with more in it", score([{**_INFILL, "middle": SECRET}]), "unknown_field",
        f"{_AT}[0].middle", 0),
    Bad("both ends empty", score([SECRET, {"prefix": "", "suffix": ""}]), "empty_prompt", _ITEM, 1),
    Bad("two gaps", score([SECRET, f"{SECRET}<FILL_ME>a<FILL_ME>"]), "invalid_value", _ITEM, 1,
        says="2 times <FILL_ME>"),
    Bad("two gaps, one string", score("<FILL_ME><FILL_ME>"), "invalid_value", _AT),
    Bad("a gap and nothing else", score(["<FILL_ME>"]), "empty_prompt", f"{_AT}[0]", 0),
)  # fmt: skip

WRONG_TABLE: Final = (
    Bad("another column", _table(columns=["text"]), "invalid_value", "input_data.columns"),
    Bad("two columns, one of them ours", _table(columns=["input_string", "id"]), "invalid_value",
        "input_data.columns"),
    Bad("no column", _table(columns=[]), "invalid_value", "input_data.columns"),
    Bad("columns left out", _table(columns=...), "missing_field", "input_data.columns"),
    Bad("data left out", _table(data=...), "missing_field", "input_data.data"),
    Bad("data is a string", _table(data=SECRET), "invalid_value", "input_data.data"),
    Bad("index is a string", _table(index=SECRET), "invalid_value", "input_data.index"),
    Bad("a row that is a string", _table(data=[[SECRET], SECRET]), "invalid_value", "input_data.data[1]", 1,
        stock=Stock.OWN),
    Bad("a row with two cells", _table(data=[[SECRET, SECRET]]), "invalid_value", "input_data.data[0]", 0),
    Bad("a row without a cell", _table(data=[[]]), "empty_prompt", "input_data.data[0]", 0),
    Bad("a null cell", _table(data=[[None]]), "invalid_value", "input_data.data[0][0]", 0),
    Bad("a prefix alone", _table(columns=["prefix", "suffix"], data=[[SECRET]]), "invalid_value",
        "input_data.data[0]", 0),
    Bad("a bad message in a cell", _table(data=[[SECRET], [[user(5)]]]), "invalid_value",
        "input_data.data[1][0][0].content", 1, stock=Stock.OWN),
    Bad("a dialog that ends with the assistant in a cell", _table(data=[[[user(), assistant()]]]),
        "invalid_dialog", "input_data.data[0][1]", 0),
    Bad("an unknown key", _table(name=SECRET), "unknown_field", "input_data.name"),
)  # fmt: skip

WRONG_DIALOG: Final = (
    Bad("the assistant first", score([assistant(), user()]), "invalid_dialog", f"{_AT}[0]"),
    Bad("the assistant behind the system", score([{"role": "system", "content": SECRET}, assistant(), user()]),
        "invalid_dialog", _ITEM),
    Bad("the assistant last", score([user(), assistant()]), "invalid_dialog", _ITEM, says="continue_final_message"),
    Bad("the user to be continued", score([user()], continue_final_message=True), "invalid_dialog", f"{_AT}[0]",
        says="continue_final_message"),
    Bad("nothing to be continued", score([user(), assistant("")], continue_final_message=True), "invalid_dialog",
        _ITEM, says="is empty"),
    Bad("a system message alone", score([{"role": "system", "content": SECRET}]), "invalid_dialog",
        f"{_AT}[0]"),
    Bad("a system message later", score([user(), {"role": "system", "content": SECRET}]), "invalid_dialog",
        _ITEM),
    Bad("an empty user message", score([user("")]), "invalid_dialog", f"{_AT}[0]", says="is empty"),
    *(Bad(f"the role {role!r}", score([user(), assistant(), {"role": role, "content": SECRET}]),
          "invalid_value", f"{_AT}[2].role") for role in ("tool", "User", "", 5)),
    Bad("no role, as a null", score([user(), {"role": None, "content": SECRET}]), "missing_field", f"{_ITEM}.role"),
    Bad("no role", score([{"content": SECRET}]), "missing_field", f"{_AT}[0].role"),
    Bad("no content", score([{"role": "user"}]), "missing_field", f"{_AT}[0].content"),
    Bad("null content", score([user(None)]), "missing_field", f"{_AT}[0].content"),
    Bad("an image", score([user([{"type": "image_url", "image_url": {"url": SECRET}}])]), "missing_field",
        f"{_AT}[0].content[0].text", says="no images"),
    Bad("more in a message", score([{**user(), "title": SECRET}]), "unknown_field", f"{_AT}[0].title"),
    Bad("a string behind a message", score([user(), SECRET]), "invalid_value", _ITEM, says="can't be mixed"),
)  # fmt: skip

WRONG_PARAMETERS: Final = (
    *_parameter_bodies(),
    *(Bad(f"parameters are {name}", {"input_data": {"input_string": SECRET, "parameters": value}},
          "invalid_value", _P)
      for name, value in (("a list", []), ("a string", SECRET), ("a number", 5), ("false", False))),
    Bad("a misspelled name", score(SECRET, max_new_token=5), "unknown_field", f"{_P}.max_new_token",
        says="Did you mean `max_new_tokens`? Accepted here: continue_final_message, details, do_sample, echo,"),
    Bad("a name like no other", score(SECRET, zzz=5), "unknown_field", f"{_P}.zzz", says="Accepted here: "),
    Bad("a text in the place of a name", score("x", **{SECRET: 5}), "unknown_field", f"{_P}.…"),
    Bad("an empty stop string in a list", score(SECRET, stop=["a", ""]), "invalid_value", f"{_P}.stop[1]"),
    Bad("a stop string that is a number", score(SECRET, stop=[5]), "invalid_value", f"{_P}.stop[0]"),
    Bad("one thing under two names", score(SECRET, max_new_tokens=5, max_tokens=6), "competing_fields",
        f"{_P}.max_tokens", says="the same parameter"),
    Bad("n under two names", score(SECRET, n=1, num_return_sequences=2), "competing_fields",
        f"{_P}.num_return_sequences"),
    *(Bad(f"parameters inside and as {name}", score(SECRET, **_ONE) | {name: {"seed": 1}}, "competing_fields",
          name, stock=stock) for name, stock in (("parameters", Stock.LOST), ("params", Stock.OURS))),
    Bad("an unknown name beside the input", {"input_data": [SECRET], "params": {**_ONE, "top-p": 1}},
        "unknown_field", "params.top-p", says="Did you mean `top_p`?", stock=Stock.LOST),
)  # fmt: skip

REFUSED: Final = (*WRONG_SHAPE, *WRONG_PROMPT, *WRONG_TABLE, *WRONG_DIALOG, *WRONG_PARAMETERS)
"""What `/score`'s parser refuses, whatever the model."""


def _long_prompts() -> Iterator[Bad]:
    words = "a " * 1500  # 1,502 tokens of the embedded model
    yield Bad("more characters than the context can hold", score("x" * 40_000), "context_exceeded", _AT,
              says="at least")  # fmt: skip
    yield Bad("more tokens than the context", score([SECRET, "é" * 2000]), "context_exceeded", _ITEM, 1,
              says=f"maximum context length is {CONTEXT} tokens")  # fmt: skip
    yield Bad("more new tokens than are left", score([SECRET, words], max_new_tokens=1000), "context_exceeded",
              _ITEM, 1, says="has 1502 tokens, and 1000 new tokens may follow")  # fmt: skip
    yield Bad("more new tokens than the context", score(SECRET, max_new_tokens=10**12), "context_exceeded",
              _AT)  # fmt: skip


REFUSED_BY_THE_MODEL: Final = (
    *_long_prompts(),
    Bad("65 prompts", score([SECRET] * 65), "too_many_prompts", says="65 prompts; at most 64"),
    Bad("4096 prompts", {"input_data": [SECRET] * 4096}, "too_many_prompts"),
    *(Bad(f"{mark} in a message", score([user(f"{SECRET} {mark}")]), "invalid_dialog", _AT, says=mark)
      for mark in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<step>", "</step>")),
    Bad("a mark in a dialog of a table", _table(data=[[SECRET], [[user("[INST]")]]]), "invalid_dialog",
        "input_data.data[1]", 1, stock=Stock.OWN),
    Bad("a stream", score(SECRET, stream=True), "streaming_unsupported", f"{_P}.stream",
        says="predict_stream"),
    Bad("a stream of two prompts", score([SECRET] * 2, stream=True), "streaming_unsupported", f"{_P}.stream"),
    Bad("two greedy sequences", score(SECRET, do_sample=False, n=2), "invalid_value", f"{_P}.n"),
    Bad("two sequences at temperature 0", score(SECRET, temperature=0, num_return_sequences=2), "invalid_value",
        f"{_P}.num_return_sequences"),
    Bad("a text to be continued", score(SECRET, continue_final_message=True), "invalid_value",
        f"{_P}.continue_final_message", says="no message to continue"),
    Bad("a text without a gap", score(SECRET, editor_stops=True), "invalid_value", f"{_P}.editor_stops", says="no gap"),
    Bad("more tokens at least than at most", score(SECRET, max_new_tokens=3, min_new_tokens=4),
        "invalid_value", f"{_P}.min_new_tokens", says="it is 4 and max_new_tokens is 3"),
    Bad("more tokens at least than the default", score(SECRET, min_new_tokens=257), "invalid_value",
        f"{_P}.min_new_tokens"),
)  # fmt: skip
"""What passes the parser and is refused before anything runs, by the embedded model with its defaults."""


# --- OpenAI ---------------------------------------------------------------------------------------

UNSUPPORTED: Final = (
    "functions", "function_call", "modalities", "audio", "prediction", "reasoning_effort", "verbosity", "web_search_options",
    "service_tier", "best_of", "add_special_tokens",
)  # fmt: skip
CALLING: Final = ("tools", "tool_choice", "parallel_tool_calls")
"""What only a chat may have."""

_COMPLETION: Final = {"prompt": SECRET}
_CHAT: Final = {"messages": [user()]}


def _openai_bodies() -> Iterator[Bad]:
    for body in (_COMPLETION, _CHAT):
        kind = next(iter(body))
        for name in UNSUPPORTED if kind == "messages" else (*UNSUPPORTED, *CALLING):
            yield Bad(
                f"{kind} with {name}", {**body, name: {"a": 1}}, "unsupported_field", name, says="not supported"
            )
        for name in ("details", "num_predict", "input_data", "params", "keep_alive"):
            stock = Stock.OWN if name == "details" else Stock.OURS  # a name of its own ParamSchema
            yield Bad(f"{kind} with {name}", {**body, name: {}}, "unknown_field", name, says="Accepted here: ",
                      stock=stock)  # fmt: skip
        for name, value in (("temperature", 3), ("max_tokens", 0), ("n", 17), ("seed", -1),
                            ("model", 5), ("stream_options", [])):  # fmt: skip
            yield Bad(f"{kind} with {name} {value!r}", {**body, name: value}, "invalid_value", name)
        yield Bad(f"{kind} with two limits", {**body, "max_tokens": 1, "max_completion_tokens": 2},
                  "competing_fields", "max_completion_tokens")  # fmt: skip
        yield Bad(f"{kind} with stream_options alone", {**body, "stream_options": {"include_usage": True}}, "invalid_value",
                  "stream_options", says="needs `stream: true`")  # fmt: skip
        yield Bad(f"{kind} with another stream option",
                  {**body, "stream": True, "stream_options": {"include_obfuscation": True}}, "unsupported_field",
                  "stream_options.include_obfuscation")  # fmt: skip


WRONG_OPENAI: Final = (
    *_openai_bodies(),
    Bad("an empty prompt", {"prompt": ""}, "empty_prompt", "prompt"),
    Bad("an empty prompt with a null suffix", {"prompt": "", "suffix": None}, "empty_prompt", "prompt"),
    Bad("an empty prompt with an empty suffix", {"prompt": "", "suffix": ""}, "empty_prompt", "prompt"),
    Bad("no prompts", {"prompt": []}, "empty_prompt", "prompt"),
    Bad("an empty prompt in a list", {"prompt": [SECRET, ""]}, "empty_prompt", "prompt[1]", 1),
    Bad("a null prompt", {"prompt": None}, "missing_field", "prompt"),
    Bad("an object as the prompt", {"prompt": {}}, "invalid_value", "prompt"),
    Bad("no token ids", {"prompt": [[1], []]}, "empty_prompt", "prompt[1]", 1),
    Bad("a negative token id", {"prompt": [1, -1]}, "invalid_value", "prompt[1]"),
    Bad("half a token id", {"prompt": [[1], [2, 0.5]]}, "invalid_value", "prompt[1][1]", 1),
    Bad("a token id that is a string", {"prompt": [1, SECRET]}, "invalid_value", "prompt[1]"),
    Bad("a string and token ids", {"prompt": [SECRET, [1]]}, "invalid_value", "prompt[1]", 1),
    Bad("two gaps", {"prompt": [SECRET, "<FILL_ME>a<FILL_ME>"]}, "invalid_value", "prompt[1]", 1),
    Bad("a suffix to two prompts", {"prompt": [SECRET, SECRET], "suffix": SECRET}, "invalid_value", "suffix"),
    Bad("echo with logprobs of an infilling", {**_COMPLETION, "suffix": "x", "echo": True, "logprobs": 1}, "unsupported_field",
        "logprobs"),
    Bad("a shortened infilling", {**_COMPLETION, "suffix": "x", "truncate_prompt_tokens": 5}, "unsupported_field",
        "truncate_prompt_tokens"),
    *(Bad(f"truncate_prompt_tokens {value}", {**body, "truncate_prompt_tokens": value}, "invalid_value",
          "truncate_prompt_tokens") for body in (_COMPLETION, _CHAT) for value in (0, -2, True, "5")),
    *(Bad(f"logit_bias of {value}", {**body, "logit_bias": value}, "invalid_value", "logit_bias")
      for body in (_COMPLETION, _CHAT) for value in ({"x": 1}, {"-1": 1}, {"5": 1, "05": 1}, {"1" * 10: 1}, {str(n): 1 for n in range(1025)})),
    Bad("a bias that is too large", {**_COMPLETION, "logit_bias": {"5": 101}}, "invalid_value", "logit_bias.5"),
    Bad("usage so far without usage", {**_COMPLETION, "stream": True, "stream_options": {"continuous_usage_stats": True}},
        "invalid_value", "stream_options.continuous_usage_stats"),
    Bad("echo with token ids", {**_COMPLETION, "echo": True, "return_token_ids": True}, "unsupported_field",
        "return_token_ids"),
    Bad("one id to stop at", {**_COMPLETION, "stop_token_ids": 2}, "invalid_value", "stop_token_ids"),
    Bad("a text to stop at among ids", {**_COMPLETION, "stop_token_ids": [SECRET]}, "invalid_value", "stop_token_ids[0]"),
    Bad("logprobs true to a completion", {**_COMPLETION, "logprobs": True}, "invalid_value", "logprobs",
        stock=Stock.OWN),
    Bad("a number of logprobs to a chat", {**_CHAT, "logprobs": 1}, "invalid_value", "logprobs"),
    Bad("top_logprobs alone", {**_CHAT, "top_logprobs": 1}, "invalid_value", "top_logprobs"),
    Bad("six top_logprobs", {**_CHAT, "logprobs": True, "top_logprobs": 6}, "invalid_value", "top_logprobs",
        stock=Stock.OWN),
    Bad("echo to a chat", {**_CHAT, "echo": True}, "unknown_field", "echo"),
    Bad("both kinds", {**_CHAT, **_COMPLETION}, "unknown_field", "prompt"),
    Bad("no messages", {"messages": []}, "empty_prompt", "messages"),
    Bad("messages that are a string", {"messages": SECRET}, "invalid_value", "messages"),
    Bad("a string as a message", {"messages": [user(), SECRET]}, "invalid_value", "messages[1]"),
    Bad("another role", {"messages": [{"role": "function", "content": SECRET}]}, "invalid_value",
        "messages[0].role"),
    Bad("a result first", {"messages": [{"role": "system", "content": "a"}, {"role": "tool", "content": 5}]}, "invalid_value",
        "messages[1].content"),
    Bad("the assistant last", {"messages": [user(), assistant()]}, "invalid_dialog", "messages[1]",
        says="continue_final_message"),
    Bad("beginning and continuing", {"messages": [user(), assistant()], "continue_final_message": True,
        "add_generation_prompt": True}, "invalid_value", "add_generation_prompt"),
    Bad("an empty message", {"messages": [user("")]}, "invalid_dialog", "messages[0]"),
    Bad("empty parts", {"messages": [user([{"type": "text", "text": ""}])]}, "invalid_dialog", "messages[0]"),
    Bad("no parts", {"messages": [user([])]}, "empty_prompt", "messages[0].content"),
    Bad("an image", {"messages": [user([{"type": "image_url", "image_url": {"url": SECRET}}])]},
        "missing_field", "messages[0].content[0].text", says="no images"),
    Bad("an image with a text", {"messages": [user([{"type": "image", "text": SECRET}])]}, "invalid_value",
        "messages[0].content[0].type", says="no images"),
    Bad("tool calls", {"messages": [{**user(), "tool_calls": [{}]}]}, "unsupported_field",
        "messages[0].tool_calls"),
)  # fmt: skip
"""What the parser of OpenAI's two routes refuses."""

OPENAI_REFUSED_BY_THE_MODEL: Final = (
    Bad("a stream", {**_CHAT, "stream": True}, "streaming_unsupported", "stream", says="predict_stream"),
    Bad("an id outside the vocabulary", {"prompt": [1, NANO.shape.vocab]}, "invalid_value", "prompt",
        says=f"0 to {NANO.shape.vocab - 1}"),
    Bad("a mark in a message", {"messages": [user(f"{SECRET} [INST]")]}, "invalid_dialog", "messages"),
    Bad("a mark in a message that is nearly a whole prompt", {"messages": [user("[INST] a [/INST] b")]},
        "invalid_dialog", "messages"),
    Bad("a prompt longer than the context", {"prompt": "x" * 40_000, "max_tokens": 1}, "context_length_exceeded",
        "prompt", says="lower `max_tokens`"),
    Bad("two greedy choices", {**_COMPLETION, "n": 2, "temperature": 0}, "invalid_value", "n"),
)  # fmt: skip


# --- what asks for nothing ------------------------------------------------------------------------

NO_EFFECT: Final[Mapping[str, tuple[Any, ...]]] = {
    name: tuple(value for value in rule["enum"] if value is not None)
    for name, rule in schema("parameters")["properties"].items()
    if "enum" in rule
}
"""Names of transformers', TGI's and vLLM's that pass at the one value that changes nothing."""
