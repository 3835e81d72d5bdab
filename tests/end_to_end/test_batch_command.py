"""`llama-endpoints batch` for real: killed, stopped, out of disk, changed, and in any case nothing lost."""

import gzip
import json
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.devtools.servers import console_script, environment
from llama_serving.batch.journal import Journal
from tests.support.command import run as in_process

PATIENCE_S = 280
ROWS = 80


def row(number: int) -> dict[str, Any]:
    sampling = {"seed": number} if number % 2 else {"temperature": 0}
    return {"id": number, "prompt": f"def f{number}(x):", "max_tokens": 2 + number % 13, **sampling}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which every tenth is bad."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row(n)) if n % 10 else json.dumps({"id": n, "top_p": 1}) for n in range(ROWS)]
    path.write_text("\n".join(lines))
    return path


def command(rows: Path, output: Path, *more: str) -> list[str]:
    return [
        console_script("llama-endpoints"),
        "batch",
        "--model",
        "nano",
        "--input",
        str(rows),
        "--output",
        str(output),
        *more,
    ]


def batch(rows: Path, output: Path, *more: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The command: in this process, unless something is done to the process."""
    if not options:
        return in_process(*command(rows, output, *more)[1:])
    return subprocess.run(
        command(rows, output, *more), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env=environment({}), **options,
    )  # fmt: skip


def begun(rows: Path, output: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(rows, output, *more), stderr=subprocess.PIPE, text=True, env=environment({})
    )


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def journaled(output: Path) -> int:
    path = output.with_name(output.name + ".journal")
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def until(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def expected(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run gives that nothing disturbs."""
    output = tmp_path_factory.mktemp("expected") / "out.jsonl"
    done = batch(rows, output)
    assert done.returncode == 0, done.stderr
    return output


def test_one_record_for_each_row_in_order(expected: Path) -> None:
    found = records(expected)
    assert [(one["file"], one["line"], one["id"]) for one in found] == [
        ("rows.jsonl", n + 1, n) for n in range(ROWS)
    ]
    assert [one["line"] - 1 for one in found if one["error"]] == list(range(0, ROWS, 10))
    assert all((one["output"] is None) == (one["error"] is not None) for one in found)
    manifest = json.loads(expected.with_name("out.jsonl.manifest.json").read_text())
    assert (manifest["rows"], manifest["counts"]["ok"], manifest["counts"]["errors"]) == (ROWS, 72, 8)
    assert sorted(path.name for path in expected.parent.iterdir()) == ["out.jsonl", "out.jsonl.manifest.json"]


def test_the_same_text_as_the_scoring_command(expected: Path, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    for number in (1, 2, 13):
        request.write_text(json.dumps({key: value for key, value in row(number).items() if key != "id"}))
        scored = in_process("score", "--model", "nano", "--request", request)
        assert json.loads(scored.stdout)["choices"][0]["text"] == records(expected)[number]["output"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_done(
    rows: Path, expected: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "out.jsonl"
    process = begun(rows, output)
    until(lambda: journaled(output) > 5, process)
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert f"{number.name}: " in told
    assert "Traceback" not in told
    kept = journaled(output)
    assert not output.exists()
    done = batch(rows, output)
    assert f"{kept} of them from an earlier run" in done.stderr
    assert output.read_bytes() == expected.read_bytes()


def test_a_second_run_is_refused_and_a_finished_one_is_told(rows: Path, expected: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    job = json.loads(expected.with_name("out.jsonl.manifest.json").read_text())["job"]
    with closing(Journal(output.with_name("out.jsonl.journal"), job)):
        for more in ((), ("--overwrite",)):
            second = batch(rows, output, *more)
            assert (second.returncode, "Another process is writing" in second.stderr) == (2, True)
    assert batch(rows, output).returncode == 0
    assert output.read_bytes() == expected.read_bytes()
    journal = output.with_name("out.jsonl.journal")
    journal.write_text("of a run that was killed when all was in its place")
    again = batch(rows, output)
    assert (again.returncode, "is done already: 80 rows" in again.stderr) == (0, True)
    assert not journal.exists()


def test_what_changed_is_told(rows: Path, expected: Path, tmp_path: Path) -> None:
    output, mine = tmp_path / "out.jsonl", tmp_path / "rows.jsonl"
    mine.write_bytes(rows.read_bytes())
    process = begun(mine, output)
    until(lambda: journaled(output) > 2, process)
    process.kill()
    process.communicate()
    journal = output.with_name("out.jsonl.journal").read_bytes()
    mine.write_bytes(rows.read_bytes() + b"\n{}")
    changed = batch(mine, output)
    assert (changed.returncode, "inputs.rows.jsonl.sha256 was" in changed.stderr) == (2, True)
    mine.write_bytes(rows.read_bytes())
    changed = batch(mine, output, "--parameters", '{"top_k": 3}')
    assert (changed.returncode, "parameters.top_k was null and is 3" in changed.stderr) == (2, True)
    changed = batch(mine, output, "--context", "512")
    assert (changed.returncode, "settings.context was null and is 512" in changed.stderr) == (2, True)
    assert output.with_name("out.jsonl.journal").read_bytes() == journal
    again = batch(mine, output, "--overwrite")  # of the very same job: it is gone on with
    assert (again.returncode, "of them from an earlier run" in again.stderr) == (0, True)
    assert output.read_bytes() == expected.read_bytes()
    assert batch(mine, output, "--overwrite", "--parameters", '{"top_k": 3}').returncode == 0
    assert len(records(output)) == ROWS
    other = batch(mine, output)
    assert (other.returncode, "belongs to another job" in other.stderr) == (2, True)


def test_a_disk_that_is_full_keeps_what_is_done(rows: Path, expected: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    full = batch(rows, output, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)))
    assert (full.returncode, "File too large" in full.stderr, "Traceback" in full.stderr) == (2, True, False)
    assert journaled(output) < ROWS
    assert batch(rows, output).returncode == 0
    assert output.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(("limit", "stops"), [("5%", True), ("8", False), ("10%", False)])
def test_too_many_errors(rows: Path, tmp_path: Path, limit: str, stops: bool) -> None:
    output = tmp_path / "out.jsonl"
    done = batch(rows, output, "--max-errors", limit)
    assert done.returncode == int(stops), done.stderr
    assert output.exists() != stops
    if stops:
        assert "more than --max-errors allows" in done.stderr
        assert output.with_name("out.jsonl.journal").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--max-errors", "many"), "give a count such as 10, or a share"),
        (("--max-errors", "101%"), "give a count such as 10, or a share"),
        (("--parameters", "{"), "--parameters: "),
        (("--parameters", '{"top_p": 7}'), "--parameters: `top_p` must be"),
        (("--parameters", '{"topp": 1}'), "top_p"),
        (("--input", "nowhere.jsonl"), "nowhere.jsonl is not a file"),
        (("--concurrency", "0"), "LLAMA_MAX_NUM_SEQS"),
    ],
)
def test_what_cant_begin_is_a_sentence(rows: Path, tmp_path: Path, more: tuple[str, ...], says: str) -> None:
    done = batch(rows, tmp_path / "out.jsonl", *more)
    assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_checks_every_row_and_makes_nothing(rows: Path, expected: Path, tmp_path: Path) -> None:
    done = batch(rows, tmp_path / "out.jsonl", "--dry-run", "--max-errors", "8")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    used = [one["usage"] for one in records(expected) if one["usage"]]
    assert (told["rows"], told["errors"]) == (ROWS, 8)
    assert told["prompt_tokens"] == sum(one["prompt_tokens"] for one in used)
    assert told["new_tokens_at_most"] == sum(2 + n % 13 for n in range(ROWS) if n % 10)
    assert told["seconds_about"] > 0
    assert done.stderr.count("rows.jsonl:") == 8
    assert "rows.jsonl:21: The row has no prompt" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert batch(rows, tmp_path / "out.jsonl", "--dry-run", "--max-errors", "7").returncode == 1


def test_a_dry_run_refuses_what_the_run_refuses(tmp_path: Path) -> None:
    asked = [{"max_new_tokens": 100_000}, {"do_sample": False, "num_return_sequences": 4}, {"max_new_tokens": 5},
             {"max_new_tokens": 2, "min_new_tokens": 5}, {"num_return_sequences": 3, "max_new_tokens": 7, "seed": 1}]  # fmt: skip
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "a", "parameters": one}) + "\n" for one in asked))
    told = json.loads(batch(rows, output, "--dry-run").stdout)
    assert (told["rows"], told["errors"], told["new_tokens_at_most"]) == (5, 3, 5 + 3 * 7)
    assert batch(rows, output).returncode == 0
    assert [one["error"] is None for one in records(output)] == [False, False, True, False, True]


