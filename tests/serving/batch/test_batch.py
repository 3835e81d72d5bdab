"""Files of rows: one record for each line that is not blank, in order, whatever it holds."""

import asyncio
import csv
import gzip
import io
import json
import logging
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.batch import runner
from llama_serving.batch.inputs import InputFile
from llama_serving.batch.job import Limit, todos
from llama_serving.batch.journal import Entry
from llama_serving.batch.windows import Todo, windows
from llama_serving.contract.request import (
    Completion,
    Dialog,
    Generation,
    Generations,
    Infill,
    Parameters,
    Request,
    Usage,
)
from llama_serving.errors import InternalError, QueueFull, Unavailable
from llama_serving.hosts import azureml_batch
from tests.serving.batch.test_batch_reader import BOM, LIMIT, row

if TYPE_CHECKING:
    from llama_serving.service.service import Service

KEYS = {"file", "line", "id", "output", "finish_reason", "usage", "error", "extra"}
GREEDY = {"do_sample": False, "max_new_tokens": 8}


class Echo:
    """A service whose model repeats the prompt; the prompt `boom` fails."""

    variant = SimpleNamespace(name="echo")
    settings = SimpleNamespace(max_body=1 << 20, deadline_s=None, max_num_seqs=4, vllm_start_s=60)

    def __init__(self) -> None:
        self.stats = SimpleNamespace(engine="vllm", alive=True, away=False, failed_starts=0)
        self.engine = SimpleNamespace(stats=self._stats)
        self._dead = False
        self.asked: list[Request] = []
        self.deadlines: list[float | None] = []

    def _stats(self) -> SimpleNamespace:
        """Dead at the first look, then replaced by a new one."""
        self.stats.alive, self._dead = not self._dead, False
        return self.stats

    async def agenerate(self, asked: Request, *, deadline: float | None) -> Generations:
        self.asked.append(asked)
        self.deadlines.append(deadline)
        (prompt,) = asked.inputs
        match prompt:
            case Completion(text):
                pass
            case Infill(prefix, suffix):
                text = f"{prefix}|{suffix}"
            case Dialog(messages):
                text = messages[-1].content
            case _:
                raise AssertionError(prompt)
        if text == "boom":
            raise InternalError("The model failed on this sequence.")
        if text == "bug":
            raise ZeroDivisionError("a prompt could be in here")
        if text == "dead":
            self._dead = True
            raise Unavailable("The engine has stopped.")
        count = asked.parameters.num_return_sequences or 1
        return (tuple(Generation(text, text, "stop", Usage(len(text), 2)) for _ in range(count)),)


@pytest.fixture
def echo() -> Echo:
    return Echo()


def score(echo: Echo, path: Path, **options: Any) -> list[dict[str, Any]]:
    source = InputFile(path, options.pop("name", path.name))
    return [json.loads(record) for record in azureml_batch.records(cast("Service", echo), [source], **options)]


def scored(echo: Echo, folder: Path, *rows: object, **options: Any) -> list[dict[str, Any]]:
    """The records of a JSONL file with these rows."""
    path = folder / "rows.jsonl"
    path.write_bytes(
        b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    )
    return score(echo, path, **options)


