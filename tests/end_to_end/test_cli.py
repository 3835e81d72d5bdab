"""The installed command, as people run it: a process of its own, in an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.devtools.servers import console_script
from llama_endpoints.nano import FOLDER
from llama_serving.catalog import CATALOG, NANO
from llama_serving.prompts.tokenizer import Tokenizer
from tests.conftest import shared_tokenizer
from tests.support import command

COMMAND = console_script("llama-endpoints")
WEIGHT_BYTES = (FOLDER / "model.safetensors").stat().st_size
INFILL = NANO.infill.value
assert INFILL is not None
TIMEOUT_S = 120
GREEDY = {"do_sample": False, "max_new_tokens": 8}
FULL = {"return_full_text": True, "min_new_tokens": 4}
OPENAI = {"temperature": 0, "max_tokens": 8}
PROMPT = "def add(a, b):\n"
DIALOG = [{"role": "user", "content": "Add two numbers"}]
GAP = {"prefix": "def add(a, b):\n    return ", "suffix": "\n\nadd(1, 2)\n"}

BODIES: dict[str, dict[str, Any]] = {
    "1": {"input_data": {"input_string": [PROMPT, "import "], "parameters": GREEDY}},
    "2": {"input_data": {"input_string": PROMPT, "parameters": GREEDY}},
    "3": {"input_data": {"input_string": DIALOG, "parameters": GREEDY}},
    "4": {"input_data": [PROMPT, "import "], "params": GREEDY},
    "5": {"input_data": {"columns": ["input_string"], "index": [0], "data": [[PROMPT]]}, "params": GREEDY},
    "6": {"input_data": {"input_string": [GAP], "parameters": {**GREEDY, **FULL}}},
    "7": {"inputs": {"input_string": [PROMPT, "import "], "parameters": GREEDY}},
    "7 as rows": {"dataframe_split": {"columns": ["input_string"], "data": [[PROMPT]]}, "params": GREEDY},
    "8 completions": {"model": "any", "prompt": PROMPT, **OPENAI},
    "8 chat": {"model": "any", "messages": DIALOG, **OPENAI},
}
"""A body of each protocol, numbered as the README's table of requests has them."""


GIVE_A_NAME = (
    "Pass --variant with a name from `llama-endpoints models`, or --dialog and --infill for a checkpoint "
    "outside the catalog."
)
NOT_LISTED = (
    "is not in the catalog: `llama-endpoints models` lists it. For a checkpoint outside it, use --dialog and "
    "--infill instead of --variant."
)
ONE_MODEL = "Name a folder with exactly one model that `llama-endpoints package` wrote."
TOO_FAR = "can't be used: nano reads at most 2048 tokens (deployment/llama_endpoints/nano/config.json)."
NO_DTYPE = "can't be used: it must be one of auto, float32, bfloat16, float16."
NO_COUNT = "can't be used: it must be an integer from 1 to 1024."


