"""A hub that misbehaves: what is fetched is right in the end, or a sentence says why not, and no byte comes twice."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from llama_endpoints.download.fetch import Fetched, fetch, look_up
from llama_endpoints.download.hub import Hub, Repository
from llama_endpoints.download.hub_snapshot import FETCHED, FETCHING
from llama_endpoints.download.transfer import Download
from llama_serving.catalog import ModelVariant
from llama_serving.errors import SetupError
from tests.conftest import ROOT
from tests.support.hubs import (
    COMMIT,
    LATER,
    BreakOff,
    FakeHub,
    Fault,
    Hold,
    NoRanges,
    OtherRange,
    Status,
    fake_hub,
)
from tests.support.tiny import TINY, tiny_config, tiny_files

NAME = "codellama/CodeLlama-7b-hf"
ROW = replace(TINY, name=NAME)
WEIGHTS = "model.safetensors"
FILES = tiny_files()
SIZE = len(FILES[WEIGHTS])


@pytest.fixture(autouse=True)
def reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hub.quiet` does, where the library may be imported already."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as started:
        started.publish(NAME, FILES)
        yield started


@dataclass
class Watched:
    """A call of `fetch`, and what it told."""

    hub: FakeHub
    folder: Path
    row: ModelVariant = ROW
    said: list[str] = field(default_factory=list)
    total: int = 0
    seen: int = 0

    def expect(self, size: int) -> None:
        self.total += size

    def progress(self, size: int) -> None:
        self.seen += size

    def __call__(self, *, overwrite: bool = False) -> Fetched:
        self.total = self.seen = 0
        source, pauses = Hub(endpoint=self.hub.url), (0, 0, 0)
        snapshot = look_up(source, self.row.name, tell=self.said.append, pauses=pauses)
        download = Download(
            Repository(source, snapshot),
            self.folder,
            progress=self.progress,
            tell=self.said.append,
            pauses=pauses,
        )
        return fetch(download, snapshot, self.row, overwrite=overwrite, expect=self.expect)

    def refused(self) -> str:
        with pytest.raises(SetupError) as error:
            self()
        assert not (self.folder / FETCHED).exists()
        return str(error.value)


@pytest.fixture
def fetched(hub: FakeHub, tmp_path: Path) -> Watched:
    return Watched(hub, tmp_path / "model")


def is_right(folder: Path, files: Mapping[str, bytes] = FILES) -> bool:
    there = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != FETCHED}
    return (folder / FETCHED).is_file() and there == files


@pytest.mark.parametrize(
    ("faults", "starts"),
    [
        pytest.param([BreakOff(1000)], [0, 1000], id="breaks off"),
        pytest.param([BreakOff(1000), BreakOff(1), BreakOff(99)], [0, 1000, 1001, 1100], id="again and again"),
        pytest.param([BreakOff(0)], [0, 0], id="breaks off at once"),
        pytest.param([Status(503)], [0, 0], id="503"),
        pytest.param([BreakOff(1000), Status(500), Status(502)], [0, 1000, 1000, 1000], id="other 5xx in the middle"),
        pytest.param([BreakOff(1000), NoRanges()], [0, 1000], id="ignores the range"),
        pytest.param([BreakOff(1000), OtherRange()], [0, 1000, 1000], id="another range"),
    ],
)  # fmt: skip
def test_it_goes_on_where_it_ended(
    hub: FakeHub, fetched: Watched, faults: list[Fault], starts: list[int]
) -> None:
    hub.faults[WEIGHTS] = list(faults)
    done = fetched()
    assert is_right(fetched.folder)
    assert hub.starts(WEIGHTS) == starts
    assert len(fetched.said) == len([fault for fault in faults if not isinstance(fault, NoRanges)])
    if not any(
        isinstance(fault, OtherRange) for fault in faults
    ):  # (of that answer some bytes are on their way, unread)
        assert done.downloaded == sum(hub.sent.values())
    assert fetched.seen == fetched.total == sum(map(len, FILES.values()))
    if not any(isinstance(fault, NoRanges | OtherRange) for fault in faults):
        assert hub.sent[WEIGHTS] == SIZE, "no byte was sent twice"


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "1"}, {"RateLimit": '"api";r=0;t=1'}],
    ids=["Retry-After", "the hub's own headers"],
)
@pytest.mark.parametrize(("name", "what"), [("api", NAME), (WEIGHTS, WEIGHTS), ("config.json", "config.json")])
def test_it_waits_as_long_as_the_hub_asks(
    hub: FakeHub, fetched: Watched, name: str, what: str, headers: dict[str, str]
) -> None:
    hub.faults[name] = [Status(429, headers)]
    fetched()
    assert fetched.said == [f"{what}: the hub answered 429; retrying in 1 s."]
    assert is_right(fetched.folder)


def test_a_connection_that_stands_still_is_left(
    hub: FakeHub, fetched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.faults[WEIGHTS] = [Hold(1000)]
    fetched()
    assert is_right(fetched.folder)
    assert hub.starts(WEIGHTS)[:2] == [0, 1000]
    assert hub.sent[WEIGHTS] == SIZE
    assert "timed out" in fetched.said[0]


def test_it_gives_up_and_is_gone_on_with(hub: FakeHub, fetched: Watched) -> None:
    hub.faults[WEIGHTS] = [BreakOff(1000), *[Status(503)] * 4]
    assert fetched.refused() == (
        f"Cannot download {WEIGHTS}: the hub answered 503, 4 times in a row. Progress is kept: run the same command again "
        "to resume."
    )
    assert (fetched.folder / FETCHING).is_file()
    done = fetched()
    assert hub.starts(WEIGHTS)[-1] == 1000
    assert hub.sent[WEIGHTS] == SIZE
    assert done.downloaded == SIZE - 1000
    assert fetched.seen == fetched.total
    assert is_right(fetched.folder)


def test_what_is_no_hub(hub: FakeHub, fetched: Watched) -> None:
    hub.faults["api"] = [Status(200)]
    assert fetched.refused() == f"{hub.url} does not answer like a hub. Check HF_ENDPOINT."


def test_a_hub_that_does_not_say_what_it_has(hub: FakeHub, fetched: Watched) -> None:
    hub.faults["api"] = [Status(503)] * 4
    assert fetched.refused() == (
        f"{hub.url} does not list the files of {NAME}: the hub answered 503. Try again later."
    )
    assert not fetched.folder.exists()


@pytest.mark.parametrize(
    "content", [b"x" * SIZE, b"x" * (SIZE + 1), FILES[WEIGHTS] + b"x"], ids=["full", "long", "more"]
)
def test_a_part_that_is_of_no_use(hub: FakeHub, fetched: Watched, content: bytes) -> None:
    hub.faults[WEIGHTS] = [Status(503)] * 4
    fetched.refused()
    (part,) = fetched.folder.glob(".*.part")
    part.write_bytes(content)
    if len(content) == SIZE:
        assert "did not match the checksum" in fetched.refused()
    fetched()
    assert is_right(fetched.folder)


class TestFolder:
    def test_what_is_right_is_taken_as_it_is(self, hub: FakeHub, fetched: Watched) -> None:
        fetched.folder.mkdir()
        for name, content in FILES.items():
            (fetched.folder / name).write_bytes(content)
        assert fetched().downloaded == 0
        assert hub.sent == {}
        assert fetched.seen == fetched.total
        assert is_right(fetched.folder)

    def test_what_is_somebody_elses_stays(self, hub: FakeHub, fetched: Watched) -> None:
        fetched.folder.mkdir()
        (fetched.folder / "config.json").write_text("{}")
        assert fetched.refused().startswith(
            f"{fetched.folder}/config.json exists and does not match the checksum of the hub (git's sha1 "
        )
        assert (fetched.folder / "config.json").read_text() == "{}"

    def test_unless_it_may_be_overwritten(self, fetched: Watched) -> None:
        fetched.folder.mkdir()
        (fetched.folder / "config.json").write_text("{}")
        fetched(overwrite=True)
        assert is_right(fetched.folder)

    def test_other_weights_beside_them_are_refused(self, hub: FakeHub, fetched: Watched) -> None:
        fetched.folder.mkdir()
        (fetched.folder / "model-00001-of-00002.safetensors").write_bytes(b"")
        assert fetched.refused() == (
            f"{fetched.folder} also has model-00001-of-00002.safetensors, which {NAME} at {COMMIT[:12]} does not. Remove "
            "these files, or use another --output."
        )
        assert hub.sent == {}

    def test_overwrite_leaves_nothing_of_the_other_commit(self, hub: FakeHub, fetched: Watched) -> None:
        fetched()
        sharded = tiny_files(shards=2, seed=1)
        hub.publish(NAME, sharded, LATER)
        hub.faults["model-00002-of-00002.safetensors"] = [BreakOff(10), *[Status(503)] * 4]
        with pytest.raises(
            SetupError, match="Use another --output, add --overwrite to replace it, or resume that"
        ):
            fetched()
        with pytest.raises(SetupError, match="Cannot download"):
            fetched(overwrite=True)
        fetched()  # (a broken-off --overwrite has begun: the folder is the new commit's)
        assert is_right(fetched.folder, sharded)

    def test_a_part_of_another_commit_goes(self, hub: FakeHub, fetched: Watched) -> None:
        hub.faults[WEIGHTS] = [BreakOff(10), *[Status(503)] * 4]
        fetched.refused()
        other = tiny_files(seed=1)
        hub.publish(NAME, other, LATER)
        fetched(overwrite=True)
        assert is_right(fetched.folder, other)

    def test_another_model_is_not_mixed_in(self, hub: FakeHub, fetched: Watched) -> None:
        fetched()
        other = replace(ROW, name="codellama/CodeLlama-7b-Python-hf")
        hub.publish(other.name, tiny_files(seed=1))
        with pytest.raises(SetupError) as error:
            Watched(hub, fetched.folder, other)()
        assert str(error.value).endswith("Use another --output, add --overwrite to replace it.")
        Watched(hub, fetched.folder, other)(overwrite=True)
        assert is_right(fetched.folder, tiny_files(seed=1))

    def test_a_damaged_record(self, fetched: Watched) -> None:
        fetched()
        (fetched.folder / FETCHED).write_text("{}")
        with pytest.raises(SetupError, match=r"fetched.json is damaged"):
            fetched()

    def test_a_disk_without_room_is_known_before(self, hub: FakeHub, tmp_path: Path) -> None:
        if shutil.which("unshare") is None:
            pytest.skip("a full disk needs Linux's unshare, which is not here")
        code = (
            "import sys; from pathlib import Path; from tests.end_to_end.test_fetch_faults import *\n"
            "constants.HF_HUB_DISABLE_TELEMETRY = True\n"
            f"hub = FakeHub(url={hub.url!r})\n"
            "print(Watched(hub, Path(sys.argv[1]) / 'model').refused())"
        )
        script = 'mount -t tmpfs -o size=400k tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
        done = subprocess.run(
            ("unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"a disk of our own needs root: {done.stderr.strip()}")
        assert f"bytes free, but {SIZE:,} are needed. Free some space, or use an --output" in done.stdout
        assert hub.starts(WEIGHTS) == []


class TestRepository:
    @pytest.mark.parametrize(
        ("files", "sentence"),
        [
            pytest.param(
                {"config.json": b"{}", "pytorch_model.bin": b"-"},
                f"{NAME} at {COMMIT[:12]} has no tokenizer.json, which serving needs. Try another --revision.",
                id="no tokenizer",
            ),
            pytest.param(
                {**FILES, WEIGHTS: b"", "model.safetensors.index.json": b"{}"},
                f"The hub returned no size and checksum for {WEIGHTS} of {NAME}, so it cannot be verified. HF_ENDPOINT must be "
                "a hub that returns them.",
                id="an empty file",
            ),
            pytest.param(
                {name: content for name, content in FILES.items() if name != WEIGHTS},
                f"{NAME} at {COMMIT[:12]} has no safetensors weights. Try a --revision that has them.",
                id="no weights",
            ),
            pytest.param(
                {**{name: content for name, content in FILES.items() if name != WEIGHTS}, "pytorch_model.bin": b"-"},
                f"{NAME} at {COMMIT[:12]} has no safetensors weights except as pickles (pytorch_model.bin), and loading a "
                "pickle runs whatever code is in it. Try a --revision that has them.",
                id="pickles",
            ),
            pytest.param(
                {
                    name: content
                    for name, content in tiny_files(shards=2).items()
                    if name != "model-00002-of-00002.safetensors"
                },
                f"{NAME} at {COMMIT[:12]} lacks model-00002-of-00002.safetensors, which its index lists. Try another "
                "--revision.",
                id="a shard is missing",
            ),
        ],
    )  # fmt: skip
    def test_can_not_be_served(
        self, hub: FakeHub, fetched: Watched, files: dict[str, bytes], sentence: str
    ) -> None:
        hub.publish(NAME, files)
        assert fetched.refused() == sentence
        assert hub.starts(WEIGHTS) == []

    def test_without_checksums(self, hub: FakeHub, fetched: Watched) -> None:
        hub.states_sizes = False
        assert "The hub returned no size and checksum for" in fetched.refused()

    def test_another_model_is_noticed_before_its_weights_come(self, hub: FakeHub, fetched: Watched) -> None:
        hub.publish(NAME, {**FILES, "config.json": json.dumps({**tiny_config(), "hidden_size": 128}).encode()})
        assert "hidden 128 instead of 64" in fetched.refused()
        assert hub.starts(WEIGHTS) == []

    def test_remote_code_is_refused(self, hub: FakeHub, fetched: Watched) -> None:
        config = {**tiny_config(), "auto_map": {"AutoModel": "modeling.Model"}}
        hub.publish(NAME, {**FILES, "config.json": json.dumps(config).encode()})
        assert "auto_map, which names code to run" in fetched.refused()

    def test_weights_that_do_not_match_their_config(self, hub: FakeHub, fetched: Watched) -> None:
        hub.publish(NAME, {**FILES, WEIGHTS: tiny_files(shards=2)["model-00001-of-00002.safetensors"]})
        assert "The weights don't match config.json" in fetched.refused()
