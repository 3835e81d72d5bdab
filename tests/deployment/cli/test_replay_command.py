"""`llama-endpoints replay`: a receipt or a job's records in, identical or what differs out, and the exit code."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from llama_endpoints.replay.claims import claims
from tests.support.command import Done, run
from tests.support.receipts import BODIES, CHAT, PROMPT, SAMPLED, with_receipt

GIVEN: Final = {"max_new_tokens": 5, "temperature": 1.2}
ROWS: Final[list[dict[str, Any]]] = [
    {"input_string": PROMPT, "id": 1, "note": {"receipt": "R-123"}},
    {"messages": CHAT, "temperature": 1.1, "max_tokens": 4, "n": 2},
    {"prefix": "def f(", "suffix": "):", "parameters": {"seed": 5, "top_k": 3}},
    {"input_string": "", "id": "a bad row"},
    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", **SAMPLED}},
]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a request and of its answer."""
    folder = tmp_path_factory.mktemp("answer")
    request, made = folder / "request.json", folder / "answer.json"
    request.write_text(json.dumps(with_receipt(BODIES["score"][1])), encoding="utf-8")
    done = run("score", "--model", "nano", "--request", request)
    made.write_text(done.stdout, encoding="utf-8")
    return request, made


def replay(path: Path, *arguments: str | Path, **env: str) -> Done:
    return run("replay", path, "--model", "nano", *arguments, env=env)


def test_an_answer_is_identical(answer: tuple[Path, Path]) -> None:
    request, made = answer
    done = replay(made, "--request", request)
    assert done.returncode == 0, done.stderr
    names = [f"prompt {prompt}, sequence {index}: identical" for prompt in range(3) for index in range(2)]
    assert done.stdout.splitlines() == names


def test_a_receipt_alone_says_what_differs(answer: tuple[Path, Path], tmp_path: Path) -> None:
    request, made = answer
    receipt = dict(claims(json.loads(made.read_text(encoding="utf-8")))[3].receipt)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps({**receipt, "version": "0.0.1"}), encoding="utf-8")
    done = replay(path, "--request", request, "--json")
    assert done.returncode == 0
    (one,) = json.loads(done.stdout)["receipts"]
    assert one["identical"]
    assert one["name"] == "prompt 1, sequence 1"
    assert [each["what"] for each in one["environment"]] == ["version"]
    path.write_text(json.dumps({**receipt, "seed": receipt["seed"] ^ 1}), encoding="utf-8")
    done = replay(path, "--request", request)
    assert done.returncode == 1
    assert done.stdout.startswith("prompt 1, sequence 1: different\n  output.ids_sha256: ")


def test_the_receipt_decides_how_it_is_computed(answer: tuple[Path, Path], tmp_path: Path) -> None:
    request, made = answer
    receipt = dict(claims(json.loads(made.read_text(encoding="utf-8")))[0].receipt)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps({**receipt, "engine": {**receipt["engine"], "context": 300}}), encoding="utf-8")
    done = replay(path, "--request", request)
    assert (done.returncode, done.stdout) == (0, "prompt 0, sequence 0: identical\n")
    done = replay(path, "--request", request, "--context", "400", LLAMA_CONTEXT="200")
    assert done.returncode == 0
    assert "engine.context: 300 in the receipt, 400 here" in done.stdout


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{}", "There is no receipt in the document"),
        ("{", "can't be read as JSON"),
        ("data: [DONE]", "Its server-sent events have no data"),
        ('{"receipt": {"format": 2}}', "The receipt is not valid. `reproducible` is missing"),
    ],
)
def test_what_is_no_receipt_is_refused(
    answer: tuple[Path, Path], tmp_path: Path, given: str, says: str
) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(given, encoding="utf-8")
    done = replay(path, "--request", answer[0])
    assert done.returncode == 2
    assert says in done.stderr


