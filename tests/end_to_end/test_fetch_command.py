"""`llama-endpoints fetch` as a real process, from a hub on loopback: killed, stopped, refused, verified."""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support import llamas, quantized
from tests.support.hubs import COMMIT, LATER, FakeHub, Hold, Status, Wrong, fake_hub
from tests.support.tiny import tiny_files

NAME = "codellama/CodeLlama-7b-hf"
FOLDER = "CodeLlama-7b-hf"
TOKEN = "hf_NotARealTokenButASecret"
TIMEOUT_S = 120
WANTED = {
    *("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    *("LICENSE.txt", "model.safetensors.index.json"),
    *(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
}  # fmt: skip
SHARD = "model-00001-of-00003.safetensors"

NOT_LISTED = "is not in the catalog: `llama-endpoints models` lists it."

# The catalog has no model that is small enough for a test: one of its names is given to a small one.
COMMAND = f"""
from dataclasses import replace
from llama_serving import catalog
from tests.support.tiny import TINY
catalog.CATALOG["{NAME}"] = replace(TINY, name="{NAME}")
from llama_endpoints.cli.main import main
main(prog_name="llama-endpoints")
"""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A repository with everything that they have, needed or not."""
    return tiny_files(shards=3) | {
        "README.md": b"a card",
        "LICENSE.txt": b"a licence",
        "special_tokens_map.json": b"{}",
        "pytorch_model.bin": b"a pickle",
        "modeling_llama.py": b"raise SystemExit('remote code')",
        "original/consolidated.00.pth": b"a pickle",
        "onnx/model.safetensors": b"another format's",
    }


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with fake_hub() as started:
        started.publish(NAME, files)
        yield started


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


def environment(hub: FakeHub, desk: Path, **more: str) -> dict[str, str]:
    private = ("HF_", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "HUB_TOKEN_SECRET")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(private)}
    paths = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "deployment"), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": paths, "HF_HOME": str(desk.parent / "hf"), "HF_ENDPOINT": hub.url, "NO_PROXY": "*"}
    return {**inherited, **own, **more}


def start(hub: FakeHub, desk: Path, *options: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (sys.executable, "-c", COMMAND, "fetch", "--variant", NAME, *options),
        cwd=desk,
        env=environment(hub, desk, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(hub: FakeHub, desk: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    with start(hub, desk, *options, **more) as process:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def told(stderr: str) -> list[str]:
    """What stands on standard error beside the progress bar."""
    lines = (line.strip("\x1b[A ") for line in re.split(r"[\r\n]+", stderr))
    return [line for line in lines if line and not line.startswith("files:")]


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    assert callable(condition)
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def parts(desk: Path) -> Mapping[str, int]:
    found = {}
    for path in (desk / FOLDER).glob(".*.part"):
        with suppress(FileNotFoundError):  # whole meanwhile
            found[path.name] = path.stat().st_size
    return found


def test_it_brings_exactly_what_serving_needs(hub: FakeHub, desk: Path, files: dict[str, bytes]) -> None:
    done = run(hub, desk)
    assert done.returncode == 0, done.stderr
    assert told(done.stderr) == []
    assert re.search(r"files: 100%", done.stderr)
    assert {path.name for path in (desk / FOLDER).iterdir()} == {*WANTED, "fetched.json"}
    assert all((desk / FOLDER / name).read_bytes() == files[name] for name in WANTED)
    size = sum(len(files[name]) for name in WANTED)
    first, second = done.stdout.splitlines()
    assert first == f"{FOLDER} holds {NAME} at {COMMIT}: {size:,} bytes verified, {size:,} of them downloaded."
    assert (
        second
        == f"Next: llama-endpoints package --checkpoint {FOLDER} --variant {NAME} --output build/codellama-7b-hf"
    )
    record = json.loads((desk / FOLDER / "fetched.json").read_text())
    assert (record["repo"], record["commit"]) == (NAME, COMMIT)
    assert record["files"].keys() == WANTED
    assert record["files"][SHARD] == {
        "size": len(files[SHARD]),
        "sha256": hashlib.sha256(files[SHARD]).hexdigest(),
    }
    assert record["files"]["config.json"].keys() == {"size", "git_sha1"}
    paths = {f"/api/models/{NAME}", *(f"/{NAME}/resolve/{COMMIT}/{name}" for name in WANTED)}
    assert {asked.path for asked in hub.asked} == paths, "nothing is reported"


def test_the_command_that_it_names_works(hub: FakeHub, desk: Path) -> None:
    words = shlex.split(run(hub, desk).stdout.splitlines()[1].removeprefix("Next: "))
    done = subprocess.run(
        (sys.executable, "-c", COMMAND, *words[1:]),
        cwd=desk,
        env=environment(hub, desk),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (desk / "build/codellama-7b-hf/MLmodel").is_file()


def test_a_second_run_verifies_and_downloads_nothing(hub: FakeHub, desk: Path) -> None:
    run(hub, desk)
    hub.sent.clear()
    done = run(hub, desk)
    assert done.returncode == 0, done.stderr
    assert hub.sent == {}
    assert " bytes verified, 0 of them downloaded." in done.stdout
    assert (desk / FOLDER / "fetched.json").is_file()


def test_what_was_damaged_on_the_disk_is_fetched_again(
    hub: FakeHub, desk: Path, files: dict[str, bytes]
) -> None:
    run(hub, desk)
    hub.sent.clear()
    (desk / FOLDER / SHARD).write_bytes(files[SHARD][:-1] + bytes([files[SHARD][-1] ^ 1]))
    done = run(hub, desk)
    assert done.returncode == 0, done.stderr
    (sentence,) = told(done.stderr)
    assert sentence.startswith(f"{FOLDER}/{SHARD} did not match the checksum of the hub (sha256 ")
    assert hub.sent == {SHARD: len(files[SHARD])}
    assert f" bytes verified, {len(files[SHARD]):,} of them downloaded." in done.stdout
    assert (desk / FOLDER / SHARD).read_bytes() == files[SHARD]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGKILL, -9, id="SIGKILL"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, 1, id="SIGINT"),
    ],
)
def test_an_ended_process_is_gone_on_with(
    hub: FakeHub, desk: Path, files: dict[str, bytes], number: signal.Signals, code: int
) -> None:
    there = 100_000
    hub.faults[SHARD] = [Hold(there), *[Hold(0)] * 20]
    with start(hub, desk, HF_HUB_DOWNLOAD_TIMEOUT="1") as process:
        wait_for(lambda: any(SHARD in name and size == there for name, size in parts(desk).items()), process)
        wait_for(lambda: len(list((desk / FOLDER).glob("*.safetensors"))) == 2, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, stderr
    assert ("run the same command again to resume" in stderr) == (number is signal.SIGINT)
    assert not (desk / FOLDER / "fetched.json").exists()
    hub.go_on.set()
    hub.faults.clear()
    hub.sent.clear()
    hub.asked.clear()
    done = run(hub, desk)
    assert done.returncode == 0, done.stderr
    assert hub.starts(SHARD) == [there]
    assert hub.sent == {SHARD: len(files[SHARD]) - there}
    assert all((desk / FOLDER / name).read_bytes() == files[name] for name in WANTED)
    assert parts(desk) == {}


def test_two_at_a_time_are_refused(hub: FakeHub, desk: Path) -> None:
    hub.faults["config.json"] = [Hold(0)]
    with start(hub, desk) as process:
        wait_for(lambda: hub.starts("config.json"), process)
        done = run(hub, desk)
        process.kill()
        process.communicate()
    assert done.returncode == 2
    assert told(done.stderr) == [
        f"Error: Another process is downloading to {FOLDER}. Wait for it, or use another --output."
    ]


def test_wrong_bytes_are_removed(hub: FakeHub, desk: Path, files: dict[str, bytes]) -> None:
    hub.faults[SHARD] = [Wrong()]
    done = run(hub, desk)
    assert done.returncode == 2
    (sentence,) = told(done.stderr)
    assert sentence.startswith(
        f"Error: {SHARD} did not match the checksum of the hub (sha256 "
        f"{hashlib.sha256(files[SHARD]).hexdigest()}), and was removed."
    )
    assert not (desk / FOLDER / SHARD).exists()
    assert parts(desk).keys() <= {f".{name}.part" for name in ()} or all(
        SHARD not in name for name in parts(desk)
    )
    assert run(hub, desk).returncode == 0


class TestToken:
    @pytest.mark.parametrize("given", ["HF_TOKEN", "file", "login"])
    def test_it_reaches_the_hub_alone_and_is_written_nowhere(
        self, hub: FakeHub, desk: Path, given: str
    ) -> None:
        options: list[str] = []
        more: dict[str, str] = {}
        secret = desk.parent / "hf" / "token" if given == "login" else desk.parent / "secret"
        if given == "HF_TOKEN":
            more["HF_TOKEN"] = TOKEN
        else:
            secret.parent.mkdir(exist_ok=True)
            secret.write_text(f"{TOKEN}\n")
            options = ["--token-file", str(secret)] if given == "file" else []
        done = run(hub, desk, *options, **more)
        assert done.returncode == 0, done.stderr
        tokens = {(asked.where, asked.token) for asked in hub.asked}
        assert tokens == {("hub", f"Bearer {TOKEN}"), ("store", None)}
        assert TOKEN not in done.stdout + done.stderr
        assert not [path for path in desk.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]

    def test_nobody_has_none(self, hub: FakeHub, desk: Path) -> None:
        assert run(hub, desk).returncode == 0
        assert {asked.token for asked in hub.asked} == {None}

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"hf_one\nhf_two", "{} holds no token. A token is one word of letters, digits and signs."),
            (b"", "{} holds no token. A token is one word of letters, digits and signs."),
            (b"\xff\xfe", "Cannot read {} as text. --token-file must be a file with the hub's token."),
            (None, "Cannot read {} as text. --token-file must be a file with the hub's token."),
        ],
    )
    def test_a_file_without_one_is_refused(
        self, hub: FakeHub, desk: Path, content: bytes | None, sentence: str
    ) -> None:
        if content is not None:
            (desk / "secret").write_bytes(content)
        done = run(hub, desk, "--token-file", "secret")
        assert told(done.stderr) == [f"Error: {sentence.format('secret')}"]
        assert hub.asked == []

    def test_a_variable_that_can_not_be_sent_is_not_quoted(self, hub: FakeHub, desk: Path) -> None:
        done = run(hub, desk, HF_TOKEN="hf_geheim\u00e4")
        assert done.returncode == 2
        assert "geheim" not in done.stderr


class TestRefusals:
    def refused(self, hub: FakeHub, desk: Path, *options: str, **more: str) -> str:
        done = run(hub, desk, *options, **more)
        assert (done.returncode, done.stdout) == (2, "")
        (sentence,) = told(done.stderr)
        return sentence.removeprefix("Error: ")

    @pytest.mark.parametrize("code", [401, 403])
    def test_gated(self, hub: FakeHub, desk: Path, code: int) -> None:
        hub.faults["config.json"] = [Status(code, {"X-Error-Code": "GatedRepo"})]
        assert self.refused(hub, desk) == (
            f"{NAME} is gated. Accept its licence on {hub.url}/{NAME}, then set HF_TOKEN to a token of your account, "
            "or run `hf auth login` that has access."
        )

    def test_the_token_may_not_read(self, hub: FakeHub, desk: Path) -> None:
        hub.faults["api"] = [Status(403)]
        assert self.refused(hub, desk).startswith(
            f"The token may not read {NAME} (403). Grant it access, or set HF_TOKEN"
        )

    def test_no_such_repository(self, hub: FakeHub, desk: Path) -> None:
        hub.repos.clear()
        assert self.refused(hub, desk).startswith(
            f"The hub refused {NAME} (401): it does not exist, or the token is missing or wrong."
        )

    def test_no_such_revision(self, hub: FakeHub, desk: Path) -> None:
        assert self.refused(hub, desk, "--revision", "v9/x") == (
            f"{NAME} has no revision v9/x. --revision takes a branch, a tag or a commit."
        )

    def test_no_such_hub(self, hub: FakeHub, desk: Path) -> None:
        assert self.refused(hub, desk, HF_ENDPOINT=f"{hub.url}/elsewhere").startswith(
            f"{hub.url}/elsewhere has no {NAME} at revision main (404). Check HF_ENDPOINT and --revision."
        )

    def test_no_network(self, hub: FakeHub, desk: Path) -> None:
        hub_is = "http://127.0.0.1:9"  # the port of the discard service, where nothing listens
        assert self.refused(hub, desk, HF_ENDPOINT=hub_is) == (
            f"Cannot reach {hub_is}: [Errno 111] Connection refused. Check the network and its proxy (HTTPS_PROXY), "
            "or set another hub in HF_ENDPOINT."
        )

    def test_offline(self, hub: FakeHub, desk: Path) -> None:
        assert self.refused(hub, desk, HF_HUB_OFFLINE="1") == (
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids downloads. Unset it."
        )

    def test_no_address(self, hub: FakeHub, desk: Path) -> None:
        assert self.refused(hub, desk, HF_ENDPOINT="hub.example") == (
            "Invalid hub address hub.example: HF_ENDPOINT must be an http(s) URL."
        )

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("codellama/CodeLlama-7b", f"codellama/CodeLlama-7b {NOT_LISTED} Did you mean {NAME}?"),
            ("nano", "nano is part of this package and needs no download. Use --checkpoint nano."),
        ],
    )
    def test_not_in_the_catalog(self, hub: FakeHub, desk: Path, name: str, sentence: str) -> None:
        assert self.refused(hub, desk, "--variant", name) == sentence
        assert hub.asked == []

    def test_another_commit_is_not_mixed_in(self, hub: FakeHub, desk: Path, files: dict[str, bytes]) -> None:
        run(hub, desk)
        hub.publish(NAME, {**files, "generation_config.json": b'{"other": 1}\n'}, LATER)
        hub.sent.clear()
        assert self.refused(hub, desk) == (
            f"{FOLDER} holds {NAME} at {COMMIT[:12]}, not {NAME} at {LATER[:12]}. Use another --output, add "
            f"--overwrite to replace it, or resume that commit with --revision {COMMIT}."
        )
        assert run(hub, desk, "--revision", COMMIT).returncode == 0
        assert hub.sent == {}
        done = run(hub, desk, "--overwrite")
        assert done.returncode == 0, done.stderr
        assert dict(hub.sent) == {"generation_config.json": 13}
        assert json.loads((desk / FOLDER / "fetched.json").read_text())["commit"] == LATER


def test_a_quantized_checkpoint_comes_from_a_repository_of_its_own(
    hub: FakeHub, desk: Path, tmp_path: Path
) -> None:
    llama = llamas.Llama(ffn=176, vocab=4096, tied=True)
    folder = quantized.write(quantized.gptq(group=-1), tmp_path / "gptq", llama=llama)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = config.pop("quantization_config")
    quantized.write_config(folder, config)
    (folder / "quantize_config.json").write_text(json.dumps(said), encoding="utf-8")
    hub.publish("someone/Model-GPTQ", {path.name: path.read_bytes() for path in folder.iterdir()})
    done = run(hub, desk, "--repo", "someone/Model-GPTQ")
    assert done.returncode == 0, done.stderr
    first, following = done.stdout.splitlines()
    assert first.startswith("Model-GPTQ holds someone/Model-GPTQ at ")
    assert following.startswith(f"Next: llama-endpoints package --checkpoint Model-GPTQ --variant {NAME} ")
    assert (desk / "Model-GPTQ" / "quantize_config.json").read_bytes() == (
        folder / "quantize_config.json"
    ).read_bytes()


@pytest.mark.parametrize("name", ["Model-GPTQ", "../etc/passwd", "a/b/c", "a/../b", "https://hub/a"])
def test_a_repository_that_is_none_is_refused(hub: FakeHub, desk: Path, name: str) -> None:
    done = run(hub, desk, "--repo", name)
    assert done.returncode == 2
    assert told(done.stderr) == [f"Error: Invalid --repo {name}: give a hub repository as OWNER/NAME."]
    assert list(desk.iterdir()) == []