def process(
    *arguments: str | Path, cwd: Path, stdin: bytes = b"", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """The command as a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        env={**clean, **environment},
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def run(
    *arguments: str | Path, cwd: Path, stdin: bytes = b"", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """The command in this process."""
    return command.run(*arguments, cwd=cwd, stdin=stdin, env=environment)


def score(body: object, model: str | Path, cwd: Path, *options: str, **environment: str) -> Any:
    """What `score` says to a body from standard input."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return run("score", "--model", model, "--request", "-", *options, cwd=cwd, stdin=raw, **environment)


PROCESSES = ("3", "8 chat")
"""Of these the answers are taken from processes; of the others from the same command in this one."""


@pytest.fixture(scope="module")
def answers(nano_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer to each of `BODIES`."""
    empty = tmp_path_factory.mktemp("empty")
    found = {}
    for name, body in BODIES.items():
        how = process if name in PROCESSES else run
        done = how("score", "--model", nano_model, "--request", "-", cwd=empty, stdin=json.dumps(body).encode())
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1), name
        found[name] = json.loads(done.stdout)
    assert list(empty.iterdir()) == []
    return found


class TestScore:
    @pytest.fixture
    def text(self, answers: dict[str, Any]) -> str:
        """The greedy completion of `PROMPT`."""
        text: str = answers["2"][0]["0"]
        assert text
        return text

    def test_the_cards_body_is_answered_in_its_shape(self, answers: dict[str, Any], text: str) -> None:
        rows = answers["1"]
        assert [list(row) for row in rows] == [["0"], ["0"]]
        assert rows[0]["0"] == text
        assert rows[1]["0"] != text

    def test_every_completion_has_the_same_text(self, answers: dict[str, Any], text: str) -> None:
        second = answers["1"][1]["0"]
        assert answers["4"] == [text, second]
        assert answers["5"] == [{"0": text}]
        assert answers["7"] == {"predictions": [{"0": text}, {"0": second}]}
        assert answers["7 as rows"] == {"predictions": [{"0": text}]}
        (choice,) = answers["8 completions"]["choices"]
        assert (choice["text"], choice["index"]) == (text, 0)

    def test_a_dialog_is_answered_with_one_output(self, answers: dict[str, Any]) -> None:
        assert list(answers["3"]) == ["output"]
        (choice,) = answers["8 chat"]["choices"]
        assert choice["message"] == {"role": "assistant", "content": answers["3"]["output"]}
        assert answers["8 chat"]["object"] == "chat.completion"
        assert answers["8 chat"]["model"] == "nano"

    def test_the_middle_comes_with_its_ends_where_asked_for(self, answers: dict[str, Any]) -> None:
        ((key, text),) = answers["6"][0].items()
        assert key == "0"
        assert text.startswith(GAP["prefix"])
        assert text.endswith(GAP["suffix"])
        assert len(text) > len(GAP["prefix"] + GAP["suffix"])

    def test_nano_needs_no_packaging_and_a_file_is_a_request(
        self, answers: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "request.json").write_text(json.dumps(BODIES["2"]))
        done = process("score", "--model", "nano", "--request", "request.json", cwd=tmp_path)
        assert (done.returncode, json.loads(done.stdout)) == (0, answers["2"])

    def test_settings_come_from_flags_before_the_environment(self, tmp_path: Path) -> None:
        body = json.dumps({"input_data": [PROMPT], "params": {"max_new_tokens": 30}}).encode()
        arguments = ["score", "--model", "nano", "--request", "-"]
        for context, flags in (("2048", ["--context", "32"]), ("32", [])):
            done = run(*arguments, *flags, cwd=tmp_path, stdin=body, LLAMA_CONTEXT=context)
            error = json.loads(done.stderr)["error"]
            assert (done.returncode, done.stdout, error["code"]) == (1, "", "context_exceeded")
            assert "maximum context length is 32 " in error["message"]

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            (b"", "invalid_json", None),
            (b'{"input_data": ["a"]', "invalid_json", None),
            (b"[1]", "invalid_json", None),
            ({"input_data": []}, "empty_prompt", "input_data"),
            ({"input_data": ["a", ""]}, "empty_prompt", "input_data[1]"),
            ({"input_data": ["a"], "params": {"top_q": 1}}, "unknown_field", "params.top_q"),
            (
                {"input_data": ["a"], "params": {"seed": 1}, "parameters": {"seed": 1}},
                "competing_fields",
                "params",
            ),
            ({"messages": [{"role": "robot", "content": "a"}]}, "invalid_value", "messages[0].role"),
        ],
    )
    def test_a_refusal_is_the_error_object_and_exit_code_1(
        self, tmp_path: Path, body: object, code: str, param: str | None
    ) -> None:
        done = score(body, "nano", tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        error = json.loads(done.stderr)["error"]
        assert (error["code"], error.get("param")) == (code, param)
        assert error["message"].endswith(".")

    @pytest.mark.parametrize(
        ("arguments", "environment", "sentence"),
        [
            (["--model", "absent"], {}, "absent is not a folder. Name the folder that `llama-endpoints package` wrote."),
            (["--model", "."], {}, f"There is no MLmodel file at or below ., which holds nothing. {ONE_MODEL}"),
            (["--model", "nano", "--context", "9999"], {}, f"LLAMA_CONTEXT=9999 {TOO_FAR}"),
            (["--model", "nano", "--dtype", "int4"], {}, f"LLAMA_DTYPE=int4 {NO_DTYPE}"),
            (["--model", "nano"], {"LLAMA_THREADS": "x"}, f"LLAMA_THREADS=x {NO_COUNT}"),
        ],
    )  # fmt: skip
    def test_a_start_that_cannot_succeed_is_one_sentence_and_exit_code_2(
        self, tmp_path: Path, arguments: list[str], environment: dict[str, str], sentence: str
    ) -> None:
        done = run(
            "score", *arguments, "--request", "-", cwd=tmp_path, stdin=b'{"input_data": ["a"]}', **environment
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {sentence}\n")


class TestPackage:
    def test_nano_needs_no_variant(self, nano_model: Path, tmp_path: Path) -> None:
        done = run("package", "--checkpoint", "nano", "--output", "made/nano", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (
            0,
            f"made/nano is nano as an MLflow model, {WEIGHT_BYTES:,} bytes of weights linked.\n",
        )
        assert files(tmp_path / "made" / "nano") == files(nano_model)

    def test_it_may_be_repeated_beside_its_own_output(self, tmp_path: Path) -> None:
        for extra in ([], ["--overwrite"]):
            done = run("package", "--checkpoint", "nano", "--output", "nano", *extra, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["nano"]

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                ["--checkpoint", "mine"],
                f"Unknown model mine. {GIVE_A_NAME}",
            ),
            (
                ["--checkpoint", "mine", "--variant", "llama"],
                f"llama {NOT_LISTED}",
            ),
            (["--checkpoint", "absent"], "absent is not a folder. Pass the folder of a checkpoint, or nano."),
        ],
    )
    def test_what_is_missing_is_one_sentence(self, tmp_path: Path, arguments: list[str], sentence: str) -> None:
        shutil.copytree(FOLDER, tmp_path / "mine", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        done = run("package", *arguments, "--output", "made/model", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {sentence}\n")
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts
    }


class TestPrompt:
    """Needs a tokenizer, and neither weights nor a config."""

    @pytest.fixture
    def bare(self, tmp_path: Path) -> Path:
        (tmp_path / "bare").mkdir()
        shutil.copyfile(FOLDER / "tokenizer.json", tmp_path / "bare" / "tokenizer.json")
        return tmp_path / "bare"

    def prompts(self, body: object, *arguments: str | Path, cwd: Path) -> list[dict[str, Any]]:
        done = run("prompt", *arguments, "--request", "-", cwd=cwd, stdin=json.dumps(body).encode())
        assert (done.returncode, done.stderr) == (0, "")
        shown: dict[str, Any] = json.loads(done.stdout)
        assert list(shown) == ["prompts"]
        prompts: list[dict[str, Any]] = shown["prompts"]
        assert all(list(prompt) == ["text", "token_ids"] for prompt in prompts)
        return prompts

    def test_a_folder_with_only_a_tokenizer_is_enough(
        self, bare: Path, tmp_path: Path, nano_tokenizer: Tokenizer
    ) -> None:
        prompts = self.prompts(BODIES["1"], "--checkpoint", bare, "--variant", "nano", cwd=tmp_path)
        expected = [
            {"text": text, "token_ids": [1, *nano_tokenizer.encode(text)]} for text in (PROMPT, "import ")
        ]
        assert prompts == expected

    @pytest.mark.parametrize("name", BODIES)
    def test_every_body_is_shown(self, tmp_path: Path, name: str) -> None:
        prompts = self.prompts(BODIES[name], "--checkpoint", "nano", cwd=tmp_path)
        assert len(prompts) == (2 if name in ("1", "4", "7") else 1)

    def test_the_order_of_an_infilling_prompt_can_be_chosen(
        self, bare: Path, tmp_path: Path, nano_tokenizer: Tokenizer
    ) -> None:
        options = ("--checkpoint", bare, "--variant", "nano")
        psm, spm = (
            self.prompts(BODIES["6"], *options, "--infill-order", order, cwd=tmp_path)
            for order in ("psm", "spm")
        )
        before = nano_tokenizer.encode(GAP["prefix"])
        after = nano_tokenizer.encode_continuation(GAP["suffix"])
        assert psm[0]["token_ids"] == [1, INFILL.prefix, *before, INFILL.suffix, *after, INFILL.middle]
        assert spm[0]["token_ids"] == [1, INFILL.prefix, INFILL.suffix, *after, INFILL.middle, *before]
        assert self.prompts(BODIES["6"], *options, cwd=tmp_path) == spm, "the catalog's order of nano"

    def test_a_config_that_is_there_is_believed_and_told(self, bare: Path, tmp_path: Path) -> None:
        config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
        (bare / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
        done = run("prompt", "--checkpoint", bare, "--variant", "nano", "--request", "-", cwd=tmp_path,
                   stdin=json.dumps({"input_data": ["a" * 99]}).encode())  # fmt: skip
        warning, refusal = done.stderr.splitlines()
        assert warning == ("Warning: max_position_embeddings is 16 in config.json, 2048 in the catalog: the "
                           "checkpoint's own value is used.")  # fmt: skip
        assert json.loads(refusal)["error"]["code"] == "context_exceeded"
        assert "maximum context length is 16 " in json.loads(refusal)["error"]["message"]
        assert done.returncode == 1

    def test_outside_the_catalog_the_options_are_those_of_package(self, bare: Path, tmp_path: Path) -> None:
        shutil.copyfile(FOLDER / "config.json", bare / "config.json")
        ids = f"{INFILL.prefix},{INFILL.suffix},{INFILL.middle},{INFILL.eot}"
        options = ("--checkpoint", bare, "--dialog", "inst", "--infill", ids, "--infill-order", "spm")
        for name in ("3", "6"):
            assert self.prompts(BODIES[name], *options, cwd=tmp_path) == self.prompts(
                BODIES[name], "--checkpoint", "nano", cwd=tmp_path
            )

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                [],
                f"Unknown model bare. {GIVE_A_NAME}",
            ),
            (
                ["--variant", "CodeLlama"],
                f"CodeLlama {NOT_LISTED}",
            ),
            (
                ["--dialog", "inst", "--infill", "none"],
                "bare has no config.json, so it is no checkpoint. Name the folder that holds one.",
            ),
            (
                ["--variant", "nano", "--context", "4096"],
                f"LLAMA_CONTEXT=4096 {TOO_FAR}",
            ),
            (
                ["--variant", "meta-llama/Llama-2-7b-hf", "--infill-order", "spm"],
                "meta-llama/Llama-2-7b-hf has no infilling. Remove --infill-order.",
            ),
        ],
    )
    def test_what_cannot_be_shown_is_one_sentence(
        self, bare: Path, arguments: list[str], sentence: str
    ) -> None:
        done = run("prompt", "--checkpoint", "bare", *arguments, "--request", "-", cwd=bare.parent, stdin=b"{}")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {sentence}\n")

    def test_the_real_tokenizer_gives_the_references_dialog(self, tmp_path: Path) -> None:
        folder = shared_tokenizer("codellama-7b")
        dialog = [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "  Sort a list "},
            {"role": "assistant", "content": " sorted(a)\n"},
            {"role": "user", "content": "Reverse it"},
        ]
        (prompt,) = self.prompts(
            {"input_data": {"input_string": dialog}},
            *("--checkpoint", folder, "--variant", "codellama/CodeLlama-7b-Instruct-hf"),
            cwd=tmp_path,
        )
        first = "[INST] <<SYS>>\nBe brief\n<</SYS>>\n\n  Sort a list [/INST] sorted(a) "
        last = "[INST] Reverse it [/INST]"
        encode = Tokenizer.from_folder(folder).encode
        assert prompt == {"text": first + last, "token_ids": [1, *encode(first), 2, 1, *encode(last)]}
        assert encode(first)[:4] == [518, 25580, 29962, 3532]


class TestModels:
    def test_the_table_has_a_line_for_each(self, tmp_path: Path) -> None:
        done = run("models", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        header, *lines = done.stdout.splitlines()
        assert header.split() == ["NAME", "BF16", "GiB", "CONTEXT", "UP", "TO", "DIALOG", "INFILL"]
        cells = {line.split()[0]: line.split()[1:] for line in lines}
        assert list(cells) == list(CATALOG)
        assert cells["codellama/CodeLlama-7b-Instruct-hf"] == [
            *("12.55", "16,384", "100,000", "inst", "yes"),
        ]
        assert cells["meta-llama/Llama-2-70b-hf"] == [
            *("128.48", "4,096", "4,096", "-", "-"),
        ]
        assert cells["codellama/CodeLlama-70b-Instruct-hf"][3:] == ["source", "-"]
        assert all(len(line) <= 80 for line in (header, *lines))

    def test_json_is_one_object_a_line_with_sources(self, tmp_path: Path) -> None:
        done = run("models", "--json", cwd=tmp_path)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert rows == [json.loads(json.dumps(row.to_dict())) for row in CATALOG.values()]
        assert all(row["source"] and row["infill"]["source"] and row["max_context"]["source"] for row in rows)


HEAVY = {"torch", "transformers", "mlflow", "pandas", "azure", "numpy", "tokenizers", "safetensors"}

HELP_OF = """
import json, sys
from llama_endpoints.cli.main import main
try:
    main(json.loads(sys.argv[1]), prog_name="llama-endpoints")
finally:
    print("loaded:", *sorted(set(json.loads(sys.argv[2])) & set(sys.modules)), file=sys.stderr)
"""


class TestHelp:
    @pytest.mark.parametrize(
        ("arguments", "taught"),
        [
            ([], ["Try the embedded model, without a download:\n",
                  "\n    llama-endpoints package --checkpoint nano --output build/nano\n",
                  "\n  models ", "\n  package ", "\n  prompt ", "\n  score ", "LLAMA_CONTEXT"]),
            (["models"], ["--json"]),
            (["package"], ["\n    llama-endpoints package --checkpoint nano --output build/nano\n",
                           "--variant", "[link|copy|reference]", "--overwrite", "OUTPUT is removed", "--dialog"]),
            (["fetch"], ["\n    llama-endpoints fetch --variant codellama/CodeLlama-7b-hf\n", "accept the licence",
                         "--revision", "--token-file", "to resume"]),
            (["score"], ["- for standard input", "exits with code 1", "LLAMA_CONTEXT", "LLAMA_THREADS"]),
            (["prompt"], ["Needs no", "text and token ids", "--variant", "[psm|spm]"]),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help_teaches_and_loads_nothing(
        self, tmp_path: Path, arguments: list[str], taught: list[str], flag: str
    ) -> None:
        listed = (json.dumps([*arguments, flag]), json.dumps(sorted(HEAVY)))
        done = subprocess.run(
            (sys.executable, "-c", HELP_OF, *listed), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "loaded:\n")
        assert done.stdout.startswith(f"Usage: {' '.join(['llama-endpoints', *arguments])} [OPTIONS]")
        for text in taught:
            assert text in done.stdout
        assert "\\b" not in done.stdout
        assert "\b" not in done.stdout

    def test_the_installed_command_is_this_one(self, tmp_path: Path) -> None:
        assert process("--help", cwd=tmp_path).stdout.startswith(
            "Usage: llama-endpoints [OPTIONS] COMMAND [ARGS]...\n"
        )
        assert re.fullmatch(
            r"llama-endpoints 0\.1\.0( \([0-9a-f]{7,}\))?\n", process("--version", cwd=tmp_path).stdout
        )

    @pytest.mark.parametrize(
        "arguments", [["absent"], ["package"], ["score", "--model", "nano", "--request", "no"]]
    )
    def test_wrong_usage_is_exit_code_2_and_points_to_the_help(
        self, tmp_path: Path, arguments: list[str]
    ) -> None:
        done = run(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--help' for help." in done.stderr.replace("-h' for help.", "--help' for help.")
        assert "Traceback" not in done.stderr