def test_parameters_for_all_rows_and_a_rows_own_win(tmp_path: Path) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    own = {"prefix": "def f(", "suffix": "\n", "parameters": {"max_new_tokens": 2}}
    rows.write_text(f"{json.dumps({'input_string': 'x = '})}\n\n{json.dumps(own)}\n")
    parameters = '{"max_new_tokens": 5, "ignore_eos": true, "do_sample": false}'
    assert batch(rows, output, "--parameters", parameters).returncode == 0
    assert [(one["line"], one["usage"]["completion_tokens"]) for one in records(output)] == [(1, 5), (3, 2)]


def test_openai_batch_files_have_their_errors_apart(tmp_path: Path) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    asked = [{"prompt": "a", "max_tokens": 2}, {"prompt": "a", "top_p": 7}, {"prompt": "b", "max_tokens": 2}]
    rows.write_text("".join(
        json.dumps({"custom_id": f"n{n}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n"
        for n, body in enumerate(asked)
    ))  # fmt: skip
    done = batch(rows, output)
    assert "3 rows = 2 ok + 1 errors" in done.stderr
    assert [one["custom_id"] for one in records(output)] == ["n0", "n2"]
    assert all(one["response"]["status_code"] == 200 for one in records(output))
    (failed,) = records(tmp_path / "out.errors.jsonl")
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("n1", 400)


def test_many_inputs_in_their_order(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out.jsonl"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x.jsonl").write_text('{"prompt": "a", "max_tokens": 1}\n')
    (folder / "x.csv").write_text("id,input_string\n7,b\n")
    (folder / "empty.jsonl").write_text("")
    assert batch(folder, output, "--parameters", '{"max_new_tokens": 1}').returncode == 0
    assert [(one["file"], one["line"], one["id"]) for one in records(output)] == [
        ("b/x.jsonl", 1, None), ("x.csv", 2, "7")]  # fmt: skip


def test_nothing_at_all_is_done_at_once(tmp_path: Path) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("\n\n")
    assert batch(rows, output).returncode == 0
    assert output.read_bytes() == b""


def test_overwrite_takes_nothing_away_before_all_is_checked(rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for name in ("out.jsonl", "out.jsonl.manifest.json", "out.errors.jsonl"):
        (tmp_path / name).write_text("yesterday's")
    for more in (("--dry-run",), ("--parameters", "{"), ("--max-errors", "many"), ("--input", "nowhere.jsonl")):
        assert batch(rows, output, "--overwrite", *more).returncode == (0 if more == ("--dry-run",) else 2)
    onto_itself = batch(output, output, "--overwrite")
    assert (onto_itself.returncode, "--output would overwrite it" in onto_itself.stderr) == (2, True)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"yesterday's"}
    output.unlink()
    stray = batch(rows, output)
    assert (stray.returncode, "out.errors.jsonl exists already" in stray.stderr) == (2, True)


def test_whatever_is_in_a_file_each_line_has_its_record(tmp_path: Path) -> None:
    folder, output = tmp_path / "rows", tmp_path / "out.jsonl"
    folder.mkdir()

    def line(prompt: str, **more: Any) -> bytes:
        return json.dumps(
            {"prompt": prompt, "max_tokens": 1, "temperature": 0, **more}, ensure_ascii=False
        ).encode()

    good = line("a = 1")
    files = {
        "bom-crlf.jsonl": b"\xef\xbb\xbf" + b"\r\n".join([good, b"", good]),
        "empty.jsonl": b"",
        "ids.jsonl": b"\n".join([line("b", id=7), line("c", id=7)]),
        "latin-1.jsonl": b"\n".join([good, '{"prompt": "é"}'.encode("latin-1"), good]),
        "long.jsonl": b'{"prompt": "' + b"x" * 50_000_000 + b'"}\n' + good,
        "separators.jsonl": line("a\u2028b\u2029c\x85d") + b"\n" + good,
        "zz-bomb.jsonl.gz": gzip.compress(good + b"\n" + b" " * 300_000_000 + b"\n" + good, 1),
        "zz-torn.jsonl.gz": gzip.compress(b"\n".join(line(f"x{n}") for n in range(300)))[:200],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = batch(folder, output)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[tuple[int, str | None]]] = {}
    for one in records(output):
        found.setdefault(one["file"], []).append((one["line"], one["error"] and one["error"]["code"]))
    torn = found.pop("zz-torn.jsonl.gz")
    assert torn[-1][1] == "unreadable_file"
    assert [code for _, code in torn[:-1]] == [None] * (len(torn) - 1)
    assert found == {
        "bom-crlf.jsonl": [(1, None), (3, None)],
        "ids.jsonl": [(1, None), (2, None)],
        "latin-1.jsonl": [(1, None), (2, "invalid_json"), (3, None)],
        "long.jsonl": [(1, "body_too_large"), (2, None)],
        "separators.jsonl": [(1, None), (2, None)],
        "zz-bomb.jsonl.gz": [(1, None), (2, "body_too_large"), (3, None)],
    }
    assert [one["id"] for one in records(output) if one["file"] == "ids.jsonl"] == [7, 7]


def test_a_file_that_cant_be_read_is_told(tmp_path: Path) -> None:
    done = batch(Path("/proc/self/mem"), tmp_path / "out.jsonl")  # (a regular file, and an error to read)
    assert (done.returncode, "/proc/self/mem can't be read: Input/output error" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_an_output_among_the_inputs_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 1, "temperature": 0}\n')
    output = tmp_path / "out.jsonl"
    assert batch(tmp_path, output).returncode == 0
    again = batch(tmp_path, output)
    assert (again.returncode, "is done already: 1 rows" in again.stderr) == (0, True)


def test_ids_that_no_model_has_are_a_bad_row(tmp_path: Path) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": [1, 2000000], "max_tokens": 1}\n{"prompt": [1], "max_tokens": 1}\n')
    assert batch(rows, output).returncode == 0
    assert [one["error"] is None for one in records(output)] == [False, True]