class TestRecords:
    def test_a_row_without_a_prompt_keeps_its_id_and_keys(self, tmp_path: Path, echo: Echo) -> None:
        (record,) = scored(echo, tmp_path, {"id": 7, "text": "a"})
        assert (record["output"], record["error"]["code"]) == (None, "missing_field")
        assert (record["id"], record["extra"]) == (7, {"text": "a"})

    def test_a_row_has_a_deadline_only_where_it_is_set(self, tmp_path: Path, echo: Echo) -> None:
        scored(echo, tmp_path, {"input_string": "a"})
        echo.settings = SimpleNamespace(max_body=1 << 20, deadline_s=60.0, max_num_seqs=4)
        before = time.monotonic()
        scored(echo, tmp_path, {"input_string": "a"})
        none, some = echo.deadlines
        assert none is None
        assert some is not None
        assert before + 60 <= some <= time.monotonic() + 60

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"input_string": "a", "max_new_tokens": 3}, "max_new_tokens"),
            ({"input_string": "a", "n": 3, "parameters": {}}, "n"),
            ({"prompt": "a", "parameters": {"seed": 1}, "temperature": 0}, "temperature"),
            ({"prefix": "a", "suffix": "", "params": {"seed": 1}}, "params"),
            ({"input_data": ["a"], "seed": 1}, "seed"),
        ],
    )
    def test_a_parameter_beside_the_prompt_is_not_forgotten(
        self, tmp_path: Path, echo: Echo, asked: dict[str, object], param: str
    ) -> None:
        (record,) = scored(echo, tmp_path, asked)
        assert (record["output"], record["error"]["code"]) == (None, "unknown_field")
        assert record["error"]["param"] == param

    def test_other_people_s_keys_make_no_openai_batch_line(self, tmp_path: Path, echo: Echo) -> None:
        extra = {"body": "of a mail", "url": "https://mail.example"}
        (record,) = scored(echo, tmp_path, {"input_string": "a", **extra})
        assert (record["output"], record["extra"]) == ("a", extra)

    @pytest.mark.parametrize(
        ("asked", "output"),
        [
            pytest.param({"input_string": "a"}, "a", id="input_string"),
            pytest.param({"prompt": "a"}, "a", id="prompt"),
            pytest.param({"messages": [{"role": "user", "content": "a"}]}, "a", id="messages"),
            pytest.param({"prefix": "a", "suffix": ""}, "a|", id="prefix and suffix"),
            pytest.param({"input_string": "a<FILL_ME>b"}, "a|b", id="the fill marker"),
            pytest.param({"input_string": {"prefix": "a", "suffix": "b"}}, "a|b", id="an infilling item"),
            pytest.param({"input_string": [{"role": "user", "content": "a"}]}, "a", id="a dialog"),
            pytest.param({"input_data": {"input_string": ["a"]}}, "a", id="body 1"),
            pytest.param({"input_data": {"input_string": "a"}}, "a", id="body 2"),
            pytest.param({"input_data": ["a"], "params": {}}, "a", id="body 4"),
            pytest.param({"input_data": {"columns": ["input_string"], "data": [["a"]]}}, "a", id="body 5"),
            pytest.param({"inputs": {"input_string": ["a"]}}, "a", id="MLflow inputs"),
            pytest.param({"instances": ["a"]}, "a", id="MLflow instances"),
            pytest.param({"dataframe_records": [{"input_string": "a"}]}, "a", id="MLflow records"),
            pytest.param({"prompt": "a", "max_tokens": 4}, "a", id="OpenAI completion"),
            pytest.param({"prompt": "a", "suffix": "b"}, "a|b", id="OpenAI infilling"),
            pytest.param({"messages": [{"role": "user", "content": "a"}], "n": 1}, "a", id="OpenAI chat"),
        ],
    )
    def test_every_kind_of_row_is_answered_in_the_same_shape(
        self, tmp_path: Path, echo: Echo, asked: dict[str, object], output: str
    ) -> None:
        (record,) = scored(echo, tmp_path, {**asked, "id": 7})
        usage = {"prompt_tokens": len(output), "completion_tokens": 2, "total_tokens": len(output) + 2}
        assert record == {
            "file": "rows.jsonl",
            "line": 1,
            "id": 7,
            "output": output,
            "finish_reason": "stop",
            "usage": usage,
            "error": None,
            "extra": {},
        }

    def test_several_sequences_are_a_list(self, tmp_path: Path, echo: Echo) -> None:
        (record,) = scored(echo, tmp_path, {"input_string": "ab", "parameters": {"num_return_sequences": 2}})
        assert (record["output"], record["finish_reason"]) == (["ab", "ab"], ["stop", "stop"])
        assert record["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}

    def test_unknown_keys_are_carried_and_ids_may_repeat(self, tmp_path: Path, echo: Echo) -> None:
        records = scored(
            echo,
            tmp_path,
            {"input_string": "a", "id": "x", "team": {"name": "search"}, "n_votes": None},
            {"input_string": "boom", "id": "x", "team": 1},
            {"input_string": "b", "id": ["x"]},
            {"input_string": "c"},
        )
        assert [record["id"] for record in records] == ["x", "x", ["x"], None]
        assert records[0]["extra"] == {"team": {"name": "search"}, "n_votes": None}
        assert [record["extra"] for record in records[1:]] == [{"team": 1}, {}, {}]
        assert [record["line"] for record in records] == [1, 2, 3, 4]

    def test_the_rows_own_parameters_win_over_the_given_ones(self, tmp_path: Path, echo: Echo) -> None:
        rows = [
            {"input_string": "a", "parameters": {"max_new_tokens": 4, "seed": None}},
            {"prompt": "b", "max_tokens": 4, "temperature": 0},
            {"input_string": "c"},
        ]
        scored(echo, tmp_path, *rows, defaults=Parameters(max_new_tokens=64, seed=7, temperature=0.5))
        asked = {cast("Completion", request.inputs[0]).text: request.parameters for request in echo.asked}
        parameters = [asked[prompt] for prompt in "abc"]
        assert [p.max_new_tokens for p in parameters] == [4, 4, 64]
        assert [p.seed for p in parameters] == [7, 7, 7]
        assert [p.temperature for p in parameters] == [0.5, 0, 0.5]

    @pytest.mark.parametrize(
        ("asked", "code", "param"),
        [
            ({"input_string": ""}, "empty_prompt", "input_string"),
            ({"input_string": 5}, "invalid_value", "input_string"),
            ({"input_string": "a", "prompt": "b"}, "competing_fields", None),
            ({"input_string": "a", "messages": [{"role": "user", "content": "a"}]}, "competing_fields", None),
            ({"prefix": "a"}, "missing_field", "suffix"),
            ({"suffix": "a"}, "missing_field", "prefix"),
            ({"prefix": "", "suffix": ""}, "empty_prompt", "prefix"),
            ({"input_string": "a<FILL_ME>b<FILL_ME>"}, "invalid_value", "input_string"),
            ({"messages": [{"role": "assistant", "content": "a"}]}, "invalid_dialog", "messages[0]"),
            ({"input_string": "a", "parameters": {"top_q": 1}}, "unknown_field", "parameters.top_q"),
            ({"input_string": "a", "parameters": {"seed": "1"}}, "invalid_value", "parameters.seed"),
            ({"input_data": ["a", "b"]}, "too_many_prompts", None),
            ({"input_data": []}, "empty_prompt", "input_data"),
            ({"prompt": "a", "tools": [{}]}, "unsupported_field", "tools"),
        ],
    )
    def test_a_bad_row_is_a_record_and_the_rest_goes_on(
        self, tmp_path: Path, echo: Echo, asked: dict[str, object], code: str, param: str | None
    ) -> None:
        before, bad, after = scored(echo, tmp_path, {"prompt": "a"}, {**asked, "id": 7}, {"prompt": "b"})
        assert (before["output"], after["output"]) == ("a", "b")
        assert bad.keys() == KEYS
        assert (bad["line"], bad["id"], bad["extra"]) == (2, 7, {})
        assert (bad["output"], bad["finish_reason"], bad["usage"]) == (None, None, None)
        assert (bad["error"]["code"], bad["error"].get("param")) == (code, param)
        assert bad["error"]["message"].endswith(".")

    @pytest.mark.parametrize("text", ["boom", "bug"])
    def test_a_row_that_fails_in_the_engine_fails_alone(
        self, tmp_path: Path, echo: Echo, caplog: pytest.LogCaptureFixture, text: str
    ) -> None:
        records = scored(echo, tmp_path, {"prompt": "a"}, {"prompt": text, "id": 1}, {"prompt": "b"})
        assert [record["output"] for record in records] == ["a", None, "b"]
        assert records[1]["error"]["code"] == "internal_error"
        assert "could be in here" not in json.dumps(records)
        assert ("ZeroDivisionError" in caplog.text) == (text == "bug")

    def test_an_engine_that_has_died_ends_the_mini_batch(self, tmp_path: Path, echo: Echo) -> None:
        with pytest.raises(Unavailable):
            scored(echo, tmp_path, {"prompt": "a"}, {"prompt": "dead"}, {"prompt": "b"})

    def test_rows_are_the_sum_of_ok_and_errors(
        self, tmp_path: Path, echo: Echo, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "llama_serving")
        scored(echo, tmp_path, {"prompt": "a"}, b"\n", b"{\n", {"prompt": "boom"}, {"prompt": "b"})
        assert caplog.messages[-1] == "rows.jsonl: 4 rows = 2 ok + 2 errors"

    def test_no_prompt_is_logged(self, tmp_path: Path, echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        scored(echo, tmp_path, {"prompt": "my secret"}, b'{"prompt": "my secret"', {"my secret": "my secret"})
        assert "secret" not in caplog.text


class TestOpenAiBatchLines:
    def line(self, prompt: str, **changes: object) -> dict[str, object]:
        asked = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt}}
        return {**asked, **changes}

    def test_answers_come_in_openais_own_shape(self, tmp_path: Path, echo: Echo) -> None:
        chat = {"messages": [{"role": "user", "content": "b"}], "max_tokens": 4}
        first, second = scored(
            echo, tmp_path, self.line("a"), self.line("", url="/v1/chat/completions", body=chat, custom_id="y")
        )
        assert first.keys() == second.keys() == {"id", "custom_id", "response", "error"}
        assert (first["custom_id"], second["custom_id"]) == ("x", "y")
        assert first["id"] != second["id"]
        assert first["response"]["status_code"] == second["response"]["status_code"] == 200
        assert first["response"]["body"]["object"] == "text_completion"
        assert first["response"]["body"]["choices"][0]["text"] == "a"
        assert second["response"]["body"]["choices"][0]["message"] == {"role": "assistant", "content": "b"}
        assert (first["error"], second["error"]) == (None, None)

    @pytest.mark.parametrize(
        ("changes", "status", "code"),
        [
            ({"url": "/v1/embeddings"}, 400, "invalid_value"),
            ({"url": None}, 400, "invalid_value"),
            ({"method": "GET"}, 400, "invalid_value"),
            ({"body": {}}, 400, "missing_field"),
            ({"body": "a"}, 400, "missing_field"),
            ({"body": {"prompt": "a", "max_tokens": 0}}, 400, "invalid_value"),
            ({"body": {"prompt": ["a", "b"]}}, 400, "too_many_prompts"),
            ({"body": {"prompt": "boom"}}, 500, "internal_error"),
        ],
    )
    def test_errors_too(
        self, tmp_path: Path, echo: Echo, changes: dict[str, object], status: int, code: str
    ) -> None:
        bad, after = scored(echo, tmp_path, self.line("a", **changes), self.line("b", custom_id="y"))
        assert bad["custom_id"] == "x"
        assert bad["response"]["status_code"] == status
        assert bad["response"]["body"]["error"]["code"] == code
        assert after["response"]["body"]["choices"][0]["text"] == "b"


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text not in ("boom", "bug", "dead") and "<FILL_ME>" not in text
)
BAD = st.sampled_from([b"{", b"[]", b"5", b"{}", b'{"prompt": ""}', b"\xff", b'{"prompt": "boom"}', b"a\rb"])
BLANK = st.sampled_from([b"", b" ", b"\t", b"\x0b"])
ENDING = st.sampled_from([b"\n", b"\r\n"])
ROW = WORDS.map(lambda text: json.dumps({"prompt": text}, ensure_ascii=False).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


class TestAlignment:
    """As many records as lines that are not blank, in their order, each with its physical number."""

    @settings(deadline=None)
    @given(
        content=st.lists(st.tuples(st.one_of(ROW, ROW, BAD, BLANK), ENDING), max_size=20),
        last=st.one_of(st.just(b""), ROW, BAD),
        bom=st.booleans(),
        packed=st.booleans(),
    )
    def test_json_lines(
        self, folder: Path, content: list[tuple[bytes, bytes]], last: bytes, *, bom: bool, packed: bool
    ) -> None:
        raw = BOM * bom + b"".join(line + ending for line, ending in content) + last
        path = folder / f"rows.jsonl{'.gz' * packed}"
        path.write_bytes(gzip.compress(raw) if packed else raw)
        records = score(Echo(), path)
        numbered = enumerate([*(line for line, _ in content), last], start=1)
        expected = [(number, line) for number, line in numbered if line.strip()]
        assert [record["line"] for record in records] == [number for number, _ in expected]
        for record, (_, line) in zip(records, expected, strict=True):
            assert record.keys() == KEYS
            assert (record["output"] is None) == (record["error"] is not None)
            assert "\n" not in json.dumps(record, ensure_ascii=False)
            if record["error"] is None:
                assert record["output"] == json.loads(line)["prompt"]
            else:
                assert line in BAD.elements

    @settings(deadline=None)
    @given(
        cells=st.lists(st.tuples(WORDS, WORDS), max_size=12),
        # The writer's QUOTE_MINIMAL quotes a bare CR only where its line ends have one.
        style=st.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]),
        bom=st.booleans(),
    )
    def test_csv(
        self, folder: Path, cells: list[tuple[str, str]], style: tuple[str, Any], *, bom: bool
    ) -> None:
        text = io.StringIO(newline="")
        ending, quoting = style
        writer = csv.writer(text, lineterminator=ending, quoting=quoting)
        numbers = []
        for pair in [("team", "input_string"), *cells]:
            numbers.append(text.getvalue().count("\n") + 1)
            writer.writerow(pair)
        path = folder / "rows.csv"
        path.write_bytes(BOM * bom + text.getvalue().encode())
        records = score(Echo(), path)
        assert [record["line"] for record in records] == numbers[1:]
        assert [(record["extra"]["team"], record["output"]) for record in records] == cells