def test_a_request_that_is_not_valid_is_refused(answer: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{"input_data": ["x"], "params": {"top_p": 7}}', encoding="utf-8")
    done = replay(answer[1], "--request", path)
    assert done.returncode == 2
    assert "--request is not valid as a body of azure. `params.top_p` must be" in done.stderr
    path.write_text('{"input_data": ["x"]}', encoding="utf-8")
    done = replay(answer[1], "--request", path)
    assert done.returncode == 2
    assert "The receipt is of prompt 1, from 0, and the request has 1" in done.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("--request", "-", "--input", "x"), ("--request", "-", "--rows", "2")]
)
def test_what_does_not_go_together_is_refused(answer: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    assert replay(answer[1], *arguments).returncode == 2


# --- records --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job: `rows.jsonl`, `out.jsonl` and its manifest."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    batch(folder, {**GIVEN, "receipt": True}, "out.jsonl")
    return folder


def batch(folder: Path, parameters: dict[str, Any], name: str) -> None:
    done = run(
        *("batch", "--model", "nano", "--input", folder / "rows.jsonl", "--output", folder / name),
        *("--parameters", json.dumps(parameters)),
    )
    assert done.returncode == 0, done.stderr


def test_the_manifest_says_what_receipts_share(job: Path) -> None:
    manifest = json.loads((job / "out.jsonl.manifest.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (job / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    for claim in claims(records):
        assert {name: claim.receipt[name] for name in manifest["receipt"]} == manifest["receipt"]
    assert len(claims(records)) == 5


def test_records_are_identical(job: Path) -> None:
    done = replay(job / "out.jsonl.manifest.json", "--input", job / "rows.jsonl")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout == "4 rows = 4 identical + 0 different + 0 not replayed\n"


def test_some_rows_are_chosen(job: Path) -> None:
    done = replay(job / "out.jsonl", "--input", job / "rows.jsonl", "--rows", "2", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert (told["rows"], told["identical"]) == (2, 2)


def test_a_changed_record_is_found(job: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (job / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[2]["output"] = "☺" + lines[2]["output"]
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = replay(changed, "--input", job / "rows.jsonl", "--parameters", json.dumps(GIVEN))
    assert done.returncode == 1
    assert "rows.jsonl:3, prompt 0, sequence 0: different\n" in done.stdout
    assert "first difference: character 0, token 0" in done.stdout
    assert done.stdout.endswith("4 rows = 3 identical + 1 different + 0 not replayed\n")


def test_another_input_and_another_model_are_told(job: Path, tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.jsonl.manifest.json"):
        (tmp_path / name).write_bytes((job / name).read_bytes())
    (tmp_path / "rows.jsonl").write_bytes((job / "rows.jsonl").read_bytes() + b"\n")
    path = tmp_path / "out.jsonl.manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["receipt"]["model"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest), encoding="utf-8")
    done = replay(path, "--input", tmp_path / "rows.jsonl", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert [one["what"] for one in told["job"]["differences"]] == ["input rows.jsonl", "model.sha256"]
    assert told["identical"] == 4


def test_rows_without_receipts_need_seeds(job: Path) -> None:
    batch(job, GIVEN, "plain.jsonl")
    done = replay(job / "plain.jsonl", "--input", job / "rows.jsonl")
    assert done.returncode == 0
    assert "rows.jsonl:1: not replayed: it was sampled without a seed, and has no receipt\n" in done.stdout
    assert done.stdout.endswith("4 rows = 1 identical + 0 different + 3 not replayed\n")
    batch(job, {**GIVEN, "seed": 4}, "other.jsonl")
    done = replay(
        job / "other.jsonl", "--input", job / "rows.jsonl", "--parameters", json.dumps({**GIVEN, "seed": 3})
    )
    assert done.returncode == 1
    assert "first difference: character " in done.stdout
    assert "rows.jsonl:3" not in done.stdout, "it has a seed of its own"
    assert done.stdout.endswith(" + 0 not replayed\n")


@pytest.mark.parametrize(
    "line", ['{"a": 1}', "[]", "{", '{"response": {"body": 5}}', '{"output": "x", "receipt": {}}']
)
def test_what_is_no_record_is_refused(job: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(
        f'{line[:-1]}, "file": "rows.jsonl", "line": 1}}\n' if "output" in line else f"{line}\n",
        encoding="utf-8",
    )
    done = replay(path, "--input", job / "rows.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")


def test_records_of_other_inputs_are_refused(job: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"input_string": "x"}\n', encoding="utf-8")
    done = replay(job / "out.jsonl", "--input", other)
    assert done.returncode == 2
    assert "has no valid row in the inputs" in done.stderr