@pytest.mark.parametrize("percent", range(101))
def test_a_share_is_exact(percent: int) -> None:
    limit = Limit(share=Fraction(percent) / 100)
    assert not limit.passed(percent, 100)
    assert limit.passed(percent + 1, 100)
    assert not limit.passed(percent + 1, None)


class TestRunner:
    def test_rows_that_cant_be_read_on_end_it(self, echo: Echo) -> None:
        def torn() -> Iterator[list[Todo]]:
            yield []
            raise OSError(5, "Input/output error")

        with pytest.raises(OSError, match="Input/output"):
            asyncio.run(runner.run(cast("Service", echo), torn(), lambda _: None))

    def test_a_dead_engine_ends_it_and_what_was_done_was_taken(self, tmp_path: Path, echo: Echo) -> None:
        (tmp_path / "rows.jsonl").write_bytes(
            b"".join(row(text) + b"\n" for text in ("longest of all", "dead"))
        )
        taken = list[Entry]()
        rows = todos([InputFile(tmp_path / "rows.jsonl", "r")], Parameters(), LIMIT)
        with pytest.raises(Unavailable):
            asyncio.run(runner.run(cast("Service", echo), windows(rows), taken.append))
        assert [entry.row for entry in taken] == [0]

    def test_a_full_engine_is_asked_again(
        self, tmp_path: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer, refusals = echo.agenerate, [QueueFull("full", retry_after=5)] * 3

        async def answering(asked: Request, *, deadline: float | None) -> Generations:
            if refusals:
                raise refusals.pop()
            return await answer(asked, deadline=deadline)

        monkeypatch.setattr(echo, "agenerate", answering)
        assert [record["output"] for record in scored(echo, tmp_path, {"prompt": "a"}, {"prompt": "b"})] == [
            "a",
            "b",
        ]
        assert not refusals

    def test_rows_wait_for_a_server_that_comes_back(
        self, tmp_path: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer, looks = echo.agenerate, list[bool]()

        async def answering(asked: Request, *, deadline: float | None) -> Generations:
            if not looks:
                echo.stats.away = True
            if echo.stats.away:
                raise Unavailable("The model's server broke off.")
            return await answer(asked, deadline=deadline)

        def stats() -> SimpleNamespace:
            looks.append(echo.stats.away)
            echo.stats.away = len(looks) < 20
            return echo.stats

        monkeypatch.setattr(runner, "SETTLE_S", 0.001)
        monkeypatch.setattr(runner, "AGAIN_S", 0.001)
        monkeypatch.setattr(echo, "agenerate", answering)
        monkeypatch.setattr(echo, "engine", SimpleNamespace(stats=stats))
        records = scored(echo, tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
        assert [record["output"] for record in records] == ["a", "b", "c"]
        assert len(looks) >= 20

    def test_a_row_that_ends_its_server_again_and_again_ends_the_job(
        self, tmp_path: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = list[Request]()

        async def answering(asked: Request, *, deadline: float | None) -> Generations:
            del deadline
            tries.append(asked)
            raise Unavailable("The model's server broke off.")

        monkeypatch.setattr(runner, "SETTLE_S", 0.001)
        monkeypatch.setattr(echo, "agenerate", answering)
        with pytest.raises(Unavailable):
            scored(echo, tmp_path, {"prompt": "a"})
        assert len(tries) == runner.TRIES

    @pytest.mark.parametrize(
        ("seconds", "stats"),
        [
            (0, {"engine": "vllm", "failed_starts": 0}),
            (0, {"engine": "upstream", "failed_starts": 0}),
            (7200, {"engine": "vllm", "failed_starts": runner.MOST_FAILED_STARTS}),
        ],
    )
    def test_a_server_that_stays_away_is_not_waited_for_for_ever(
        self,
        tmp_path: Path,
        echo: Echo,
        monkeypatch: pytest.MonkeyPatch,
        seconds: float,
        stats: dict[str, Any],
    ) -> None:
        async def answering(asked: Request, *, deadline: float | None) -> Generations:
            del asked, deadline
            raise Unavailable("The model's server is away.")

        echo.stats = SimpleNamespace(alive=True, away=True, **stats)
        monkeypatch.setattr(
            echo, "settings", SimpleNamespace(**{**vars(echo.settings), "vllm_start_s": seconds}), raising=False
        )
        monkeypatch.setattr(runner, "AWAY_S", seconds)
        monkeypatch.setattr(echo, "agenerate", answering)
        with pytest.raises(Unavailable, match="away"):
            scored(echo, tmp_path, {"prompt": "a"})
